"""Who wins: a pure function of what was measured.

The rules (docs/decisions/0010-how-a-winner-is-chosen.md):

1. A gate that says no (accuracy, a budget of the profile, an error) takes a candidate out.
2. The baseline, fp32 of the source on onnxruntime, is what a gain is measured against. It is
   always decided, and it is no gain over itself.
3. A candidate replaces the baseline only by a gain that is sure: for latency and energy the lower
   bound of its ratio is above MIN_GAIN, for size and memory it needs that much less. Figures of
   the first measurement only sort out: where a final one was made, the winner is of those.
4. Among sure gains the decided come first; undecided ones may win only if no decided one gains.
5. The best by objective wins. Within TIE of the best, the smaller drop wins, then what does not
   take LOAD times as long to load as another, then the smaller file, then the order in which the
   profile names the runtimes: noise must not choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edgeml_converters.results import Candidate, Standing

#: A gain below this factor is not worth another file on the device.
MIN_GAIN = 1.02
#: Candidates within this factor of the best are equal to the objective.
TIE = 1.02
#: Of equal candidates one that takes this many times as long to load as another comes behind it:
#: twice, because loads are timed while other candidates are built, and differ by 1.6 by themselves.
LOAD = 2.0
OBJECTIVES = ("latency", "size", "memory", "energy")
#: ``Candidate.timed`` of a candidate that was not measured to the end.
_FIRST, _FINAL = "first", "final"


class Choice(msgspec.Struct, frozen=True):
    """The outcome of ``choose``.

    Attributes:
        winner: Id of the winner.
        candidates: All, with verdict, reason and pareto filled in, in the given order.
        reason: Why the winner won, in one sentence.
    """

    winner: str
    candidates: tuple[Candidate, ...]
    reason: str


def choose(
    candidates: Sequence[Candidate],
    baseline: str,
    objective: str = "latency",
    budgets: Mapping[str, float] | None = None,
    runtimes: Sequence[str] = (),
) -> Choice:
    """Choose the winner.

    Args:
        candidates: All that were tried; ``verdict`` and ``reason`` say what the accuracy gate said.
        baseline: Id of the baseline; it must be among them.
        objective: One of OBJECTIVES.
        budgets: Any of ``latency_ms`` (p50), ``size_bytes`` and ``memory_bytes``.
        runtimes: In order of preference: the last word between equals.

    Returns:
        The choice. When nothing gains, the baseline wins; when even that breaks a budget, the
        best of what is within the budgets wins, and else the baseline, whose verdict says so.
    """
    gated = [_within(c, budgets or {}) for c in candidates]
    base = next(c for c in gated if c.id == baseline)
    standing = [c for c in gated if c.verdict in (Standing.PASSED, Standing.UNDECIDED)]
    others = [c for c in standing if c.id != baseline]
    if any(c.timed == _FINAL for c in others):
        others = [c for c in others if c.timed != _FIRST]
    gains = others if base.verdict == Standing.FAILED else _sure_gains(others, base, objective)
    decided = [c for c in gains if c.verdict == Standing.PASSED]
    pool = decided or gains
    winner = _best(pool, objective, runtimes) if pool else base
    front = pareto(standing)
    told = tuple(
        msgspec.structs.replace(
            c, pareto=c.id in front, reason=_reason(c, winner, base, objective, bool(decided))
        )
        for c in gated
    )
    return Choice(winner.id, told, next(c.reason for c in told if c.id == winner.id))


def pareto(candidates: Sequence[Candidate]) -> frozenset[str]:
    """Return the ids on the front of (drop, latency, size): smaller is better in each.

    A candidate without a latency is on no front; without a drop (no data) it counts as 0. Latency
    counts as a share of the baseline's in the same rounds, where that is known.
    """
    points = {
        c.id: (
            c.drop.value if c.drop else 0.0,
            1.0 / c.speedup.value if c.speedup else c.latency_ms.p50,
            float(c.size_bytes),
        )
        for c in candidates
        if c.latency_ms is not None
    }
    return frozenset(
        name
        for name, mine in points.items()
        if not any(
            theirs != mine and all(t <= m for t, m in zip(theirs, mine, strict=True))
            for theirs in points.values()
        )
    )


def cost(candidate: Candidate, objective: str) -> float:
    """Return what the objective counts; smaller is better; infinite when it is not known."""
    if objective == "size":
        return float(candidate.size_bytes)
    if objective == "memory":
        known = candidate.memory_bytes
        return float("inf") if known is None else float(known)
    if objective == "energy":
        return float("inf") if candidate.energy_mj is None else candidate.energy_mj
    return candidate.latency_ms.p50 if candidate.latency_ms else float("inf")


def _standing(candidate: Candidate, objective: str) -> float:
    """Return what candidates are ordered by: for latency the share of the baseline's.

    A share is taken inside the rounds, where a slow moment of the machine hits both.
    """
    if objective == "latency" and candidate.speedup:
        return 1.0 / max(candidate.speedup.value, 1e-9)
    if objective == "energy" and candidate.saving:
        return 1.0 / max(candidate.saving.value, 1e-9)
    return cost(candidate, objective)


def _sure_gains(others: Sequence[Candidate], base: Candidate, objective: str) -> list[Candidate]:
    if objective == "latency":
        return [c for c in others if c.speedup and c.speedup.interval[0] > MIN_GAIN]
    if objective == "energy":
        return [c for c in others if c.saving and c.saving.interval[0] > MIN_GAIN]
    limit = cost(base, objective) / MIN_GAIN
    return [c for c in others if cost(c, objective) < limit]


def _best(pool: Sequence[Candidate], objective: str, runtimes: Sequence[str]) -> Candidate:
    best = min(_standing(c, objective) for c in pool)
    tied = [c for c in pool if _standing(c, objective) <= best * TIE]
    rank = {name: position for position, name in enumerate(runtimes)}

    quickest = min((c.load_ms for c in tied if c.load_ms), default=0.0)

    def order(c: Candidate) -> tuple[float, bool, int, int, str]:
        drop = c.drop.value if c.drop else 0.0
        slow = (c.load_ms or 0.0) > quickest * LOAD
        return drop, slow, c.size_bytes, rank.get(c.runtime, len(rank)), c.id

    return min(tied, key=order)


def _within(candidate: Candidate, budgets: Mapping[str, float]) -> Candidate:
    """Return the candidate, failed when it breaks a budget."""
    if candidate.verdict not in (Standing.PASSED, Standing.UNDECIDED):
        return candidate
    known = {
        "latency_ms": cost(candidate, "latency"),
        "size_bytes": float(candidate.size_bytes),
        "memory_bytes": cost(candidate, "memory"),
    }
    broken = [
        f"{name} {known[name]:.6g} is over the profile's budget of {limit:.6g}"
        for name, limit in budgets.items()
        if known[name] > limit and known[name] != float("inf")
    ]
    if not broken:
        return candidate
    return msgspec.structs.replace(candidate, verdict=Standing.FAILED, reason="; ".join(broken))


def _reason(
    c: Candidate, winner: Candidate, base: Candidate, objective: str, any_decided: bool
) -> str:
    """Return why a candidate won or lost, after what its gates already said."""
    if c.id == winner.id:
        return _won(c, base, objective)
    if c.verdict in (Standing.FAILED, Standing.ERROR, Standing.SKIPPED):
        return c.reason
    if c.id == base.id:
        return f"baseline; {winner.id} is {_better(winner, base, objective)}"
    if not _sure_gains([c], base, objective) and base.verdict != Standing.FAILED:
        return _join(c.reason, _no_gain(c, base, objective))
    if c.verdict == Standing.UNDECIDED and any_decided:
        return _join(c.reason, f"{winner.id} gains and is decided")
    if _standing(c, objective) <= _standing(winner, objective) * TIE:
        better = "loses less, loads quicker or is smaller"
        if cost(winner, objective) == float("inf"):
            nearer = f"of those that pass, {winner.id} {better}"
            return _join(c.reason, f"its {objective} was not measured here; {nearer}")
        return _join(c.reason, f"equal to {winner.id} within {TIE - 1:.0%}, which {better}")
    return _join(c.reason, f"{winner.id} is {_better(winner, c, objective)}")


def _won(c: Candidate, base: Candidate, objective: str) -> str:
    if c.verdict == Standing.FAILED:
        return _join(c.reason, "and nothing else passes")
    if c.id == base.id:
        if objective == "latency" and base.latency_ms is None:
            return "nothing was measured on this hardware: the source is kept as it is"
        return "nothing that passes is surely better than the source: it is kept as it is"
    words = f"best {objective} of what passes: {_better(c, base, objective)} than the source"
    if base.verdict == Standing.FAILED:
        best = f"best {objective} of what passes"
        if cost(c, objective) == float("inf"):
            best = f"passes; its {objective} was not measured here"
        words = f"{best}; the source is out ({base.reason})"
    if c.verdict == Standing.UNDECIDED:
        words += f"; nothing decided gains, and {c.reason}"
    return words


def _no_gain(c: Candidate, base: Candidate, objective: str) -> str:
    if objective == "energy" and c.saving is None:
        return "its energy was not measured"
    if objective != "latency":
        return f"needs {cost(c, objective) / max(cost(base, objective), 1.0):.2f} x the source's"
    if c.speedup is None:
        return "was not measured"
    low, high = c.speedup.interval
    least = f"{MIN_GAIN - 1:.0%} " if low > 1.0 else ""
    sure = "slower than" if high < 1.0 else f"not surely {least}faster than"
    return f"{sure} the source: {c.speedup.value:.2f} x [{low:.2f}, {high:.2f}]"


def _better(c: Candidate, other: Candidate, objective: str) -> str:
    """Return how much better ``c`` is, in words that fit before ``than`` or alone."""
    ratio = _standing(other, objective) / max(_standing(c, objective), 1e-9)
    words = {"latency": "faster", "size": "smaller", "memory": "lighter", "energy": "thriftier"}
    word = words[objective]
    return f"{ratio:.2f} x {word}"


def _join(first: str, second: str) -> str:
    return f"{first}; {second}" if first else second
