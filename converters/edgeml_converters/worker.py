"""The child process of ``edgeml_converters.jobs``: ``python -m edgeml_converters.worker FOLDER``.

Three jobs: build the files of a recipe; check a variant, by running it on the samples; measure
variants side by side. Models are run by ``edgeml.runtime``, with the code that a device uses.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import numpy as np

from edgeml.errors import EdgemlError
from edgeml.manifest import Binding, Step, Variant
from edgeml.plugins import load
from edgeml.runtime import get_runtime
from edgeml.runtime.bind import open_variant
from edgeml.runtime.measure import interleave, speedup
from edgeml.runtime.memory import peak_resident
from edgeml.tensors import Array, TensorSpec
from edgeml_converters import samples
from edgeml_converters.jobs import NO_SPACE, Outcome

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PassCall(msgspec.Struct, frozen=True):
    """A pass by its name (plug-in kind ``passes``), with its options."""

    name: str
    options: dict[str, Any] = {}


class BuildJob(msgspec.Struct, frozen=True, tag="build"):
    """Apply passes to a model and write the files.

    Attributes:
        model: Path of the source as one ONNX file.
        folder: Where the files go; it exists and is empty.
        passes: In order.
        target: Name of the target (plug-in kind ``targets``).
        inputs: The public contract.
        outputs: The public contract.
        calibration: Path of calibration arrays; none in it without data.
        seed: Of everything random.
        threads: For runs of the model inside the passes.
    """

    model: str
    folder: str
    passes: tuple[PassCall, ...]
    target: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    calibration: str
    seed: int = 0
    threads: int = 1


class Traits(msgspec.Struct, frozen=True):
    """What the rules of a profile ask about a built file.

    Attributes:
        onnx: Operators of the ONNX model that it was written from.
        tflite: Operators of the TFLite file; empty when it is none.
        rank: Most axes of a tensor, as far as shapes are known.
    """

    onnx: tuple[str, ...] = ()
    tflite: tuple[str, ...] = ()
    rank: int = 0


class Built(msgspec.Struct, frozen=True):
    """The outcome of a BuildJob: the files, their bindings, the steps that made them, traits."""

    files: tuple[str, ...]
    entry: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    traits: Traits = Traits()


class CheckJob(msgspec.Struct, frozen=True, tag="check"):
    """Open a variant and run it on every sample.

    Attributes:
        folder: Holds the variant's files.
        variant: What to open.
        inputs: The public contract.
        outputs: The public contract.
        samples: Path of the samples, stacked.
        results: Where the outputs go.
        first: Keep only what the first run gave, as it gave it.
    """

    folder: str
    variant: Variant
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: str
    results: str
    first: bool = False


class Checked(msgspec.Struct, frozen=True):
    """The outcome of a CheckJob.

    Attributes:
        placement: The device or provider that really ran it.
        version: Of the runtime's library.
        memory_bytes: What loading and running it added to the process, at the peak.
        seconds: Mean wall time of a run; rough, for planning only.
        repeatable: Whether the same feed gave the same outputs twice, but for rounding.
        load_ms: From the file to the first answer, the library loaded already; the least of some.
    """

    placement: str
    version: str
    memory_bytes: int
    seconds: float
    repeatable: bool = True
    load_ms: float = 0.0


class MeasureJob(msgspec.Struct, frozen=True, tag="measure"):
    """Measure variants side by side.

    Attributes:
        entries: Key -> (folder, variant).
        baseline: The key that the others are compared with.
        inputs: The public contract.
        outputs: The public contract.
        samples: Path of the samples; the first is what is run.
        rounds: Of the interleaved measurement.
        budget_s: Stop after this long, though not before the least number of rounds.
        seed: Of the order inside the rounds.
    """

    entries: dict[str, tuple[str, Variant]]
    baseline: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: str
    rounds: int
    budget_s: float
    seed: int = 0


class Measured(msgspec.Struct, frozen=True):
    """How long one variant took.

    Attributes:
        rounds_ms: Median of each round, for pictures and for others to reckon with.
        p50: Milliseconds.
        p95: Milliseconds.
        p99: Milliseconds.
        speedup: (value, low, high) against the baseline.
        clock: The time that was compared, ``wall`` or ``cpu``.
    """

    rounds_ms: tuple[float, ...]
    p50: float
    p95: float
    p99: float
    speedup: tuple[float, float, float]
    clock: str


def build(job: BuildJob) -> Built:
    """Apply the passes and write the files."""
    from edgeml_converters.model import inlined, model_digest, read_model
    from edgeml_converters.passes.base import Pass, PassContext, check_promises
    from edgeml_converters.rules import traits

    model = read_model(Path(job.model))
    if job.passes:
        model = inlined(model)
    context = PassContext(samples.load(Path(job.calibration)), job.seed, job.threads)
    steps: list[Step] = []
    before = model_digest(model)
    for call in job.passes:
        one: Pass = load("passes", call.name)(**call.options)
        result = one.run(model, context)
        check_promises(one, model, result)
        model = result.model
        after = model_digest(model) if result.changed else before
        steps.append(Step(call.name, one.options, before, after, result.notes))
        before = after
    target = load("targets", job.target)()
    product = target.write(model, Path(job.folder), job.inputs, job.outputs)
    return Built(
        product.files,
        product.entry,
        product.inputs,
        product.outputs,
        tuple(steps),
        product.notes,
        traits(model, Path(job.folder) / product.entry),
    )


def check(job: CheckJob) -> Checked:
    """Run a variant on every sample, from its final bytes, and keep its outputs."""
    feeds = list(samples.feeds(samples.load(Path(job.samples))))
    # This also loads the library, whose memory is not the model's.
    version = get_runtime(job.variant.runtime).check().version
    base = peak_resident()
    opened = time.perf_counter()
    with closing(
        open_variant(Path(job.folder), job.variant, job.inputs, job.outputs)
    ) as program, closing(program.session()) as session:  # fmt: skip
        runs = [session.run(feeds[0])]
        started = time.perf_counter()
        first = started - opened
        for feed in feeds[1:]:
            runs.append(session.run(feed))
        seconds = (time.perf_counter() - started) / max(len(feeds) - 1, 1)
        peak = peak_resident()
        repeatable = _near(runs[0], session.run(feeds[0]))
        placement = program.placement
    joined = runs[0] if job.first else samples.join(runs, samples.batch_of(feeds[0]))
    samples.save(Path(job.results), joined)
    load_ms = round(1e3 * min(first, *(_load(job, feeds[0]) for _ in range(_loads(first)))), 3)
    return Checked(placement, version, peak - base, seconds, repeatable, load_ms)


def _loads(first: float) -> int:
    """Return how often to load again: what takes long was disturbed little."""
    return 4 if first < 0.1 else 1


def _load(job: CheckJob, feed: Mapping[str, Array]) -> float:
    """Return the seconds from the file to the first answer."""
    opened = time.perf_counter()
    with closing(
        open_variant(Path(job.folder), job.variant, job.inputs, job.outputs)
    ) as program, closing(program.session()) as session:  # fmt: skip
        session.run(feed)
        return time.perf_counter() - opened


def _near(first: Mapping[str, Array], second: Mapping[str, Array]) -> bool:
    """Tell whether two answers are the same, but for the order of sums."""
    for name, want in first.items():
        got = second[name]
        if got.shape != want.shape:
            return False
        if want.dtype.kind == "f":
            finite = np.abs(want[np.isfinite(want)], dtype=np.float64)
            room = 1e-3 * float(finite.max(initial=0.0))
            if not np.allclose(got, want, rtol=1e-3, atol=room, equal_nan=True):
                return False
        elif not np.array_equal(got, want):
            return False
    return True


def measure(job: MeasureJob) -> dict[str, Measured]:
    """Measure variants side by side, batch 1, at their threads."""
    feed = next(samples.feeds(samples.load(Path(job.samples))))
    with ExitStack() as stack:
        runs: dict[str, Callable[[], object]] = {}
        for key, (folder, variant) in job.entries.items():
            opened = open_variant(Path(folder), variant, job.inputs, job.outputs)
            program = stack.enter_context(closing(opened))
            session = stack.enter_context(closing(program.session()))
            runs[key] = lambda session=session: session.run(feed)  # type: ignore[misc]  # bound now
        timings = interleave(runs, rounds=job.rounds, budget_s=job.budget_s, seed=job.seed)
    found: dict[str, Measured] = {}
    for key, timing in timings.items():
        ratio = speedup(timings[job.baseline], timing)
        found[key] = Measured(
            tuple(round(float(s) * 1e3, 6) for s in timing.wall),
            **timing.latency_ms(),
            speedup=(ratio.value, ratio.low, ratio.high),
            clock=ratio.clock,
        )
    return found


_Job = BuildJob | CheckJob | MeasureJob


def work(job: _Job) -> Built | Checked | dict[str, Measured]:
    """Do a job."""
    if isinstance(job, BuildJob):
        return build(job)
    if isinstance(job, CheckJob):
        return check(job)
    return measure(job)


def _end_with_parent() -> None:
    """End when the process that waits for the outcome is gone, however it ended."""
    while os.read(0, 1):
        pass
    os._exit(1)


def main() -> int:
    """Do the job in the folder that the command line names; return the exit code."""
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        _leave_outcome(Path(sys.argv[1]))
    except OSError as error:
        if error.errno in _FULL:
            return NO_SPACE
        raise
    return 0


def _leave_outcome(folder: Path) -> None:
    """Do the job in a folder.

    Raises:
        OSError: The folder cannot be written.
    """
    job = msgspec.msgpack.decode((folder / "job").read_bytes(), type=_Job)
    try:
        outcome = Outcome(result=msgspec.msgpack.encode(work(job)))
    except EdgemlError as error:
        outcome = Outcome(error=error.message)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        # The boundary of the process: whatever a library raises costs this candidate, no more.
        traceback.print_exc()
        text = " ".join(str(error).split())[:400]
        outcome = Outcome(error=f"{type(error).__name__}: {text}")
    (folder / "outcome").write_bytes(msgspec.msgpack.encode(outcome))


if __name__ == "__main__":
    sys.exit(main())
