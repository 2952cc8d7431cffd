"""Who is measured to the end, who wins, and whether that holds in new processes."""

from __future__ import annotations

from collections.abc import Sequence

from edgeml.errors import GateError
from edgeml.hardware import Budgets, HardwareProfile
from edgeml_converters.candidates import Measured, Trial
from edgeml_converters.choose import MIN_GAIN, Choice, choose, cost
from edgeml_converters.jobs import JobError
from edgeml_converters.recipes import BASELINE
from edgeml_converters.results import AtThreads, Candidate, Speedup, Standing, Timed
from edgeml_converters.search.measuring import Heat, Parked, measure
from edgeml_converters.search.progress import Progress

#: A gain is contradicted when, measured again, its interval reaches below this.
CONFIRMED = 1.0
_MAY_WIN = (Standing.PASSED, Standing.UNDECIDED)


def finalists(
    candidates: Sequence[Candidate], objective: str, most: int, *, needs_gain: bool = True
) -> frozenset[str]:
    """Return the ids of those that may still win, by their first figures.

    Who is surely behind the best decided one, or surely no gain, is not measured any longer.

    Args:
        candidates: With the figures of the first measurement; the baseline may be among them.
        objective: What counts.
        most: So many at most, the best first.
        needs_gain: Whether the source itself may win: then only a gain over it counts.
    """
    known = [
        c
        for c in candidates
        if c.verdict in _MAY_WIN and c.id != BASELINE and c.latency_ms is not None
    ]
    if objective in ("latency", "energy"):
        least = MIN_GAIN if needs_gain else 0.0
        known = [c for c in known if (gain := _gain(c, objective)) and gain.interval[1] > least]
        decided = [c for c in known if c.verdict == Standing.PASSED]
        sure = max((_low(c, objective) for c in decided), default=0.0)
        known = [c for c in known if _high(c, objective) >= sure]
        if sure > least:
            known = [c for c in known if c.verdict == Standing.PASSED] or known
        known.sort(key=lambda c: -(_high(c, objective) + _low(c, objective)))
    else:
        known.sort(key=lambda c: cost(c, objective))
    return frozenset(c.id for c in known[:most])


def _gain(candidate: Candidate, objective: str) -> Speedup | None:
    return candidate.saving if objective == "energy" else candidate.speedup


def _low(candidate: Candidate, objective: str) -> float:
    gain = _gain(candidate, objective)
    return gain.interval[0] if gain else 0.0


def _high(candidate: Candidate, objective: str) -> float:
    gain = _gain(candidate, objective)
    return gain.interval[1] if gain else 0.0


def choice_of(candidates: Sequence[Candidate], profile: HardwareProfile, objective: str) -> Choice:
    """Choose among the candidates.

    Raises:
        GateError: Nothing passes.
    """
    choice = choose(candidates, BASELINE, objective, _limits(profile.budgets), profile.runtimes)
    winner = next(c for c in choice.candidates if c.id == choice.winner)
    if winner.verdict not in _MAY_WIN:
        reasons = "; ".join(f"{c.id}: {c.reason}" for c in choice.candidates)
        raise GateError(
            f"nothing passes for profile '{profile.name}': {reasons}",
            "allow more with --max-drop, give more data, or change the profile's budgets",
        )
    return choice


def _limits(budgets: Budgets) -> dict[str, float]:
    known = {name: getattr(budgets, name) for name in budgets.__struct_fields__}
    return {name: float(value) for name, value in known.items() if value is not None}


def confirm(
    winner: Trial,
    base: Trial,
    parked: Parked,
    heat: Heat,
    objective: str,
    progress: Progress,
) -> Measured | None:
    """Measure a winner once more, in new processes.

    It fails when the gain that it won by does not show again.

    Returns:
        Its new figures; None when it could not be measured.
    """
    try:
        found = measure(base, [winner], parked, heat, progress).get(winner.id)
    except JobError as error:
        progress.say(f"{winner.id}: could not be measured again: {error}")
        return None
    if found is None:
        return None
    value, low, high = found.saving if objective == "energy" and found.saving else found.speedup
    told = f"measured again in a new process: {value:.2f} x [{low:.2f}, {high:.2f}]"
    progress.say(f"{winner.id}: {told}")
    if low < CONFIRMED:
        winner.fail(Standing.FAILED, f"{told}: no sure gain, so the next one was taken")
    return found


def at_others(
    trials: Sequence[Trial],
    base: Trial,
    parked: Parked,
    heat: Heat,
    winner: str,
    progress: Progress,
) -> AtThreads | None:
    """Measure all that may win with another number of threads or samples in a run.

    Returns:
        The figures there, and who is best there; None when the winner cannot be measured so.
    """
    standing = {trial.id: trial.verdict for trial in trials}
    try:
        found = measure(base, trials, parked, heat, progress)
    except JobError as error:
        progress.say(f"{heat.name}: the source cannot be measured so: {error}")
        return None
    for trial in trials:  # what fails there is no reason against it here
        trial.verdict = standing[trial.id]
        if trial.id not in found:
            trial.reason = ""
    if winner not in found:
        return None
    timed = tuple(Timed(key, one.latency, one.gain) for key, one in found.items())
    sure = [one for one in timed if one.speedup.interval[0] > MIN_GAIN]
    best = min(sure, key=lambda one: one.latency_ms.p50, default=None)
    mine = found[winner]
    name = best.id if best else BASELINE
    return AtThreads(heat.threads, mine.latency, mine.gain, heat.batch, name, timed)
