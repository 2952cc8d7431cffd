"""``edgeml.convert``: a model and profiles in, a bundle out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgeml.bundle import Bundle
from edgeml.hardware import DeviceFacts, HardwareProfile
from edgeml.manifest import Lineage
from edgeml.report import Report, write
from edgeml.runtime.facts import device_facts, host_line
from edgeml.tracking import open_tracker
from edgeml_converters.before import (
    Place,
    check_bundle,
    check_options,
    check_place,
    check_run,
    check_threads,
    check_types,
    profiles_of,
    workplace,
)
from edgeml_converters.cache import Attempt, Cache, code_digest, default_folder, key_of
from edgeml_converters.candidates import Bench
from edgeml_converters.data import EvaluationData
from edgeml_converters.jobs import Limits, Pool
from edgeml_converters.judge import Judge
from edgeml_converters.on_device import benches_on
from edgeml_converters.packing import Contents, make_bundle
from edgeml_converters.processing.apply import open_data, processed
from edgeml_converters.results import ConvertResult
from edgeml_converters.search import EFFORTS, Found, Terms, search
from edgeml_converters.search.progress import Progress, duration
from edgeml_converters.search.run import Elsewhere
from edgeml_converters.shared import (
    Judged,
    Shared,
    bench_for,
    judged_by,
    lineage_of,
    notes_of,
    write_shared,
)
from edgeml_converters.source import Source
from edgeml_converters.track import record

logger = logging.getLogger(__name__)

#: A child process may take this share of the machine's memory.
_MEMORY_SHARE = 0.75
#: What ``progress`` is told when ``resume`` finds no interrupted run.
NOTHING_TO_RESUME = "nothing to resume: no run with these inputs was interrupted on this machine"


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
    budget_s: float | None = None,
    threads: int | None = None,
    jobs: int = 2,
    seed: int = 0,
    name: str | None = None,
    version: str = "1.0.0",
    out: str | Path | None = None,
    report: str | Path | None = None,
    track: str | None = None,
    resume: bool = False,
    fresh: bool = False,
    cache: bool = True,
    allow_partial: bool = False,
    preprocess: Sequence[str] = (),
    postprocess: Sequence[str] = (),
    on_device: str | None = None,
    server: str = "",
    token: str = "",
    progress: Callable[[str], None] = logger.info,
    status: Callable[[str], None] | None = None,
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
        objective: ``latency``, ``size``, ``memory`` or ``energy``.
        shape: Input -> shape to fix it to; -1 leaves an axis variable.
        effort: ``quick``, ``normal`` or ``thorough``: recipes, test samples and rounds of
            measurement.
        budget_s: Seconds that the search may take; what there was no time for is listed. None for
            as long as it takes.
        threads: Threads of every run; the profile's first number when None.
        jobs: Candidates built and checked at the same time; measuring is always alone.
        seed: Of everything random.
        name: Of the model; from the file's name when None.
        version: SemVer of the bundle.
        out: Where the bundle goes; ``./NAME-VERSION.edgeml`` when None.
        report: Folder that gets the report too; None for the bundle only.
        track: Where a record of the conversion is kept: a folder, the address of an MLflow server,
            or ``mlflow`` for the one that MLFLOW_TRACKING_URI names; None for nowhere.
        resume: Take the measurements of an interrupted run with the same inputs on this machine.
        fresh: Measure anew, also what was measured before; built files are still taken again.
        cache: Whether files and measurements are kept, and taken, from one run to the next.
        allow_partial: When interrupted, end with the best so far.
        preprocess: What to build in front of an input, each a TOML file or the short form, for
            example ``imagenet color=bgr``. Evaluation data are then as a device gives them.
        postprocess: What to build behind an output, for example ``softmax top=5``.
        on_device: Selector of a fleet's devices: the candidates are measured there, and not here.
        server: Address of the fleet; empty for one on this machine.
        token: Of the fleet; empty for what a server on this machine wrote down.
        progress: Takes lines that say what was done.
        status: Takes a line that says what is being done, and which the next one replaces.

    Returns:
        What was found, for each profile, and where the bundle is.

    Raises:
        UsageError: An option has a value that it cannot have.
        ProfileError: A profile is unknown or wrong.
        MissingPackageError: A profile's target is not built yet, or a package is missing.
        ModelError: The model cannot be used.
        DataError: The data cannot be used.
        GateError: Nothing passes for a profile. Nothing is written then.
        UnreachableError: The place to track to, the fleet or its devices do not answer.
    """
    profiles = profiles_of([profile] if isinstance(profile, str) else list(profile))
    _check(objective, effort, max_drop, threads, jobs, budget_s, resume, fresh, cache)
    devices = benches_on(on_device, server, token, profiles, objective) if on_device else {}
    asked = {"objective": objective, "effort": effort, "metric": metric, "max_drop": max_drop,
             "threads": threads, "seed": seed, "shape": shape or None, "data": data}  # fmt: skip
    keep = _keeper(track, asked, progress)
    with workplace() as folder:
        facts, source = _beside(
            lambda: processed(Source.open(model, shape), preprocess, postprocess)
        )
        check_threads(threads, () if devices else profiles, facts)
        place = _place(source, name, version, out, report)
        given = open_data(data, source, seed, preprocess)
        judged = judged_by(given, source, metric, EFFORTS[effort], seed)
        lineage = lineage_of(source, given, seed, facts)
        shared = _written(folder, source, given, judged)
        terms = Terms(EFFORTS[effort], objective, allow_partial, notes_of(given, source))
        context = key_of(code_digest(), lineage.tools, host_line(facts))
        how = _How(metric, max_drop, threads, seed, jobs, resume, fresh, budget_s)
        with Pool(_limits(facts), folder) as pool:
            kept = Cache(default_folder() if cache else None)
            every = _Every(source, shared, judged, facts, terms, pool, kept, context)
            found = every.search(profiles, how, devices, progress, status)
            contents = _contents(place, version, lineage, judged, given, every, found[0])
            bundle, results, told = make_bundle(found, every.benches, contents, place.out)
            every.finish()
        _write(told, report)
    result = ConvertResult(str(place.out), results, bundle.digest, place.name, version)
    return keep(result, bundle, told)


