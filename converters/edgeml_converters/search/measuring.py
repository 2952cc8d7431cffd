"""Timing in turns: every candidate is open in a process of its own, and one runs at a time.

A crash, a hang or too much memory costs the candidate that did it. The others stay open, and the
measurement begins again without it. What was measured is recorded at once, so that an
interrupted search goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

import msgspec

from edgeml.runtime.measure import Block, Timing, round_robin, saving, speedup
from edgeml_converters.cache import key_of
from edgeml_converters.candidates import Bench, Measured, Trial
from edgeml_converters.jobs import Conversation, JobError
from edgeml_converters.results import Standing
from edgeml_converters.search.prepare import each
from edgeml_converters.search.progress import Progress
from edgeml_converters.worker import Go, Opened, OpenJob

#: What an open process takes beside its model: Python and a runtime's library.
_PROCESS_BYTES = 100 << 20
#: A visit lasts at least this long; an energy counter is read once per millisecond or so, and
#: needs longer visits.
BLOCK_S = 0.002
ENERGY_BLOCK_S = 0.05


class Heat(msgspec.Struct, frozen=True):
    """How one measurement is done.

    Attributes:
        name: For the news, and part of the record's key.
        rounds: How often each candidate is visited.
        budget_s: Stop after this long, though not before the least number of rounds.
        threads: Of every run.
        batch: Samples in every run.
        fresh: Open the models in new processes, not in copies of warm ones.
        block_s: A visit lasts at least about this long.
    """

    name: str
    rounds: int
    budget_s: float
    threads: int
    batch: int = 1
    fresh: bool = False
    block_s: float = BLOCK_S


class Parked:
    """Processes that have a candidate open, from one measurement to the next."""

    def __init__(self, bench: Bench) -> None:
        """Start with none."""
        self.bench = bench
        self._open: dict[tuple[object, ...], Conversation] = {}

    def open(self, trials: Sequence[Trial], heat: Heat) -> dict[str, Conversation]:
        """Open every candidate that is not open yet, the first of them the baseline.

        Args:
            trials: Those that do not open lose their verdict, with the reason.
            heat: How they run.

        Returns:
            Id -> the process that has it open.

        Raises:
            JobError: The baseline does not open, or the search is given up.
        """
        children: dict[str, Conversation] = {}

        def open_one(trial: Trial) -> None:
            key = _way(trial, heat)
            try:
                if heat.fresh or key not in self._open:
                    self.close(trial, heat)
                    self._open[key] = self._start(trial, heat)
                children[trial.id] = self._open[key]
            except JobError as error:
                if trial is trials[0] or self.bench.pool.stop.is_set():
                    raise
                trial.fail(Standing.ERROR, f"could not be measured: {error}")

        each(open_one, trials, self.bench)
        return children

    def _start(self, trial: Trial, heat: Heat) -> Conversation:
        bench = self.bench
        job = OpenJob(
            str(trial.folder),
            trial.draft(heat.threads),
            bench.inputs,
            bench.outputs,
            str(bench.samples.write()),
            heat.batch,
            heat.block_s,
        )
        child = bench.pool.converse(job, trial.runtime, heat.fresh)
        try:
            child.answer(Opened)
        except BaseException:  # whatever ended it, no process stays
            child.close()
            raise
        return child

    def keep(self, trials: Sequence[Trial]) -> None:
        """Close the processes of all others."""
        ids = {trial.id for trial in trials}
        for key in [key for key in self._open if key[0] not in ids]:
            self._open.pop(key).close()

    def close(self, trial: Trial, heat: Heat) -> None:
        """Close the process of one."""
        child = self._open.pop(_way(trial, heat), None)
        if child is not None:
            child.close()

    def __enter__(self) -> Parked:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all."""
        self.keep(())


def _way(trial: Trial, heat: Heat) -> tuple[object, ...]:
    """Return what decides whether an open process can be used."""
    return (trial.id, heat.threads, heat.batch, heat.block_s, heat.fresh)


class _LostError(Exception):
    """A candidate failed while it was measured."""

    def __init__(self, trial: Trial, reason: str) -> None:
        super().__init__(reason)
        self.trial, self.reason = trial, reason


