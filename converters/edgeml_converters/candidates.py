"""Trials: candidates on their way from a recipe to a judged and measured result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TypeVar

import msgspec

from edgeml.errors import ModelError
from edgeml.manifest import (
    Binding,
    BlobRef,
    Evidence,
    EvidenceState,
    Score,
    Step,
    Tolerance,
    Variant,
)
from edgeml.tensors import Array, TensorSpec
from edgeml_converters import samples
from edgeml_converters.jobs import JobError, Limits, run_job
from edgeml_converters.recipes import BASELINE, Recipe
from edgeml_converters.recipes.accelerators import checked_here
from edgeml_converters.results import AtThreads, Candidate, Drop, Latency, Speedup, Standing
from edgeml_converters.worker import (
    BuildJob,
    Built,
    Checked,
    CheckJob,
    Measured,
    MeasureJob,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Bench:
    """What all trials of one search share.

    Attributes:
        model: The source as one ONNX file.
        inputs: The public contract.
        outputs: The public contract.
        samples: Stacked samples, for the check and the measurement.
        calibration: Calibration arrays; none in it without data.
        threads: Threads of every run.
        other_threads: The winner is measured at these numbers of threads too.
        seed: Of everything random.
        jobs: Child processes at the same time, while nothing is measured.
        limits: Bounds of each child process.
        work: A folder for all of it.
        stop: Set when the search is given up: running child processes end at once.
    """

    model: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: Path
    calibration: Path
    threads: int
    seed: int
    jobs: int
    limits: Limits
    work: Path
    other_threads: tuple[int, ...] = ()
    stop: Event = field(default_factory=Event)


@dataclass
class Trial:
    """One recipe on one runtime, and what is known so far.

    ``absent`` means that the device which must run it is not in this machine: then its values are
    checked on the processor, by the same file.
    """

    recipe: Recipe
    runtime: str
    absent: bool = False
    folder: Path | None = None
    built: Built | None = None
    checked: Checked | None = None
    outputs: dict[str, Array] = field(default_factory=dict)
    measured: Measured | None = None
    score: Score | None = None
    drop: Drop | None = None
    sqnr_db: float | None = None
    verdict: Standing = Standing.PASSED
    reason: str = ""

    @property
    def id(self) -> str:
        """``<runtime>.<recipe>``."""
        return f"{self.runtime}.{self.recipe.name}"

    @property
    def alive(self) -> bool:
        """Whether it may still win."""
        return self.verdict in (Standing.PASSED, Standing.UNDECIDED)

    @property
    def size_bytes(self) -> int:
        """Total size of its files; 0 before it is built."""
        if self.built is None or self.folder is None:
            return 0
        return sum((self.folder / name).stat().st_size for name in self.built.files)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The passes that made it."""
        return self.built.steps if self.built else ()

    def fail(self, verdict: Standing, reason: str) -> None:
        """Take it out, and keep why."""
        self.verdict, self.reason = verdict, reason
        logger.info("%s: %s", self.id, reason)

    def draft(self, threads: int) -> Variant:
        """Return the variant as far as running it needs; packing completes it."""
        if self.built is None or self.folder is None:
            raise ModelError(f"candidate {self.id} was not built")
        files = tuple(
            BlobRef("", (self.folder / name).stat().st_size, name) for name in self.built.files
        )
        return Variant(
            id=self.id,
            profile="",
            runtime=self.runtime,
            precision=self.recipe.precision,
            recipe=self.recipe.name,
            files=files,
            entry=self.built.entry,
            inputs=self.built.inputs,
            outputs=self.built.outputs,
            evidence=Evidence(EvidenceState.CHECKED, ""),
            tolerance=Tolerance(0.0, 0.0),
            threads=threads,
            max_batch=_fixed_batch(self.built.inputs),
            options=self.recipe.options[self.runtime],
            device=self.recipe.devices.get(self.runtime, ""),
        )

    def here(self, threads: int) -> Variant:
        """Return the draft as this machine can run it."""
        draft = self.draft(threads)
        if not self.absent:
            return draft
        options = checked_here(self.runtime, draft.options)
        return msgspec.structs.replace(draft, device="", options=options)

    def result(self, threads: int, isa: tuple[str, ...], evidence: str) -> Candidate:
        """Return what is known as a value."""
        timing, memory = self.measured, self.checked.memory_bytes if self.checked else None
        return Candidate(
            runtime=self.runtime,
            precision=self.recipe.precision,
            recipe=self.recipe.name,
            size_bytes=self.size_bytes,
            threads=threads,
            batch=1,
            isa=isa,
            latency_ms=Latency(timing.p50, timing.p95, timing.p99) if timing else None,
            metric=self.score,
            sqnr_db=self.sqnr_db,
            evidence=evidence if self.checked else "",
            verdict=self.verdict,
            reason=self.reason,
            speedup=Speedup(timing.speedup[0], timing.speedup[1:]) if timing else None,
            drop=self.drop,
            memory_bytes=memory,
            load_ms=self.checked.load_ms if self.checked else None,
        )


def _fixed_batch(inputs: Iterable[Binding]) -> int:
    """Return the batch that the file fixes; 0 when it takes any."""
    return max((b.shape[0] for b in inputs if b.shape and b.shape[0] > 0), default=0)


def make_trials(chosen: Iterable[tuple[Recipe, tuple[str, ...]]]) -> list[Trial]:
    """Return one trial per recipe and runtime, the baseline first."""
    trials = [Trial(recipe, runtime) for recipe, runtimes in chosen for runtime in runtimes]
    return sorted(trials, key=lambda trial: trial.id != BASELINE)


