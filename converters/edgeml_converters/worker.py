"""What the child processes of ``edgeml_converters.jobs`` do.

Build the files of a recipe; look at what a runtime makes of them; check a variant, by running it
on the samples; keep one variant open, and run it whenever it is asked to, for a measurement that
visits several such processes in turns. Models are run by ``edgeml.runtime``, with the code that a
device uses.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgeml.manifest import Binding, Step, Variant
from edgeml.plugins import load
from edgeml.runtime import get_runtime
from edgeml.runtime.bind import open_variant
from edgeml.runtime.energy import EnergyCounter
from edgeml.runtime.measure import settle, visit
from edgeml.runtime.memory import peak_resident
from edgeml.tensors import Array, TensorSpec
from edgeml_converters import samples
from edgeml_converters.jobs.wire import Channel, Reply

if TYPE_CHECKING:
    import onnx

#: Samples that take less than this are all run at once: to begin anew for them takes as long.
_NO_TIME_S = 0.3


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
    """Open a variant and run it on every sample, or on the first few where all would take long.

    Attributes:
        folder: Holds the variant's files.
        variant: What to open.
        inputs: The public contract.
        outputs: The public contract.
        samples: Path of the samples, stacked.
        results: Where the outputs for all of them go.
        first: Keep only what the first run gave, as it gave it.
        few: Stop after so many samples, unless the others take next to no time; 0 for all.
        glimpse: Where the outputs for the few go.
        reload: Load it some more times: how long that takes varies.
    """

    folder: str
    variant: Variant
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: str
    results: str
    first: bool = False
    few: int = 0
    glimpse: str = ""
    reload: bool = True


class Checked(msgspec.Struct, frozen=True):
    """The outcome of a CheckJob.

    Attributes:
        placement: The device or provider that really ran it.
        version: Of the runtime's library.
        memory_bytes: What loading and running it added to the process, at the peak.
        seconds: Mean wall time of a run; rough, for planning only.
        repeatable: Whether the same feed gave the same outputs twice, but for rounding.
        load_ms: From the file to the first answer, the library loaded already; the least of some.
        whole: Whether it ran on every sample.
    """

    placement: str
    version: str
    memory_bytes: int
    seconds: float
    repeatable: bool = True
    load_ms: float = 0.0
    whole: bool = True


class LookJob(msgspec.Struct, frozen=True, tag="look"):
    """Tell how much of a file a runtime runs in 8 bits, without running it.

    Attributes:
        file: What the runtime opens.
        runtime: Its name.
        threads: Of every run.
        options: Of the runtime.
    """

    file: str
    runtime: str
    threads: int
    options: dict[str, str]


class LayersJob(msgspec.Struct, frozen=True, tag="layers"):
    """Tell what became of each layer of the source in a file.

    Attributes:
        model: Path of the source as one ONNX file.
        file: What the runtime opens.
        runtime: Its name.
        threads: Of every run.
        options: Of the runtime.
        inputs: The public contract.
        calibration: Path of calibration arrays.
        passes: What made the file: applied again where it is no ONNX file itself.
        seed: Of everything random in them.
    """

    model: str
    file: str
    runtime: str
    threads: int
    options: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    calibration: str
    passes: tuple[PassCall, ...] = ()
    seed: int = 0


class OpenJob(msgspec.Struct, frozen=True, tag="open"):
    """Open a variant and run it whenever it is asked to, until nobody asks any more.

    Attributes:
        folder: Holds the variant's files.
        variant: What to open.
        inputs: The public contract.
        outputs: The public contract.
        samples: Path of the samples; the first is what is run.
        batch: Samples in one run.
        min_block_s: A visit repeats short runs until about this long.
    """

    folder: str
    variant: Variant
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: str
    batch: int = 1
    min_block_s: float = 0.002


class Opened(msgspec.Struct, frozen=True):
    """The first answer to an OpenJob.

    Attributes:
        calls: Runs of one visit.
    """

    calls: int


class Go(msgspec.Struct, frozen=True, tag="go"):
    """Asks for one visit; the answer is a ``Block``."""


def build(job: BuildJob) -> Built:
    """Apply the passes and write the files."""
    from edgeml_converters.rules import traits

    model, steps = _apply(job.model, job.passes, job.calibration, job.seed, job.threads)
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


def _apply(
    path: str, passes: tuple[PassCall, ...], calibration: str, seed: int, threads: int
) -> tuple[onnx.ModelProto, list[Step]]:
    """Return a model after passes, and the steps that made it."""
    from edgeml_converters.model import inlined, model_digest, read_model
    from edgeml_converters.passes.base import Pass, PassContext, check_promises

    model = read_model(Path(path))
    if passes:
        model = inlined(model)
    context = PassContext(samples.load(Path(calibration)), seed, threads)
    steps: list[Step] = []
    before = model_digest(model)
    for call in passes:
        one: Pass = load("passes", call.name)(**call.options)
        result = one.run(model, context)
        check_promises(one, model, result)
        model = result.model
        after = model_digest(model) if result.changed else before
        steps.append(Step(call.name, one.options, before, after, result.notes))
        before = after
    return model, steps


def look(job: LookJob) -> msgspec.Struct:
    """Return the coverage of a file."""
    from edgeml_converters.layers.coverage import coverage

    return coverage(Path(job.file), job.runtime, job.threads, job.options)


def layers(job: LayersJob) -> tuple[msgspec.Struct, ...]:
    """Return a row for each layer of a file."""
    from edgeml_converters.layers.table import layer_table, portable_table
    from edgeml_converters.model import inlined, read_model

    source = inlined(read_model(Path(job.model)))
    calibration = samples.load(Path(job.calibration))
    if not job.file.endswith(".onnx"):
        made, _ = _apply(job.model, job.passes, job.calibration, job.seed, job.threads)
        return portable_table(source, made, calibration, job.threads)
    return layer_table(
        source,
        Path(job.model),
        Path(job.file),
        job.runtime,
        job.options,
        job.inputs,
        calibration,
        job.threads,
    )


def check(job: CheckJob) -> Checked:
    """Run a variant on samples, from its final bytes, and keep its outputs."""
    # This also loads the library, whose memory is not the model's.
    version = get_runtime(job.variant.runtime).check().version
    base = peak_resident()
    opened = time.perf_counter()
    with closing(
        open_variant(Path(job.folder), job.variant, job.inputs, job.outputs)
    ) as program, closing(program.session()) as session:  # fmt: skip
        feeds = samples.stream(Path(job.samples))
        feed = next(feeds)
        runs = [session.run(feed)]
        started = time.perf_counter()
        first = started - opened
        runs += [session.run(other) for other in itertools.islice(feeds, max(job.few - 1, 0))]
        left = samples.count_of(Path(job.samples)) - len(runs)
        each = (time.perf_counter() - started) / max(len(runs) - 1, 1)
        whole = not job.few or left <= 0 or (len(runs) > 1 and left * each < _NO_TIME_S)
        if whole:
            runs += [session.run(other) for other in feeds]
        seconds = (time.perf_counter() - started) / max(len(runs) - 1, 1)
        peak = peak_resident()
        repeatable = _near(runs[0], session.run(feed))
        placement = program.placement
    batch = samples.batch_of(feed)
    if job.few:
        samples.save(Path(job.glimpse), samples.join(runs[: job.few], batch))
    if whole:
        samples.save(Path(job.results), runs[0] if job.first else samples.join(runs, batch))
    again = _loads(first) if job.reload and not job.first else 0
    load_ms = round(1e3 * min([first, *(_load(job, feed) for _ in range(again))]), 3)
    return Checked(placement, version, peak - base, seconds, repeatable, load_ms, whole)


def _loads(first: float) -> int:
    """Return how often to load again: what takes long was disturbed little."""
    return 4 if first < 0.1 else 0


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


def stay(job: OpenJob, channel: Channel) -> None:
    """Open a variant, and make a visit whenever one is asked for.

    While nobody asks, the process waits for the next question: it takes no processor time, and
    its threads sleep.
    """
    feed = _repeated(next(samples.stream(Path(job.samples))), job.inputs, job.batch)
    counter = EnergyCounter.find()
    joules = counter.joules if counter else None
    with closing(
        open_variant(Path(job.folder), job.variant, job.inputs, job.outputs)
    ) as program, closing(program.session()) as session:  # fmt: skip
        calls = settle(lambda: session.run(feed), job.min_block_s)
        gc.collect()
        gc.disable()
        channel.send(Reply(msgspec.msgpack.encode(Opened(calls))))
        while channel.receive(Go) is not None:
            block = visit(lambda: session.run(feed), calls, joules)
            channel.send(Reply(msgspec.msgpack.encode(block)))


def _repeated(
    feed: Mapping[str, Array], inputs: tuple[TensorSpec, ...], batch: int
) -> dict[str, Array]:
    """Return a feed of ``batch`` samples, as far as the inputs take a batch."""
    return {
        spec.name: np.repeat(feed[spec.name], batch, axis=0) if spec.batched else feed[spec.name]
        for spec in inputs
    }


AnyJob = BuildJob | LookJob | LayersJob | CheckJob | OpenJob


def work(job: AnyJob, channel: Channel) -> msgspec.Struct | tuple[msgspec.Struct, ...] | None:
    """Do a job.

    Args:
        job: What to do.
        channel: To whoever asked, for a job that answers questions.
    """
    if isinstance(job, BuildJob):
        return build(job)
    if isinstance(job, LookJob):
        return look(job)
    if isinstance(job, LayersJob):
        return layers(job)
    if isinstance(job, CheckJob):
        return check(job)
    stay(job, channel)
    return None