def measure(
    base: Trial, others: Sequence[Trial], parked: Parked, heat: Heat, progress: Progress
) -> dict[str, Measured]:
    """Measure the baseline and others in the same rounds.

    Args:
        base: What they are compared with.
        others: Those that fail lose their verdict, with the reason.
        parked: Open processes.
        heat: How.
        progress: Takes the news.

    Returns:
        Id -> figures, without those that failed.

    Raises:
        JobError: The baseline failed.
    """
    bench = parked.bench
    found: dict[str, Measured] = {}
    groups = _groups(base, others, bench)
    for number, group in enumerate(groups):
        members = [base, *group]
        how = msgspec.structs.replace(heat, budget_s=0.0)  # what is left of a budget varies
        key = key_of("heat", number, how, bench.seed, [t.identity() for t in members])
        known = bench.attempt.take(key)
        if known is not None:
            figures = msgspec.json.decode(known, type=dict[str, Measured])
            for trial in group:
                if trial.id not in figures:
                    trial.fail(Standing.ERROR, "could not be measured (in the recorded run)")
        else:
            if len(groups) > 1:
                parked.keep(members)
            figures = _heat(members, parked, heat, progress, len(groups))
            bench.attempt.keep(key, msgspec.json.encode(figures))
        # Ratios are each group's own; the baseline's latency is that of the first.
        found = {**figures, **found}
    return found


def _groups(base: Trial, others: Sequence[Trial], bench: Bench) -> list[list[Trial]]:
    """Split the candidates so that those of a group, and the baseline, fit into memory at once."""
    room = bench.pool.limits.memory_bytes - _takes(base)
    groups: list[list[Trial]] = [[]]
    used = 0
    for trial in others:
        if groups[-1] and used + _takes(trial) > room:
            groups.append([])
            used = 0
        groups[-1].append(trial)
        used += _takes(trial)
    return groups


def _takes(trial: Trial) -> int:
    """Return the memory of a process that has a candidate open."""
    return _PROCESS_BYTES + (trial.checked.memory_bytes if trial.checked else 0)


def _heat(
    members: list[Trial], parked: Parked, heat: Heat, progress: Progress, groups: int
) -> dict[str, Measured]:
    """Measure one group, as often as it takes for all that is left of it to come through."""
    base = members[0]
    children = parked.open(members, heat)
    while True:
        here = [trial for trial in members if trial.id in children]
        progress.step(heat.name, 0.0, f"{len(here)} side by side")
        try:
            timings = round_robin(
                {trial.id: _visit(trial, children[trial.id]) for trial in here},
                rounds=heat.rounds,
                budget_s=heat.budget_s / groups,
                seed=parked.bench.seed,
                each=lambda n: progress.step(
                    heat.name, n / heat.rounds, f"round {n} of {heat.rounds}"
                ),
            )
        except _LostError as lost:
            if lost.trial is base or parked.bench.pool.stop.is_set():
                raise JobError(lost.reason) from lost
            lost.trial.fail(Standing.ERROR, f"could not be measured: {lost.reason}")
            progress.say(f"{lost.trial.id}: {lost.trial.reason}")
            parked.close(lost.trial, heat)
            children.pop(lost.trial.id)
            continue
        if heat.fresh:
            for trial in here:
                parked.close(trial, heat)
        return _figures(timings, base.id)


def _visit(trial: Trial, child: Conversation) -> Callable[[], Block]:
    """Return a function that has a candidate run for one visit."""

    def visit() -> Block:
        try:
            return child.ask(Go(), Block)
        except JobError as error:
            raise _LostError(trial, str(error)) from error

    return visit


def _figures(timings: dict[str, Timing], base: str) -> dict[str, Measured]:
    """Fold the timings of one group."""
    found: dict[str, Measured] = {}
    for key, timing in timings.items():
        ratio, less = speedup(timings[base], timing), saving(timings[base], timing)
        found[key] = Measured(
            tuple(round(float(s) * 1e3, 6) for s in timing.wall),
            **timing.latency_ms(),
            speedup=(ratio.value, ratio.low, ratio.high),
            clock=ratio.clock,
            energy_mj=None if timing.joules is None else float(timing.joules.mean()) * 1e3,
            saving=(less.value, less.low, less.high) if less else None,
        )
    return found