def build_all(trials: list[Trial], bench: Bench, tell: Callable[[str], None]) -> None:
    """Build each recipe once, in child processes; all its runtimes share the files."""
    recipes = {trial.recipe.name: trial.recipe for trial in trials}

    def build(recipe: Recipe) -> None:
        folder = bench.work / "built" / recipe.name
        folder.mkdir(parents=True)
        mine = [trial for trial in trials if trial.recipe.name == recipe.name]
        job = BuildJob(
            str(bench.model),
            str(folder),
            recipe.passes,
            recipe.target,
            bench.inputs,
            bench.outputs,
            str(bench.calibration),
            bench.seed,
            bench.threads,
        )
        try:
            built = run_job(job, Built, bench.limits, bench.stop)
        except JobError as error:
            for trial in mine:
                trial.fail(Standing.ERROR, f"could not be built: {error}")
            tell(f"{recipe.name}: could not be built: {error}")
            return
        for trial in mine:
            trial.built, trial.folder = built, folder
        tell(f"{recipe.name}: built, {mine[0].size_bytes / 1024:,.0f} KiB")

    _each(build, list(recipes.values()), bench)


def share_source(base: Trial, trials: Iterable[Trial]) -> None:
    """Give the files of the baseline to the other trials that leave the source as it is."""
    for trial in trials:
        if not trial.recipe.passes and trial.recipe.target == base.recipe.target:
            trial.built, trial.folder = base.built, base.folder


def check_all(trials: list[Trial], bench: Bench, tell: Callable[[str], None]) -> None:
    """Run every built trial on every sample, each in a process of its own."""

    def check(trial: Trial) -> None:
        results = bench.work / f"{trial.id}.npz"
        job = CheckJob(
            str(trial.folder),
            trial.here(bench.threads),
            bench.inputs,
            bench.outputs,
            str(bench.samples),
            str(results),
        )
        try:
            trial.checked = run_job(job, Checked, bench.limits, bench.stop)
        except JobError as error:
            trial.fail(Standing.ERROR, f"does not run: {error}")
            tell(f"{trial.id}: does not run: {error}")
            return
        trial.outputs = samples.load(results)
        tell(f"{trial.id}: runs on {trial.checked.placement}")

    _each(check, [trial for trial in trials if trial.built and trial.alive], bench)


def measure_all(
    trials: list[Trial], bench: Bench, rounds: int, budget_s: float, tell: Callable[[str], None]
) -> None:
    """Measure the baseline and all that may still win, side by side in one process.

    When that process dies, each one is measured with the baseline alone, and only the one that
    kills its process is lost.
    """
    base = next(trial for trial in trials if trial.id == BASELINE)
    others = [trial for trial in trials if trial.alive and trial is not base and trial.checked]
    tell(f"measuring {len(others) + 1} side by side, {rounds} rounds")

    def measure(group: list[Trial]) -> dict[str, Measured]:
        entries = {t.id: (str(t.folder), t.draft(bench.threads)) for t in (base, *group)}
        job = MeasureJob(
            entries,
            base.id,
            bench.inputs,
            bench.outputs,
            str(bench.samples),
            rounds,
            budget_s,
            bench.seed,
        )
        return run_job(job, dict[str, Measured], bench.limits, bench.stop)

    try:
        found = measure(others)
    except JobError as error:
        tell(f"measuring together failed ({error}); measuring each alone")
        found = {}
        for trial in others:
            try:
                found |= measure([trial])
            except JobError as alone:
                trial.fail(Standing.ERROR, f"could not be measured: {alone}")
        if not found:
            found = measure([])
    for trial in (base, *others):
        trial.measured = found.get(trial.id)


def measure_threads(
    winner: Trial,
    base: Trial,
    bench: Bench,
    rounds: int,
    budget_s: float,
    tell: Callable[[str], None],
) -> tuple[AtThreads, ...]:
    """Measure the winner and the baseline with the other numbers of threads."""
    found: list[AtThreads] = []
    for threads in bench.other_threads:
        entries = {t.id: (str(t.folder), t.draft(threads)) for t in (base, winner)}
        job = MeasureJob(
            entries,
            base.id,
            bench.inputs,
            bench.outputs,
            str(bench.samples),
            rounds,
            budget_s,
            bench.seed,
        )
        tell(f"measuring {winner.id} with {threads} threads")
        try:
            timing = run_job(job, dict[str, Measured], bench.limits, bench.stop)[winner.id]
        except JobError as error:
            tell(f"{winner.id} cannot be measured with {threads} threads: {error}")
            continue
        gain = Speedup(timing.speedup[0], timing.speedup[1:])
        found.append(AtThreads(threads, Latency(timing.p50, timing.p95, timing.p99), gain))
    return tuple(found)


def baseline_or_raise(trials: list[Trial], source: str, advice: str) -> Trial:
    """Return the baseline.

    Raises:
        ModelError: onnxruntime cannot run the source, or it answers otherwise each time: there is
            nothing to compare with.
    """
    base = next(trial for trial in trials if trial.id == BASELINE)
    if base.checked is None:
        raise ModelError(
            f"onnxruntime cannot run '{source}', so there is nothing to compare with: "
            f"{base.reason}",
            advice,
        )
    if not base.checked.repeatable:
        raise ModelError(
            f"'{source}' gives other outputs each time for the same inputs: nothing compares",
            "export it for inference: without dropout, sampling and other random operators",
        )
    return base


def _each(work: Callable[[T], None], items: list[T], bench: Bench) -> None:
    """Do the work for every item, some at the same time; the first exception comes out."""
    with ThreadPoolExecutor(max_workers=bench.jobs) as pool:
        try:
            for done in [pool.submit(work, item) for item in items]:
                done.result()
        except BaseException:  # Ctrl-C too: what runs is ended, what waits is not begun
            bench.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
