"""The account of a conversion: its Report, with pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgeml import __version__
from edgeml.manifest import Lineage
from edgeml.report import Column, Fact, Picture, Report, Row, Section, Table
from edgeml.report.model import Tone
from edgeml_converters import words
from edgeml_converters.pictures import (
    accuracy_picture,
    latency_picture,
    layers_picture,
    pareto_picture,
    size_picture,
)
from edgeml_converters.results import Candidate, ProfileResult, Standing

#: Profile -> candidate -> median latency of each round in milliseconds.
Rounds = Mapping[str, Mapping[str, Sequence[float]]]

_REASONS = (
    Column("#", number=True),
    Column("candidate"),
    Column("verdict"),
    Column("why it won or lost"),
)
_LAYERS = (
    Column("layer"),
    Column("operator"),
    Column("computed in"),
    Column("SQNR dB", number=True),
    Column("source µs", number=True),
    Column("winner µs", number=True),
    Column("share of the time", number=True),
)
_TONES: dict[Standing, Tone] = {
    Standing.PASSED: "",
    Standing.UNDECIDED: "doubt",
    Standing.FAILED: "bad",
    Standing.ERROR: "bad",
    Standing.SKIPPED: "",
}
_MEANING = (
    "A latency is a claim about the machine that is named beside it, at batch 1 and the threads "
    "that are given, and about no other. All candidates were measured in the same rounds, each "
    "round in another random order, so that a machine that slows down slows all of them.",
    "Times as fast: the median over the rounds of baseline divided by candidate, with the exact "
    "95 % interval of the sign test. The baseline is the source as it is, on onnxruntime in fp32. "
    "Only a gain whose lower end is above 1.02 replaces the source.",
    "Drop: how much worse than the source on the same samples. A candidate fails when the bound "
    "is beyond what is allowed and the data show it; it is undecided when the data cannot tell, "
    "and then it wins only if nothing decided gains.",
    "SQNR: energy of the source's outputs over the energy of the difference, the worst output; "
    "20 dB is an error of 10 %, 40 dB of 1 %. 'same' means equal bit for bit.",
    "In int8: how many of the convolutions and matrix products the runtime computes in 8 "
    "bits, of how many there are. A float remainder between 8-bit products costs conversions.",
    "Memory: what loading and running the model added to a process of its own, at the peak. "
    "Evidence: 'measured' on that hardware, 'emulated', 'compiled', or only 'checked'.",
)


def account(
    name: str,
    version: str,
    results: Sequence[ProfileResult],
    lineage: Lineage,
    rounds: Rounds,
    objective: str,
) -> Report:
    """Return the report of a conversion.

    Args:
        name: Of the model.
        version: Of the bundle.
        results: One per profile.
        lineage: Where the bundle comes from.
        rounds: Latencies for the pictures.
        objective: What was optimised.
    """
    warnings = tuple(dict.fromkeys(w for result in results for w in result.warnings))
    sections: list[Section] = []
    for result in results:
        sections.append(_profile(result, rounds.get(result.profile, {})))
        sections += [_layers(result)] if result.layers else []
    return Report(
        title=f"{name} {version}: how it was converted",
        lead=" ".join(f"{r.profile}: {r.winner.id} wins, {r.reason}." for r in results),
        facts=_facts(results, objective),
        warnings=warnings,
        sections=(
            *sections,
            _steps(lineage),
            _origin(lineage),
            Section("How to read this", _MEANING),
        ),
        footer=f"Made by edgeml {__version__}. No part of this page is loaded from elsewhere.",
    )


def _facts(results: Sequence[ProfileResult], objective: str) -> tuple[Fact, ...]:
    if len(results) > 1:
        return tuple(_one_fact(result) for result in results)
    facts: list[Fact] = []
    for result in results:
        winner, base = result.winner, result.baseline
        facts.append(Fact("winner", winner.runtime, winner.recipe, "good"))
        if result.speedup:
            low, high = result.speedup.interval
            fact = Fact("as fast", f"{result.speedup.value:.2f} x", f"[{low:.2f}, {high:.2f}]")
            facts.append(fact)
        if winner.latency_ms and base.latency_ms:
            note = f"source: {words.latency(base)} ms"
            facts.append(Fact("latency p50", f"{words.latency(winner)} ms", note))
        if winner.metric and base.metric:
            note = f"source: {base.metric.value:.4g}, {winner.metric.n} samples"
            facts.append(Fact(winner.metric.name, f"{winner.metric.value:.4g}", note))
        note = f"source: {words.size(base.size_bytes)}"
        facts.append(Fact("size", words.size(winner.size_bytes), note))
    facts.append(Fact("objective", objective, "what was optimised"))
    return tuple(facts)


def _one_fact(result: ProfileResult) -> Fact:
    """Return the card of one profile among several."""
    value = f"{result.speedup.value:.2f} x as fast" if result.speedup else "not measured"
    return Fact(result.profile, value, result.winner.id, "good" if result.speedup else "")


def _profile(result: ProfileResult, rounds: Mapping[str, Sequence[float]]) -> Section:
    winner = result.winner
    front = ", ".join(c.id for c in result.candidates if c.pareto)
    caption = f"Not beaten in all of drop, latency and size at once: {front}." if front else ""
    text = [
        f"Looked at on: {result.host}. Threads {winner.threads}, batch 1. "
        f"Evidence of the winner: {winner.evidence}."
    ]
    if result.confirmed:
        low, high = result.confirmed.interval
        text.append(
            f"Measured once more in new processes, the winner is {result.confirmed.value:.2f} x "
            f"[{low:.2f}, {high:.2f}] as fast as the source."
        )
    text += [f"The winner with {words.threads(one)}." for one in result.other_threads]
    ran = [
        (n, c) for n, c in enumerate(result.candidates, 1) if c.sqnr_db is not None or c.latency_ms
    ]
    columns = _columns([c for _, c in ran])
    heads = (Column("#", number=True), Column("candidate"), *(column for column, _ in columns))
    rows = tuple(
        Row((str(n), c.id, *(cell(c) for _, cell in columns)), _tone(c, winner)) for n, c in ran
    )
    why = tuple(_why(n, c, winner) for n, c in enumerate(result.candidates, 1))
    tables = (Table(heads, rows, caption), Table(_REASONS, why))
    title = f"Profile {result.profile}"
    return Section(title, tuple(text), _pictures(result, rounds), tables)


def _layers(result: ProfileResult) -> Section:
    """Return what became of each layer of the source in the winner."""
    products = [layer for layer in result.layers if layer.weighted]
    integer = [layer for layer in products if layer.precision == "int8"]
    share = sum(layer.share for layer in integer)
    taken = f"they take {share:.0%} of the time of {result.winner.id}"
    if not share:
        taken = f"{result.winner.runtime} does not tell how long each takes"
    text = [
        f"{len(integer)} of {len(products)} products with stored weights are computed in 8 bits; "
        f"{taken}."
    ]
    rest = [layer.name for layer in products if layer.precision != "int8"]
    if rest:
        more = f", and {len(rest) - 8} more" if len(rest) > 8 else ""
        text.append(f"In float: {', '.join(rest[:8])}{more}.")
    columns = _LAYERS if share else _LAYERS[:4]
    rows = tuple(
        Row(
            (
                layer.name,
                layer.op,
                layer.precision if layer.weighted else words.NOTHING,
                words.NOTHING if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}",
                words.NOTHING if layer.source_us is None else f"{layer.source_us:.3g}",
                words.NOTHING if layer.latency_us is None else f"{layer.latency_us:.3g}",
                f"{layer.share:.0%}",
            )[: len(columns)],
            "doubt" if layer.weighted and layer.precision != "int8" else "",
        )
        for layer in result.layers
    )
    caption = (
        "Products with stored weights, and what else takes 2 % of the time or more. Times are of "
        "profiled runs: compare them with one another, not with the latencies above."
    )
    caption = caption if share else "Products with stored weights."
    drawn = (layers_picture(f"layers-{result.profile}", result.layers),) if products else ()
    title = f"Layers of the winner, profile {result.profile}"
    return Section(title, tuple(text), drawn, (Table(columns, rows, caption),))


def _pictures(result: ProfileResult, rounds: Mapping[str, Sequence[float]]) -> tuple[Picture, ...]:
    """Return the pictures that there are figures for."""
    profile, winner, every = result.profile, result.winner.id, result.candidates
    base = result.baseline
    limits = [c.drop.limit for c in every if c.drop]
    drawn = []
    if any(c.latency_ms for c in every):
        limit = limits[0] if limits else None
        drawn.append(pareto_picture(f"pareto-{profile}", every, base, winner, limit))
        drawn.append(latency_picture(f"latency-{profile}", every, base, winner, rounds))
    if any(c.metric for c in every):
        drawn.append(accuracy_picture(f"accuracy-{profile}", every, base, winner))
    drawn.append(size_picture(f"size-{profile}", every, winner))
    return tuple(drawn)


def _columns(shown: Sequence[Candidate]) -> list[tuple[Column, Callable[[Candidate], str]]]:
    """Return the columns of the figures; one that is empty for all is left out."""
    every: list[tuple[str, Callable[[Candidate], str]]] = [
        (
            "p50, p99 ms",
            lambda c: f"{words.latency(c)}, {words.tail(c)}" if c.latency_ms else words.NOTHING,
        ),
        ("times as fast [95 %]", words.speedup),
        (words.metric_name(shown), words.metric),
        ("drop (95 % bound)", words.drop),
        ("SQNR dB", words.sqnr),
        ("size", lambda c: words.size(c.size_bytes or None)),
        ("memory", lambda c: words.size(c.memory_bytes)),
        ("load ms", words.load),
        ("energy mJ", words.energy),
        ("in int8", words.coverage),
    ]
    kept = [(n, cell) for n, cell in every if any(cell(c) != words.NOTHING for c in shown)]
    precision: tuple[Column, Callable[[Candidate], str]] = (
        Column("precision"),
        lambda c: c.precision,
    )
    return [precision, *((Column(name, number=True), cell) for name, cell in kept)]


def _why(number: int, c: Candidate, winner: Candidate) -> Row:
    verdict = "winner" if c.id == winner.id else c.verdict.value
    return Row((str(number), c.id, verdict, c.reason), _tone(c, winner))


def _tone(c: Candidate, winner: Candidate) -> Tone:
    return "good" if c.id == winner.id else _TONES[c.verdict]


def _steps(lineage: Lineage) -> Section:
    columns = tuple(map(Column, ("variant", "pass", "options", "before", "after", "notes")))
    rows = [
        Row(
            (
                variant,
                step.name,
                ", ".join(f"{key}={value}" for key, value in step.options.items()),
                _short(step.before),
                _short(step.after) if step.after != step.before else "unchanged",
                "; ".join(step.notes),
            )
        )
        for variant, steps in lineage.steps.items()
        for step in steps
    ]
    untouched = [variant for variant, steps in lineage.steps.items() if not steps]
    text = (f"The source as it is, no pass applied: {', '.join(untouched)}.",) if untouched else ()
    table = (
        (Table(columns, tuple(rows), "The whole digests stand in the manifest."),) if rows else ()
    )
    return Section("How the variants were made", text, tables=table)


def _origin(lineage: Lineage) -> Section:
    facts = {
        "source": lineage.source,
        "digest of the source": lineage.source_digest,
        "digest of the data": lineage.data_digest or "no evaluation data was given",
        "seed": str(lineage.seed),
        **lineage.tools,
    }
    rows = tuple(Row(pair) for pair in facts.items())
    return Section(
        "Where it comes from", tables=(Table((Column("what"), Column("which")), rows),), folded=True
    )


def _short(digest: str) -> str:
    kind, _, value = digest.rpartition(":")
    return f"{kind}:{value[:12]}" if kind else value[:12]
