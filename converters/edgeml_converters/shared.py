"""What all searches of a run share: the samples, the metric, the files, the lineage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeml import __version__
from edgeml.errors import UsageError
from edgeml.hardware import DeviceFacts, HardwareProfile
from edgeml.manifest import Lineage
from edgeml.metrics import Metric, get_metric
from edgeml.tensors import Array
from edgeml_converters import samples
from edgeml_converters.cache import Attempt, Cache, file_digest, key_of
from edgeml_converters.candidates import Bench
from edgeml_converters.data import EvaluationData
from edgeml_converters.jobs import Pool
from edgeml_converters.model import save_model
from edgeml_converters.search import Effort
from edgeml_converters.search.prepare import source_files
from edgeml_converters.source import Source


@dataclass(frozen=True)
class Judged:
    """The samples that all candidates run, their digest, and what they are judged by."""

    samples: samples.Stacked
    labels: Array | None
    metric: Metric | None
    runs: int
    digest: str


@dataclass(frozen=True)
class Shared:
    """Files that all searches read.

    Attributes:
        work: Folder for all of it.
        model: The source as an ONNX file; the weights of a large one lie beside it.
        samples: Stacked.
        calibration: Arrays; none in it without data.
    """

    work: Path
    model: Path
    samples: samples.Kept
    calibration: Path

    @property
    def digests(self) -> tuple[str, ...]:
        """Of all of it."""
        files = (*source_files(self.model), self.calibration)
        return (*(file_digest(file) for file in files), self.samples.digest)


def notes_of(given: EvaluationData, source: Source) -> tuple[str, ...]:
    """Return what a reader must know of the data."""
    if given.given:
        return given.notes
    guessed = [spec.name for spec in source.inputs if -1 in spec.shape[1:]]
    if not guessed:
        return ()
    return (
        f"no data and no --shape for {', '.join(guessed)}: axes that vary were set to 1, and "
        "the latencies are of inputs that small",
    )


def judged_by(
    given: EvaluationData,
    source: Source,
    metric: str | None,
    effort: Effort,
    seed: int,
) -> Judged:
    """Return the samples and the metric.

    Raises:
        UsageError: The metric is unknown, or there is nothing to judge by.
        DataError: There is no whole run in the data.
    """
    if metric is not None and not given.given:
        raise UsageError(f"--metric {metric} needs evaluation data", "give --data")
    stacked = samples.stack(given.test, source.inputs)
    runs = samples.count(stacked)
    digest = key_of(given.digest, source.inputs, effort.samples, seed)
    labels = given.labels
    if 0 < effort.samples < runs:
        chosen = np.sort(np.random.default_rng(seed).permutation(runs)[: effort.samples])
        stacked = {key: rows.picked(chosen) for key, rows in stacked.items()}
        if labels is not None:
            labels = labels.reshape(runs, -1, *labels.shape[1:])[chosen]
            labels = labels.reshape(-1, *labels.shape[2:])
        runs = len(chosen)
    if not given.given:
        return Judged(stacked, None, None, runs, digest)
    classes = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"
    chosen_metric = get_metric(metric or ("top1" if classes else "agreement"))
    return Judged(stacked, labels, chosen_metric, runs, digest)


def write_shared(folder: Path, source: Source, given: EvaluationData, plan: Judged) -> Shared:
    """Write the files that all searches read into a folder."""
    kept = samples.Kept(folder / "samples.npz", plan.samples, plan.digest)
    shared = Shared(folder, folder / "source.onnx", kept, folder / "calibration.npz")
    save_model(source.model, shared.model)
    samples.save(shared.calibration, given.calibration if given.given else {})
    return shared


def bench_for(
    shared: Shared,
    source: Source,
    profile: HardwareProfile,
    threads: int | None,
    seed: int,
    jobs: int,
    cores: int,
    pool: Pool,
    cache: Cache,
    attempt: Attempt,
    context: str,
) -> Bench:
    """Return what the trials of one profile share.

    Args:
        shared: Files that all searches read.
        source: The model.
        profile: Says the numbers of threads and of samples in a run.
        threads: Instead of the profile's numbers of threads.
        seed: Of everything random.
        jobs: Child processes at the same time.
        cores: Of this machine.
        pool: Runs the child processes.
        cache: Of built files.
        attempt: Records the measurements.
        context: What every key depends on.
    """
    work = shared.work / profile.name
    work.mkdir()
    return Bench(
        model=shared.model,
        inputs=source.inputs,
        outputs=source.outputs,
        samples=shared.samples,
        calibration=shared.calibration,
        threads=threads or profile.threads[0],
        other_threads=_other_threads(profile, threads, cores),
        seed=seed,
        jobs=jobs,
        pool=pool,
        work=work,
        cache=cache,
        attempt=attempt,
        context=context,
        batch=profile.batch[0],
        other_batches=tuple(dict.fromkeys(n for n in profile.batch if n != profile.batch[0])),
    )


def _other_threads(profile: HardwareProfile, threads: int | None, cores: int) -> tuple[int, ...]:
    """Return the further numbers of threads to measure with: none when a number was given."""
    if threads is not None:
        return ()
    wanted = dict.fromkeys(profile.threads[1:])
    return tuple(n for n in wanted if n <= cores and n != profile.threads[0])


def lineage_of(source: Source, given: EvaluationData, seed: int, facts: DeviceFacts) -> Lineage:
    """Return where a bundle comes from, without the steps of its variants."""
    import onnx

    tools = {
        "edgeml-kit": __version__,
        "onnx": onnx.__version__,
        "numpy": np.__version__,
        "python": facts.python,
        **facts.runtimes,
    }
    return Lineage(
        source=source.path.name,
        source_digest=source.digest,
        data_digest=given.digest if given.given else "",
        seed=seed,
        tools=tools,
        steps={},
    )
