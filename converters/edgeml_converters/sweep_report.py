"""The index of a sweep: one page that leads to every report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgeml import __version__
from edgeml.report import Column, Fact, Report, Row, Section, Table
from edgeml_converters import words
from edgeml_converters.pictures import gains_picture
from edgeml_converters.results import ProfileResult, Standing

#: Name, state, error, results, seconds of one model.
Outcome = tuple[str, str, str, Sequence[ProfileResult], float]

_COLUMNS = (
    Column("model"),
    Column("profile"),
    Column("winner"),
    Column("precision"),
    Column("p50 ms", number=True),
    Column("times as fast [95 %]", number=True),
    Column("metric", number=True),
    Column("drop (95 % bound)", number=True),
    Column("size", number=True),
    Column("size of the source", number=True),
)
_MEANING = (
    "Times as fast: against the source as it is, on onnxruntime in fp32, with as many threads, in "
    "the same rounds, with the 95 % interval. 1 means that nothing beats the source surely, and "
    "that it is kept. The report of each model says what else was tried, and why it lost.",
)


def overview(title: str, outcomes: Sequence[Outcome]) -> Report:
    """Return the index.

    Args:
        title: Of the sweep.
        outcomes: One per model, in the order of the file.
    """
    found = [(name, one) for name, _, _, results, _ in outcomes for one in results]
    failed = [outcome for outcome in outcomes if outcome[1] != "done"]
    hosts = tuple(dict.fromkeys(one.host for _, one in found))
    sections = []
    if found:
        measured = [(f"{name}, {one.profile}", one.speedup) for name, one in found if one.speedup]
        pictures = (gains_picture("gains", measured),) if measured else ()
        table = Table(_COLUMNS, tuple(_row(name, one) for name, one in found))
        text = (f"Looked at on: {'; '.join(hosts)}.",)
        sections.append(Section("What came out", text, pictures, (table,)))
    if failed:
        columns = (Column("model"), Column("verdict"), Column("why"))
        told = {"gate": "a gate said no", "error": "error"}
        rows = tuple(Row((o[0], told.get(o[1], o[1]), o[2]), "bad") for o in failed)
        sections.append(Section("What did not", tables=(Table(columns, rows),)))
    sections.append(Section("How to read this", _MEANING))
    done = len(outcomes) - len(failed)
    return Report(
        title=f"{title}: {len(outcomes)} models",
        lead=f"{done} of {len(outcomes)} models were converted, for {_profiles(found)}.",
        facts=_facts(outcomes, found, failed),
        warnings=tuple(
            f"{name}, {one.profile}: {warning}" for name, one in found for warning in one.warnings
        ),
        sections=tuple(sections),
        footer=f"Made by edgeml {__version__}. No part of this page is loaded from elsewhere.",
    )


def _profiles(found: Sequence[tuple[str, ProfileResult]]) -> str:
    return ", ".join(dict.fromkeys(one.profile for _, one in found)) or "no profile"


def _facts(
    outcomes: Sequence[Outcome],
    found: Sequence[tuple[str, ProfileResult]],
    failed: Sequence[Outcome],
) -> tuple[Fact, ...]:
    facts = [Fact("converted", f"{len(outcomes) - len(failed)} of {len(outcomes)}", "models")]
    gains = [one.speedup.value for _, one in found if one.speedup]
    if gains:
        mean = math.exp(sum(map(math.log, gains)) / len(gains))
        note = f"geometric mean over {len(gains)} winners"
        facts.append(Fact("as fast", f"{mean:.2f} x", note, "good"))
    before = sum(one.baseline.size_bytes for _, one in found)
    after = sum(one.winner.size_bytes for _, one in found)
    if before and after:
        note = f"{words.size(before)} of the sources became"
        facts.append(Fact("size", words.size(after), note))
    if failed:
        facts.append(Fact("not converted", str(len(failed)), "reasons below", "bad"))
    minutes = sum(outcome[4] for outcome in outcomes) / 60
    return (*facts, Fact("took", f"{minutes:.1f} min", "all models together"))


def _row(name: str, one: ProfileResult) -> Row:
    c = one.winner
    cells = (
        name,
        one.profile,
        c.id,
        c.precision,
        words.latency(c),
        words.speedup(c),
        words.metric(c),
        words.drop(c),
        words.size(c.size_bytes or None),
        words.size(one.baseline.size_bytes or None),
    )
    doubt = c.verdict == Standing.UNDECIDED
    return Row(cells, "doubt" if doubt else "", f"{name}/report.html")
