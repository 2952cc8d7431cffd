"""The order of a search: two stages of candidates, a first and a final measurement, the choice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from edgeml.hardware import DeviceFacts, HardwareProfile, Int8Rule, fits
from edgeml.manifest import EvidenceState
from edgeml.runtime.facts import host_line
from edgeml.runtime.measure import LEAST_ROUNDS
from edgeml_converters.candidates import Bench, Measured, Trial, baseline_or_raise, make_trials
from edgeml_converters.choose import Choice
from edgeml_converters.judge import Judge
from edgeml_converters.recipes import Plan, baseline_allowed, recipes_for
from edgeml_converters.results import AtThreads, Candidate, ProfileResult, Speedup, Standing
from edgeml_converters.rules import problem
from edgeml_converters.search import told
from edgeml_converters.search.jury import STEP, Jury
from edgeml_converters.search.measuring import BLOCK_S, ENERGY_BLOCK_S, Heat, Parked, measure
from edgeml_converters.search.prepare import NO_TIME, Preparer
from edgeml_converters.search.progress import Progress
from edgeml_converters.search.settle import at_others, choice_of, confirm, finalists
from edgeml_converters.source import Source

#: Shares of a budget after which nothing more is begun in a stage, so that what was begun can be
#: measured in what is left.
_FIRST_UNTIL, _SECOND_UNTIL, _MEASURE_UNTIL = 0.45, 0.65, 0.9
#: Rough seconds per candidate, for the time left that is shown; they are scaled as work is done.
_GUESS_S = 3.0
INTERRUPTED = "interrupted before its turn"


class Effort(msgspec.Struct, frozen=True):
    """How much work a search does.

    Attributes:
        name: How the user asks for it.
        samples: Most test samples that are run; 0 for all.
        rounds: Of the final measurement.
        budget_s: Seconds of a measurement after which no new round starts.
        first_rounds: Of the first measurement, which only sorts out who cannot win.
        finalists: How many are measured to the end.
        everyone: Judge the accuracy also of what is too slow to win: it may be mended.
    """

    name: str
    samples: int
    rounds: int
    budget_s: float
    first_rounds: int = LEAST_ROUNDS
    finalists: int = 6
    everyone: bool = False


EFFORTS = {
    "quick": Effort("quick", 500, 15, 5.0, finalists=4),
    "normal": Effort("normal", 2000, 40, 15.0, first_rounds=8),
    "thorough": Effort("thorough", 0, 150, 120.0, first_rounds=15, finalists=12, everyone=True),
}


class Terms(msgspec.Struct, frozen=True):
    """What the user wants of a search.

    Attributes:
        effort: How much work.
        objective: What to be best at.
        allow_partial: An interrupted search ends with the best so far.
        notes: What a reader must know of the data.
    """

    effort: Effort
    objective: str = "latency"
    allow_partial: bool = False
    notes: tuple[str, ...] = ()


class Elsewhere(Protocol):
    """What measures instead of this machine: devices of a fleet.

    Attributes:
        facts: What they have in common.
        host: One line that names them.
        notes: What a reader must know of how they measured.
    """

    notes: tuple[str, ...]

    @property
    def facts(self) -> DeviceFacts:
        """See the class."""
        ...

    @property
    def host(self) -> str:
        """See the class."""
        ...

    def measure(
        self, base: Trial, others: Sequence[Trial], bench: Bench, heat: Heat, progress: Progress
    ) -> dict[str, Measured]:
        """Do what ``search.measuring.measure`` does."""
        ...


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
        partial: Whether it was interrupted.
    """

    profile: HardwareProfile
    result: ProfileResult
    trials: list[Trial]
    winner: Trial
    evidence: EvidenceState
    host: str
    partial: bool = False


