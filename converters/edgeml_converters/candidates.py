"""Trials: candidates on their way from a recipe to a judged and measured result."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

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
from edgeml_converters.cache import Attempt, Cache, file_digest, key_of
from edgeml_converters.jobs import Pool
from edgeml_converters.layers.coverage import Coverage
from edgeml_converters.recipes import BASELINE, Recipe
from edgeml_converters.recipes.accelerators import checked_here
from edgeml_converters.results import Candidate, Drop, Int8Coverage, Latency, Speedup, Standing
from edgeml_converters.worker import Built, Checked, CheckJob

logger = logging.getLogger(__name__)


class Measured(msgspec.Struct, frozen=True):
    """How long one variant took.

    Attributes:
        rounds_ms: Median of each round, for pictures and for others to reckon with.
        p50: Milliseconds.
        p95: Milliseconds.
        p99: Milliseconds.
        speedup: (value, low, high) against the baseline.
        clock: The time that was compared, ``wall`` or ``cpu``.
        energy_mj: Energy of a run in millijoules; None without a counter.
        saving: (value, low, high): how many times less energy than the baseline.
    """

    rounds_ms: tuple[float, ...]
    p50: float
    p95: float
    p99: float
    speedup: tuple[float, float, float]
    clock: str
    energy_mj: float | None = None
    saving: tuple[float, float, float] | None = None

    @property
    def latency(self) -> Latency:
        """The percentiles."""
        return Latency(self.p50, self.p95, self.p99)

    @property
    def gain(self) -> Speedup:
        """The speed-up."""
        return Speedup(self.speedup[0], self.speedup[1:])


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
        batch: Samples in every run that is measured.
        other_threads: What may win is measured at these numbers of threads too.
        other_batches: And at these numbers of samples in a run.
        seed: Of everything random.
        jobs: Child processes at the same time, while nothing is measured.
        pool: Runs the child processes.
        work: A folder for all of it.
        cache: Of built files and checks.
        attempt: Records the measurements.
        context: What every key depends on: versions of the tools, this project's code, the machine.
    """

    model: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: samples.Kept
    calibration: Path
    threads: int
    seed: int
    jobs: int
    pool: Pool
    work: Path
    cache: Cache
    attempt: Attempt
    context: str
    batch: int = 1
    other_threads: tuple[int, ...] = ()
    other_batches: tuple[int, ...] = ()

    def check(self, job: CheckJob) -> Checked:
        """Run a variant on samples in a child process, or take what an earlier run gave.

        Raises:
            JobError: It does not run.
        """
        files = [_identity(Path(job.folder) / ref.path) for ref in job.variant.files]
        variant = msgspec.structs.replace(job.variant, id="")
        own = Path(job.samples) == self.samples.path
        data = self.samples.digest if own else file_digest(Path(job.samples))
        shared = (self.inputs, self.outputs, data, job.first, job.few, job.reload)
        key = key_of("check", self.context, files, variant, shared)
        kept = Path(tempfile.mkdtemp(prefix="kept-", dir=self.work))
        places = {kept / "outputs.npz": Path(job.results)}
        if job.few:
            places[kept / "glimpse.npz"] = Path(job.glimpse)
        known = self.cache.take(key, kept)
        if known is None:
            if own:
                self.samples.write()
            checked = self.pool.run(job, Checked, job.variant.runtime)
            made = [(place, file) for place, file in places.items() if file.exists()]
            for place, file in made:
                file.rename(place)
            known = msgspec.msgpack.encode(checked)
            self.cache.keep(key, known, [place for place, _ in made])
        for place, file in places.items():
            if place.exists():
                place.rename(file)
        return msgspec.msgpack.decode(known, type=Checked)


@dataclass
class Trial:
    """One recipe on one runtime, and what is known so far.

    ``absent`` means that the device which must run it is not in this machine: then its values are
    checked on the processor, by the same file. ``stage`` is 2 for a recipe that builds on results.
    ``timed`` says in which measurement its figures were taken, ``first`` or ``final``. ``glimpse``
    is the file of what it gave for the first few samples, ``results`` of what it gave for all;
    without the latter its accuracy is not judged. ``waits`` says that it was left out as too slow.
    """

    recipe: Recipe
    runtime: str
    absent: bool = False
    stage: int = 1
    folder: Path | None = None
    built: Built | None = None
    checked: Checked | None = None
    glimpse: Path | None = None
    results: Path | None = None
    waits: bool = False
    outputs: dict[str, Array] = field(default_factory=dict)
    coverage: Coverage | None = None
    measured: Measured | None = None
    timed: str = ""
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

    def recall(self) -> dict[str, Array]:
        """Return its outputs, from memory or from its file."""
        return self.outputs or (samples.load(self.results) if self.results else {})

    def glimpsed(self) -> dict[str, Array]:
        """Return its outputs for the first few samples."""
        return samples.load(self.glimpse) if self.glimpse else {}

    def identity(self) -> tuple[object, ...]:
        """Return what a measurement of it depends on."""
        draft = self.draft(1)
        assert self.folder is not None  # or the draft had raised
        files = tuple(_identity(self.folder / ref.path) for ref in draft.files)
        return (self.id, files, draft.options, draft.device)

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

    def result(self, threads: int, batch: int, isa: tuple[str, ...], evidence: str) -> Candidate:
        """Return what is known as a value."""
        timing, memory = self.measured, self.checked.memory_bytes if self.checked else None
        return Candidate(
            runtime=self.runtime,
            precision=self.recipe.precision,
            recipe=self.recipe.name,
            size_bytes=self.size_bytes,
            threads=threads,
            batch=batch,
            isa=isa,
            latency_ms=timing.latency if timing else None,
            metric=self.score,
            sqnr_db=self.sqnr_db,
            evidence=evidence if self.checked else "",
            verdict=self.verdict,
            reason=self.reason,
            speedup=timing.gain if timing else None,
            drop=self.drop,
            memory_bytes=memory,
            load_ms=self.checked.load_ms if self.checked else None,
            stage=self.stage,
            timed=self.timed,
            energy_mj=timing.energy_mj if timing else None,
            saving=Speedup(timing.saving[0], timing.saving[1:])
            if timing and timing.saving
            else None,
            coverage=_covered(self.coverage),
        )


def _covered(found: Coverage | None) -> Int8Coverage | None:
    """Return the part of a coverage that the result keeps."""
    if found is None:
        return None
    return Int8Coverage(found.weighted, found.int8, found.quantize + found.dequantize)


def _identity(file: Path) -> tuple[str, str]:
    return (file.name, file_digest(file))


def _fixed_batch(inputs: Iterable[Binding]) -> int:
    """Return the batch that the file fixes; 0 when it takes any."""
    return max((b.shape[0] for b in inputs if b.shape and b.shape[0] > 0), default=0)


def make_trials(chosen: Iterable[tuple[Recipe, tuple[str, ...]]]) -> list[Trial]:
    """Return one trial per recipe and runtime, the baseline first."""
    trials = [Trial(recipe, runtime) for recipe, runtimes in chosen for runtime in runtimes]
    return sorted(trials, key=lambda trial: trial.id != BASELINE)


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