def _check(
    objective: str,
    effort: str,
    max_drop: float,
    threads: int | None,
    jobs: int,
    budget_s: float | None,
    resume: bool,
    fresh: bool,
    cache: bool,
) -> None:
    """Check the options, before any work is done."""
    check_options(objective, effort, max_drop, threads, jobs)
    check_run(objective, budget_s, resume, fresh, cache)


def _write(told: Report, folder: str | Path | None) -> None:
    """Write the report beside the bundle, where that is asked for."""
    if folder is not None:
        write(told, Path(folder))


def _place(
    source: Source,
    name: str | None,
    version: str,
    out: str | Path | None,
    report: str | Path | None,
) -> Place:
    """Check a source, and where its bundle and its report go."""
    check_types(source)
    place = check_bundle(source, name, version, out)
    if report is not None:
        check_place(Path(report) / "report.html", "--report")
    return place


def _beside(work: Callable[[], Source]) -> tuple[DeviceFacts, Source]:
    """Do some work while this machine is looked at, which takes processes of its own."""
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(device_facts)
        done = work()
        return looking.result(), done


def _written(folder: Path, source: Source, given: EvaluationData, judged: Judged) -> Shared:
    """Write the files that all searches read, and let go of the arrays: the process stays small."""
    shared = write_shared(folder, source, given, judged)
    for arrays in (given.calibration, given.test):
        arrays.clear()
    return shared


