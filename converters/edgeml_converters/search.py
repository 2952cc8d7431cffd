"""The search for one profile: build, check, judge, measure, choose."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from edgeml.errors import GateError
from edgeml.hardware import Budgets, DeviceFacts, HardwareProfile, Int8Rule, fits
from edgeml.manifest import EvidenceState
from edgeml.runtime.facts import host_line
from edgeml_converters.candidates import (
    Bench,
    Trial,
    baseline_or_raise,
    build_all,
    check_all,
    make_trials,
    measure_all,
    measure_threads,
    share_source,
)
from edgeml_converters.choose import Choice, choose
from edgeml_converters.judge import Judge
from edgeml_converters.recipes import BASELINE, PRECISIONS, Plan, baseline_allowed, recipes_for
from edgeml_converters.results import AtThreads, Candidate, ProfileResult, Standing
from edgeml_converters.rules import problem
from edgeml_converters.source import Source

Tell = Callable[[str], None]


class Effort(msgspec.Struct, frozen=True):
    """How much work a search does.

    Attributes:
        name: How the user asks for it.
        samples: Most test samples that are run; 0 for all.
        rounds: Of the measurement.
        budget_s: Seconds of measurement after which no new round starts.
    """

    name: str
    samples: int
    rounds: int
    budget_s: float


EFFORTS = {
    "quick": Effort("quick", 500, 15, 10.0),
    "normal": Effort("normal", 2000, 40, 60.0),
    "thorough": Effort("thorough", 0, 150, 300.0),
}


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        profile: What it was for.
        result: For the user.
        trials: All of them, the baseline first.
        winner: One of the trials.
        evidence: How far the candidates of this search were verified.
        host: One line that names this machine.
    """

    profile: HardwareProfile
    result: ProfileResult
    trials: list[Trial]
    winner: Trial
    evidence: EvidenceState
    host: str


def search(
    profile: HardwareProfile,
    source: Source,
    bench: Bench,
    judge: Judge,
    facts: DeviceFacts,
    effort: Effort,
    objective: str,
    tell: Tell,
    notes: tuple[str, ...] = (),
) -> Found:
    """Find the winner for one profile.

    Args:
        profile: What it is for.
        source: The model.
        bench: What all trials share.
        judge: Compares with the source.
        facts: This machine.
        effort: How much work.
        objective: What to be best at.
        tell: Takes lines of progress.
        notes: What a reader must know of the data.

    Raises:
        ModelError: onnxruntime cannot run the source.
        DataError: The data do not fit the metric.
        GateError: Nothing passes for this profile; the message says why, for each.
    """
    started = time.monotonic()
    misfit = fits(profile, facts)
    isa = profile.match.isa if misfit else facts.isa
    has_data = judge.metric is not None
    plan = Plan(
        profile,
        profile.int8_rule(isa) or Int8Rule(),
        tuple(isa),
        frozenset(source.ops),
        has_data,
        effort.name,
        objective,
    )
    trials = make_trials(recipes_for(plan))
    base, others = trials[:1], trials[1:]
    for trial in others:
        trial.absent = bool(misfit) and trial.runtime in trial.recipe.devices
    build_all(base, bench, tell)
    check_all(base, bench, tell)
    reference = baseline_or_raise(trials, source.path.name, _advice(source, has_data))
    judge.score(reference)
    build_all([t for t in others if t.recipe.passes], bench, tell)
    share_source(reference, others)
    _apply_rules(profile, others)
    check_all(others, bench, tell)
    judge.judge(others, reference)
    if not misfit:
        measure_all(trials, bench, effort.rounds, effort.budget_s, tell)
    if not baseline_allowed(profile) or (misfit and profile.kind != "cpu"):
        reference.fail(Standing.FAILED, "baseline only: the profile does not run it")
    _apply_rules(profile, [reference])
    evidence = _evidence(profile, misfit)
    host = host_line(facts)
    choice = _choose(profile, trials, bench, facts, evidence, objective)
    winner = next(trial for trial in trials if trial.id == choice.winner)
    args = (effort.rounds, effort.budget_s, tell)
    more = () if misfit else measure_threads(winner, reference, bench, *args)
    warnings = (*source.warnings, *notes, *_warnings(profile, misfit, has_data, bench, facts))
    result = _result(choice, profile, host, warnings, more, started)
    tell(f"{profile.name}: {result.winner.id} wins: {result.reason}")
    return Found(profile, result, trials, winner, evidence, host)


