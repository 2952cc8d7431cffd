"""``edgeml.convert``: a model and profiles in, a bundle out."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeml import __version__
from edgeml.bundle.check import check_manifest
from edgeml.errors import ModelError, UsageError, nearest
from edgeml.hardware import DeviceFacts, HardwareProfile, load_profile
from edgeml.manifest import Lineage, Manifest
from edgeml.metrics import Metric, get_metric
from edgeml.report import write
from edgeml.runtime.facts import device_facts
from edgeml.tensors import Array
from edgeml_converters import samples
from edgeml_converters.candidates import Bench
from edgeml_converters.choose import OBJECTIVES
from edgeml_converters.data import EvaluationData
from edgeml_converters.jobs import Limits
from edgeml_converters.judge import Judge
from edgeml_converters.model import save_model
from edgeml_converters.packing import Contents, make_bundle
from edgeml_converters.results import ConvertResult
from edgeml_converters.rules import check_profile
from edgeml_converters.search import EFFORTS, Effort, Found, search
from edgeml_converters.source import Source

logger = logging.getLogger(__name__)

_SUFFIX = ".edgeml"
#: A child process may take this share of the machine's memory.
_MEMORY_SHARE = 0.75


def convert(
    model: str | Path,
    profile: str | Sequence[str],
    *,
    data: str | Path | None = None,
    metric: str | None = None,
    max_drop: float = 0.01,
    objective: str = "latency",
    shape: Mapping[str, tuple[int, ...]] | None = None,
    effort: str = "normal",
    threads: int | None = None,
    jobs: int = 2,
    seed: int = 0,
    name: str | None = None,
    version: str = "1.0.0",
    out: str | Path | None = None,
    report: str | Path | None = None,
    progress: Callable[[str], None] = logger.info,
) -> ConvertResult:
    """Make a model fast and small for one or more kinds of hardware, and prove it.

    Args:
        model: An ONNX file; or ``module:function`` that returns a torch module with example
            inputs, which is exported first.
        profile: Names of hardware profiles, or paths of your own; the first is preferred.
        data: Evaluation data: an ``.npz`` file or ``module:function``. Without it nothing that
            changes values is tried.
        metric: What counts as good; ``top1`` when the labels are class numbers, else ``agreement``
            with the source.
        max_drop: Most that may be lost: absolute for scores, relative for errors.
        objective: ``latency``, ``size`` or ``memory``.
        shape: Input -> shape to fix it to; -1 leaves an axis variable.
        effort: ``quick``, ``normal`` or ``thorough``: test samples and rounds of measurement.
        threads: Threads of every run; the profile's first number when None.
        jobs: Candidates built and checked at the same time; measuring is always alone.
        seed: Of everything random.
        name: Of the model; from the file's name when None.
        version: SemVer of the bundle.
        out: Where the bundle goes; ``./NAME-VERSION.edgeml`` when None.
        report: Folder that gets the report too; None for the bundle only.
        progress: Takes lines that say what is being done.

    Returns:
        What was found, for each profile, and where the bundle is.

    Raises:
        UsageError: An option has a value that it cannot have.
        ProfileError: A profile is unknown or wrong.
        MissingPackageError: A profile's target is not built yet, or a package is missing.
        ModelError: The model cannot be used.
        DataError: The data cannot be used.
        GateError: Nothing passes for a profile. Nothing is written then.
    """
    profiles = _profiles([profile] if isinstance(profile, str) else list(profile))
    _check_options(objective, effort, max_drop, threads, jobs)
    with _workplace() as folder:
        source = Source.open(model, shape)
        _check_types(source)
        place = _check_bundle(source, name, version, out)
        if report is not None:
            _check_place(Path(report) / "report.html", "--report")
        given = EvaluationData.open(data, source.inputs, seed)
        plan = _plan(given, source, metric, EFFORTS[effort], seed)
        facts = device_facts()
        notes = _notes(given, source)
        shared = _write_shared(folder, source, given, plan)
        found: list[Found] = []
        benches: list[Bench] = []
        for one in profiles:
            bench = _bench(shared, source, one, threads, seed, jobs, facts)
            progress(f"{one.name}: threads {bench.threads}, {plan.runs} samples")
            judge = Judge(plan.metric, plan.labels, max_drop)
            args = (facts, EFFORTS[effort], objective, progress, notes)
            found.append(search(one, source, bench, judge, *args))
            benches.append(bench)
        contents = Contents(
            name=place.name,
            version=version,
            lineage=_lineage(source, given, seed, facts),
            samples=plan.samples,
            labels=plan.labels,
            classes=given.classes,
            given=given.given,
            score=found[0].trials[0].score,
            objective=objective,
        )
        bundle, results, told = make_bundle(found, benches, contents, place.out)
        if report is not None:
            write(told, Path(report))
    return ConvertResult(str(place.out), results, bundle.digest, place.name, version)


@dataclass(frozen=True)
class _Place:
    """Name of the model, and where the bundle goes."""

    name: str
    out: Path


@dataclass(frozen=True)
class _Plan:
    """The samples that all candidates run, and what they are judged by."""

    samples: samples.Stacked
    labels: Array | None
    metric: Metric | None
    runs: int


@dataclass(frozen=True)
class _Shared:
    """Files that all searches read."""

    work: Path
    model: Path
    samples: Path
    calibration: Path


def _profiles(names: Sequence[str]) -> list[HardwareProfile]:
    """Load the profiles.

    Raises:
        UsageError: None, or one twice.
        ProfileError: One is unknown or wrong.
        MissingPackageError: The target of one is not built yet.
    """
    if not names:
        raise UsageError("no profile was given", "see 'edgeml profiles list'")
    loaded = [load_profile(name) for name in names]
    known = [profile.name for profile in loaded]
    for profile in loaded:
        if known.count(profile.name) > 1:
            raise UsageError(f"profile '{profile.name}' was given twice", "give each once")
        check_profile(profile)
    return loaded


def _check_options(
    objective: str, effort: str, max_drop: float, threads: int | None, jobs: int
) -> None:
    for what, value, known in (("objective", objective, OBJECTIVES), ("effort", effort, EFFORTS)):
        if value not in known:
            raise UsageError(f"unknown {what} '{value}'", nearest(value, known))
    if not 0.0 <= max_drop < float("inf"):
        raise UsageError(f"max_drop is {max_drop}, expected a number that is not negative")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}, expected at least 1")
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}, expected at least 1")


def _check_types(source: Source) -> None:
    """Raise when a tensor holds no numbers: nothing could be compared."""
    for kind, specs in (("input", source.inputs), ("output", source.outputs)):
        for spec in specs:
            if spec.dtype == "object":
                raise ModelError(
                    f"{kind} '{spec.name}' of '{source.path}' holds strings, expected numbers",
                    "cut the model behind its text processing, and convert the part with numbers",
                )


def _check_bundle(source: Source, name: str | None, version: str, out: str | Path | None) -> _Place:
    """Return name and place of the bundle, checked before any work is done.

    Raises:
        BundleError: Name or version are not allowed.
        UsageError: The place cannot be used.
    """
    chosen = name if name is not None else _name(source.path)
    lineage = Lineage(source.path.name, source.digest, "", 0, {}, {})
    check_manifest(Manifest(chosen, version, source.inputs, source.outputs, (), lineage))
    path = Path(out) if out is not None else Path(f"{chosen}-{version}{_SUFFIX}")
    if path.is_dir() and path.suffix == _SUFFIX:
        raise UsageError(f"'{path}' is a folder, expected a file", "give another name by -o")
    if path.exists() and path.suffix != _SUFFIX:
        raise UsageError(
            f"'{path}' exists already", "give a new folder, or a file that ends in .edgeml, by -o"
        )
    _check_place(path, "-o")
    return _Place(chosen, path)


def _check_place(path: Path, option: str) -> None:
    """Raise now, and not after minutes of work, when nothing can be written at a path."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{str(path)!a} is not UTF-8", f"give another name by {option}") from error
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write '{path}': {folder}: {error.strerror}", f"give another place by {option}"
        ) from error