def _contents(
    place: Place,
    version: str,
    lineage: Lineage,
    judged: Judged,
    given: EvaluationData,
    every: _Every,
    found: Found,
) -> Contents:
    """Return what goes into the bundle besides the searches' outcome."""
    return Contents(
        name=place.name,
        version=version,
        lineage=lineage,
        samples=judged.samples,
        labels=judged.labels,
        classes=every.source.classes or given.classes,
        steps=every.source.steps,
        given=given.given,
        score=found.trials[0].score,
        objective=every.terms.objective,
    )


class _How(msgspec.Struct, frozen=True):
    """Options of the searches, as they were given."""

    metric: str | None
    max_drop: float
    threads: int | None
    seed: int
    jobs: int
    resume: bool
    fresh: bool
    budget_s: float | None


@dataclass
class _Every:
    """The searches for all profiles of a run."""

    source: Source
    shared: Shared
    judged: Judged
    facts: DeviceFacts
    terms: Terms
    pool: Pool
    cache: Cache
    context: str
    benches: list[Bench] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)

    def search(
        self,
        profiles: Sequence[HardwareProfile],
        how: _How,
        devices: Mapping[str, Elsewhere],
        say: Callable[[str], None],
        show: Callable[[str], None] | None,
    ) -> list[Found]:
        """Search for one profile after the other; an interrupted search is the last."""
        found: list[Found] = []
        started = time.monotonic()
        for number, one in enumerate(profiles):
            given = (how.metric, how.max_drop, self.terms, how.threads, how.seed)
            run = key_of(self.context, self.shared.digests, one, given)
            attempt = Attempt(self.cache, run, how.fresh, how.resume)
            _tell(attempt, how.resume, say)
            bench = bench_for(
                self.shared, self.source, one, how.threads, how.seed, how.jobs,
                self.facts.cores, self.pool, self.cache, attempt, self.context,
            )  # fmt: skip
            say(f"{one.name}: threads {bench.threads}, {self.judged.runs} samples")
            judge = Judge(self.judged.metric, self.judged.labels, how.max_drop)
            news = Progress(say, show, _share(how.budget_s, started, len(profiles) - number))
            args = (self.facts, self.terms, news, devices.get(one.name))
            found.append(search(one, self.source, bench, judge, *args))
            self.benches.append(bench)
            if found[-1].partial:
                break
            self.attempts.append(attempt)
        return found

    def finish(self) -> None:
        """Say of all whole searches that they have ended: they can be taken again."""
        for attempt in self.attempts:
            attempt.finish()


def _keeper(
    track: str | None, asked: Mapping[str, object], progress: Callable[[str], None]
) -> Callable[[ConvertResult, Bundle, Report], ConvertResult]:
    """Return what keeps a record at the end, and hands it on; its place is checked now."""
    tracker = open_tracker(track) if track is not None else None

    def keep(result: ConvertResult, bundle: Bundle, told: Report) -> ConvertResult:
        if tracker is not None:
            progress(f"kept at {tracker.keep(record(result, bundle, told, asked))}")
        return result

    return keep


def _limits(facts: DeviceFacts) -> Limits:
    return Limits(memory_bytes=int(facts.memory_bytes * _MEMORY_SHARE))


def _share(budget_s: float | None, started: float, left: int) -> float | None:
    """Return the part of the budget that the next of ``left`` searches may take."""
    if budget_s is None:
        return None
    return max(budget_s - (time.monotonic() - started), 0.001) / left


def _tell(attempt: Attempt, resume: bool, progress: Callable[[str], None]) -> None:
    """Say which measurements are taken again, if any."""
    age = duration(attempt.age_s)
    if attempt.found:
        progress(
            f"measurements of {age} ago are taken again, where there are any (same inputs, same "
            "machine); --fresh measures anew"
        )
    elif attempt.interrupted and not resume:
        progress(f"a run with these inputs was interrupted {age} ago: --resume goes on from there")
    elif resume:
        progress(NOTHING_TO_RESUME)