def _advice(source: Source, has_data: bool) -> str:
    """Return what to do when onnxruntime cannot run the source."""
    varying = [spec for spec in source.inputs if -1 in spec.shape[1:]]
    if has_data or not varying:
        return "check the model with 'edgeml inspect', and give --data with inputs that it accepts"
    shapes = " ".join(
        f"--shape {spec.name}={','.join(str(n) if n > 0 else 'N' for n in spec.shape)}"
        for spec in varying
    )
    return f"axes that vary were set to 1: give real numbers by {shapes}, or real inputs by --data"


def _apply_rules(profile: HardwareProfile, trials: list[Trial]) -> None:
    """Take out what the profile's rules for operators and shapes do not allow."""
    for trial in trials:
        if trial.alive and trial.built is not None:
            reason = problem(profile, trial.built.traits, trial.built.inputs)
            if reason:
                trial.fail(Standing.FAILED, reason)


def _evidence(profile: HardwareProfile, misfit: str) -> EvidenceState:
    """Return the evidence that was reached, and never more than the profile says can be had."""
    order = list(EvidenceState)
    limit = profile.evidence.without_hardware if misfit else profile.evidence.with_hardware
    reached = EvidenceState.CHECKED if misfit else EvidenceState.MEASURED
    return min(reached, EvidenceState(limit), key=order.index)


def _choose(
    profile: HardwareProfile,
    trials: list[Trial],
    bench: Bench,
    facts: DeviceFacts,
    evidence: EvidenceState,
    objective: str,
) -> Choice:
    """Choose among the trials.

    Raises:
        GateError: Nothing passes.
    """
    candidates = [trial.result(bench.threads, facts.isa, evidence.value) for trial in trials]
    choice = choose(candidates, BASELINE, objective, _limits(profile.budgets), profile.runtimes)
    winner = next(c for c in choice.candidates if c.id == choice.winner)
    if winner.verdict not in (Standing.PASSED, Standing.UNDECIDED):
        reasons = "; ".join(f"{c.id}: {c.reason}" for c in choice.candidates)
        raise GateError(
            f"nothing passes for profile '{profile.name}': {reasons}",
            "allow more with --max-drop, give more data, or change the profile's budgets",
        )
    return choice


def _limits(budgets: Budgets) -> dict[str, float]:
    known = {name: getattr(budgets, name) for name in budgets.__struct_fields__}
    return {name: float(value) for name, value in known.items() if value is not None}


def _doubt(winner: Candidate) -> str:
    """Return what is not known of an undecided winner."""
    if winner.drop is None:
        return winner.reason
    return (
        f"it may lose up to {winner.drop.upper:.4g}, allowed is {winner.drop.limit:g}; "
        "more test samples would decide it"
    )


def _result(
    choice: Choice,
    profile: HardwareProfile,
    host: str,
    warnings: tuple[str, ...],
    more: tuple[AtThreads, ...],
    started: float,
) -> ProfileResult:
    by_id = {c.id: c for c in choice.candidates}
    winner = by_id[choice.winner]
    if winner.verdict == Standing.UNDECIDED:
        warnings = (*warnings, f"the winner {winner.id} is undecided: {_doubt(winner)}")
    return ProfileResult(
        profile=profile.name,
        host=host,
        baseline=by_id[BASELINE],
        winner=winner,
        speedup=winner.speedup,
        candidates=choice.candidates,
        warnings=warnings,
        seconds=round(time.monotonic() - started, 2),
        reason=choice.reason,
        other_threads=more,
    )


def _warnings(
    profile: HardwareProfile, misfit: str, has_data: bool, bench: Bench, facts: DeviceFacts
) -> tuple[str, ...]:
    warnings: list[str] = []
    if misfit:
        warnings.append(
            f"this machine is no {profile.name} ({misfit}): values were checked here, but no "
            "latency was measured, so nothing is claimed to be faster"
        )
        if profile.budgets.latency_ms is not None:
            warnings.append("the profile's budget latency_ms could not be checked here")
    if not has_data:
        warnings.append(
            "no evaluation data: accuracy cannot be judged, so only the source itself was tried; "
            "it was run on random inputs; give --data to get int8"
        )
    if bench.threads > facts.cores:
        warnings.append(
            f"{bench.threads} threads on {facts.cores} cores: they wait for one another"
        )
    absent = sorted(set(profile.precisions) - PRECISIONS)
    if absent:
        warnings.append(f"no recipe gives {', '.join(absent)} yet, so it was not tried")
    return tuple(warnings)