@contextmanager
def _workplace() -> Iterator[Path]:
    """Yield a folder for the files of one run, removed at the end.

    Raises:
        UsageError: The system refused something, a full disk as a rule.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="edgeml-convert-") as name:
            yield Path(name)
    except BrokenPipeError:
        raise  # nobody reads what is told; that is no fault of the folder
    except OSError as error:
        raise UsageError(
            f"the work in {tempfile.gettempdir()} failed: {error}",
            "free space there, or name another folder by TMPDIR",
        ) from error


def _notes(given: EvaluationData, source: Source) -> tuple[str, ...]:
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


def _name(path: Path) -> str:
    """Return a model name from a file name."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("._-")
    return plain[:100] or "model"


def _plan(
    given: EvaluationData,
    source: Source,
    metric: str | None,
    effort: Effort,
    seed: int,
) -> _Plan:
    """Return the samples and the metric.

    Raises:
        UsageError: The metric is unknown, or there is nothing to judge by.
        DataError: There is no whole run in the data.
    """
    if metric is not None and not given.given:
        raise UsageError(f"--metric {metric} needs evaluation data", "give --data")
    stacked = samples.stack(given.test, source.inputs)
    runs = samples.count(stacked)
    labels = given.labels
    if 0 < effort.samples < runs:
        chosen = np.sort(np.random.default_rng(seed).permutation(runs)[: effort.samples])
        stacked = {key: array[chosen] for key, array in stacked.items()}
        if labels is not None:
            labels = labels.reshape(runs, -1, *labels.shape[1:])[chosen]
            labels = labels.reshape(-1, *labels.shape[2:])
        runs = len(chosen)
    if not given.given:
        return _Plan(stacked, None, None, runs)
    classes = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"
    return _Plan(stacked, labels, get_metric(metric or ("top1" if classes else "agreement")), runs)


def _write_shared(folder: Path, source: Source, given: EvaluationData, plan: _Plan) -> _Shared:
    shared = _Shared(
        folder, folder / "source.onnx", folder / "samples.npz", folder / "calibration.npz"
    )
    save_model(source.model, shared.model)
    samples.save(shared.samples, plan.samples)
    samples.save(shared.calibration, given.calibration if given.given else {})
    return shared


def _bench(
    shared: _Shared,
    source: Source,
    profile: HardwareProfile,
    threads: int | None,
    seed: int,
    jobs: int,
    facts: DeviceFacts,
) -> Bench:
    work = shared.work / profile.name
    work.mkdir()
    return Bench(
        model=shared.model,
        inputs=source.inputs,
        outputs=source.outputs,
        samples=shared.samples,
        calibration=shared.calibration,
        threads=threads or profile.threads[0],
        other_threads=_other_threads(profile, threads, facts.cores),
        seed=seed,
        jobs=jobs,
        limits=Limits(memory_bytes=int(facts.memory_bytes * _MEMORY_SHARE)),
        work=work,
    )


def _other_threads(profile: HardwareProfile, threads: int | None, cores: int) -> tuple[int, ...]:
    """Return the further numbers of threads to measure with: none when a number was given."""
    if threads is not None:
        return ()
    wanted = dict.fromkeys(profile.threads[1:])
    return tuple(n for n in wanted if n <= cores and n != profile.threads[0])


def _lineage(source: Source, given: EvaluationData, seed: int, facts: DeviceFacts) -> Lineage:
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