def search(
    profile: HardwareProfile,
    source: Source,
    bench: Bench,
    judge: Judge,
    facts: DeviceFacts,
    terms: Terms,
    progress: Progress,
    elsewhere: Elsewhere | None = None,
) -> Found:
    """Find the winner for one profile.

    Args:
        profile: What it is for.
        source: The model.
        bench: What all trials share.
        judge: Compares with the source.
        facts: This machine.
        terms: What the user wants.
        progress: Takes the news.
        elsewhere: Measures instead of this machine.

    Raises:
        ModelError: onnxruntime cannot run the source.
        DataError: The data do not fit the metric.
        GateError: Nothing passes for this profile; the message says why, for each.
        KeyboardInterrupt: It was interrupted, and there is nothing to end with, or that was not
            wanted.
    """
    return _Search(profile, source, bench, judge, facts, terms, progress, elsewhere).run()


class _Search:
    """One search; its state is the trials and what was said of them."""

    def __init__(
        self,
        profile: HardwareProfile,
        source: Source,
        bench: Bench,
        judge: Judge,
        facts: DeviceFacts,
        terms: Terms,
        progress: Progress,
        elsewhere: Elsewhere | None,
    ) -> None:
        self.profile, self.source, self.bench, self.judge = profile, source, bench, judge
        self.terms, self.progress, self.elsewhere = terms, progress, elsewhere
        self.facts = elsewhere.facts if elsewhere else facts
        #: Why a device of the profile is not this machine: what needs one is only checked here.
        self.not_here = fits(profile, facts)
        self.effort = terms.effort
        self.misfit = fits(profile, self.facts)
        self.isa = profile.match.isa if self.misfit else self.facts.isa
        self.evidence = _evidence(profile, self.misfit)
        self.trials: list[Trial] = []
        self.notes: list[str] = []
        self.partial = False
        self.more: list[AtThreads] = []
        self.confirmed: Speedup | None = None
        self.plan = Plan(
            profile,
            profile.int8_rule(self.isa) or Int8Rule(),
            tuple(self.isa),
            frozenset(source.ops),
            judge.metric is not None,
            self.effort.name,
            terms.objective,
        )

    def run(self) -> Found:
        """Search, and return what was found."""
        started = time.monotonic()
        self._expect()
        self._baseline()
        with Parked(self.bench) as self.parked:
            try:
                self._stages()
            except KeyboardInterrupt:
                self._end_early()
            choice = self._settle()
        result = self._result(choice, started)
        self.progress.say(f"{self.profile.name}: {result.winner.id} wins: {result.reason}")
        winner = next(trial for trial in self.trials if trial.id == choice.winner)
        evidence, host = self.evidence, result.host
        return Found(self.profile, result, self.trials, winner, evidence, host, self.partial)

    def _expect(self) -> None:
        """Guess how long the stages take, for the time left that is shown."""
        trials = sum(len(runtimes) for _, runtimes in recipes_for(self.plan))
        measured = 0.0 if self.misfit else self.effort.budget_s
        self.progress.expect("candidates", _GUESS_S * trials)
        self.progress.expect("second stage", 0.4 * _GUESS_S * trials)
        self.progress.expect("first rounds", 0.2 * measured)
        self.progress.expect(STEP, 0.3 * _GUESS_S * trials)
        self.progress.expect("final rounds", 0.5 * measured)
        self.progress.expect("once more", 0.2 * measured)

    def _baseline(self) -> None:
        """Build the source itself, and check that it runs.

        Raises:
            ModelError: onnxruntime cannot run it.
        """
        trials = make_trials(recipes_for(self.plan))
        self.base, self.trials = trials[0], trials
        for trial in trials:
            trial.absent = bool(self.not_here) and trial.runtime in trial.recipe.devices
        Preparer(self.bench, self.profile, self.progress).prepare([self.base], "source", 2.0)
        advice = told.advice(self.source, self.plan.has_data)
        baseline_or_raise(trials, self.source.path.name, advice)
        everyone = (
            self.effort.everyone
            or bool(self.misfit)
            or self.terms.objective != "latency"
            or any(value is not None for value in msgspec.structs.astuple(self.profile.budgets))
            or bool(self._base_problem())
        )
        args = (self.bench, self.judge, self.progress, self.base)
        self.jury = Jury(*args, everyone=everyone)

    def _stages(self) -> None:
        """Prepare the candidates of both stages and measure them."""
        self._stage(self.trials[1:], "candidates", _FIRST_UNTIL, self.jury.begin)
        known = {trial.id for trial in self.trials}
        seen = tuple(self._candidates())
        tried = {trial.recipe.name: trial.recipe for trial in self.trials}
        plan = msgspec.structs.replace(self.plan, seen=seen, tried=tuple(tried.values()))
        new = [trial for trial in make_trials(recipes_for(plan)) if trial.id not in known]
        for trial in new:
            trial.stage = 2
            trial.absent = bool(self.not_here) and trial.runtime in trial.recipe.devices
        self.trials = [*self.trials, *new]
        if new:
            self._stage(new, "second stage", _SECOND_UNTIL)
        self.progress.expect("second stage", 0.0)
        self._final()

    def _stage(
        self,
        trials: list[Trial],
        name: str,
        until: float,
        beside: Callable[[], None] | None = None,
    ) -> None:
        """Prepare some candidates, measure them for the first time, and judge who may win."""
        preparer = Preparer(self.bench, self.profile, self.progress, self.base)
        preparer.prepare(trials, name, until, beside)
        alive = [trial for trial in trials if trial.alive and trial.checked]
        if alive and not self.misfit and self.progress.used() <= _MEASURE_UNTIL:
            heat = self._heat("first rounds", self.effort.first_rounds, 0.2)
            self._measure(alive, heat, "first")
        self.jury.judge(trials, self.trials)

    def _final(self) -> None:
        """Measure those that may still win, together."""
        if self.misfit:
            return
        usable = not self._base_problem()
        most = self.effort.finalists
        names = finalists(self._candidates(), self.terms.objective, most, needs_gain=usable)
        chosen = [trial for trial in self.trials if trial.id in names]
        self.parked.keep([self.base, *chosen])
        heat = self._heat("final rounds", self.effort.rounds, 1.0)
        self._measure(chosen, heat, "final")

    def _measure(self, trials: list[Trial], heat: Heat, timed: str) -> None:
        """Measure some beside the baseline, and keep the figures.

        Raises:
            JobError: The baseline failed.
        """
        self.progress.say(
            f"measuring {len(trials) + 1} side by side, {heat.rounds} rounds ({heat.name})"
        )
        if self.elsewhere:
            found = self.elsewhere.measure(self.base, trials, self.bench, heat, self.progress)
        else:
            found = measure(self.base, trials, self.parked, heat, self.progress)
        for trial in (self.base, *trials):
            if trial.id in found:
                trial.measured, trial.timed = found[trial.id], timed

    def _heat(self, name: str, rounds: int, share: float) -> Heat:
        """Return how a measurement is done, in what is left of the time."""
        room = max(self.progress.left_s() * 0.5, 0.1)
        block = ENERGY_BLOCK_S if self.terms.objective == "energy" else BLOCK_S
        seconds = min(self.effort.budget_s * share, room)
        return Heat(name, rounds, seconds, self.bench.threads, self.bench.batch, block_s=block)

    def _end_early(self) -> None:
        """Go on with what there is after an interrupt, where that is wanted and possible.

        Raises:
            KeyboardInterrupt: It is not.
        """
        if not self.terms.allow_partial or (self.base.measured is None and not self.misfit):
            raise
        self.partial = True
        self.bench.pool.stop.clear()
        if not self.base.outputs:
            self.jury.begin()
        for trial in self.trials[1:]:
            if trial.alive and trial.results is None:
                trial.fail(Standing.SKIPPED, INTERRUPTED)
            self.jury.compare(trial)
        self.notes.append("the search was interrupted: the best of what was tried until then")

    def _settle(self) -> Choice:
        """Choose, and measure the winner again until one holds.

        Raises:
            GateError: Nothing passes.
        """
        if reason := self._base_problem():
            self.base.fail(Standing.FAILED, reason)
        choice = self._choose()
        while self._doubtful(choice.winner):
            trial = next(t for t in self.trials if t.id == choice.winner)
            heat = self._heat("once more", max(self.effort.rounds // 2, 10), 0.5)
            fresh = msgspec.structs.replace(heat, fresh=True)
            args = (self.parked, fresh, self.terms.objective, self.progress)
            figures = confirm(trial, self.base, *args)
            if trial.alive:
                self.confirmed = figures.gain if figures else None
                break
            self.notes.append(f"{trial.id} had won, but {trial.reason}")
            waiting = [one for one in self.trials if one.waits]  # for one that was faster
            self.jury.judge(waiting, self.trials)
            choice = self._choose()
        self._others(choice.winner)
        return choice

    def _base_problem(self) -> str:
        """Return why a device of this profile cannot run the source as it is; empty when it can."""
        if not baseline_allowed(self.profile) or (self.misfit and self.profile.kind != "cpu"):
            return "baseline only: the profile does not run it"
        if self.base.built is None:
            return ""
        return problem(self.profile, self.base.built.traits, self.base.built.inputs)

    def _doubtful(self, winner: str) -> bool:
        """Whether a winner is one that has to show its gain again."""
        if not self.base.alive:  # it did not win by a gain over the source
            return False
        by_speed = self.terms.objective in ("latency", "energy")
        here = not self.misfit and self.elsewhere is None
        return winner != self.base.id and by_speed and here and self._time()

    def _time(self) -> bool:
        """Whether there is time for one more measurement; says so once when there is none."""
        if self.progress.left_s() > 0:
            return True
        note = "the budget was over before everything was measured"
        if note not in self.notes:
            self.notes.append(note)
        return False

    def _others(self, winner: str) -> None:
        """Measure the finalists at the profile's other numbers of threads and samples."""
        finals = [t for t in self.trials if t.timed == "final" and t is not self.base and t.alive]
        best = [t for t in self.trials if t.id == winner and t is not self.base]
        chosen = list(dict.fromkeys(t.id for t in (*best, *finals)))
        trials = [t for name in chosen for t in self.trials if t.id == name]
        bench = self.bench
        ways = [(threads, bench.batch) for threads in bench.other_threads]
        ways += [(bench.threads, batch) for batch in bench.other_batches]
        for threads, batch in ways if not self.misfit and self.elsewhere is None else ():
            if not self._time():
                return
            heat = self._heat(f"{threads} threads, batch {batch}", self.effort.rounds // 2, 0.4)
            heat = msgspec.structs.replace(
                heat, threads=threads, batch=batch, rounds=max(heat.rounds, LEAST_ROUNDS)
            )
            found = at_others(trials, self.base, self.parked, heat, winner, self.progress)
            if found is not None:
                self.more.append(found)

    def _candidates(self) -> list[Candidate]:
        bench = self.bench
        args = (bench.threads, bench.batch, self.facts.isa, self.evidence.value)
        return [trial.result(*args) for trial in self.trials]

    def _choose(self) -> Choice:
        return choice_of(self._candidates(), self.profile, self.terms.objective)

    def _result(self, choice: Choice, started: float) -> ProfileResult:
        """Return the outcome as a value."""
        by_id = {c.id: c for c in choice.candidates}
        winner = by_id[choice.winner]
        untried = [c.id for c in choice.candidates if c.reason == NO_TIME]
        if untried:
            self.notes.append(f"not tried, for lack of time: {', '.join(untried)}")
        warnings = (
            *self.source.warnings,
            *self.terms.notes,
            *told.warnings(self.profile, self.misfit, self.plan.has_data, self.bench, self.facts),
            *(self.elsewhere.notes if self.elsewhere else ()),
            *self.notes,
            *told.doubts(winner),
        )
        return ProfileResult(
            profile=self.profile.name,
            host=self.elsewhere.host if self.elsewhere else host_line(self.facts),
            baseline=by_id[self.base.id],
            winner=winner,
            speedup=winner.speedup,
            candidates=choice.candidates,
            warnings=warnings,
            seconds=round(time.monotonic() - started, 2),
            reason=choice.reason,
            other_threads=tuple(self.more),
            confirmed=self.confirmed,
        )


def _evidence(profile: HardwareProfile, misfit: str) -> EvidenceState:
    """Return the evidence that was reached, and never more than the profile says can be had."""
    order = list(EvidenceState)
    limit = profile.evidence.without_hardware if misfit else profile.evidence.with_hardware
    reached = EvidenceState.CHECKED if misfit else EvidenceState.MEASURED
    return min(reached, EvidenceState(limit), key=order.index)
