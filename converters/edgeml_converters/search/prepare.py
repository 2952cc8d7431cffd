"""From a recipe to a candidate that ran: build, rules of the profile, prescreen, check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from edgeml.digest import sha256_bytes
from edgeml.hardware import HardwareProfile
from edgeml.plugins import BUILTINS
from edgeml_converters.cache import file_digest, key_of
from edgeml_converters.candidates import Bench, Trial
from edgeml_converters.jobs import JobError
from edgeml_converters.judge import mismatch
from edgeml_converters.layers.coverage import Coverage
from edgeml_converters.recipes import Recipe
from edgeml_converters.results import Standing
from edgeml_converters.rules import problem
from edgeml_converters.search.prescreen import loser
from edgeml_converters.search.progress import Progress
from edgeml_converters.worker import BuildJob, Built, Checked, CheckJob, LookJob

T = TypeVar("T")

#: Kind of work of the jobs that need onnx.
BUILD = "build"
NO_TIME = "no time left: the budget was over before its turn"
#: Samples that every candidate is run with before it is measured: they show that it runs, that it
#: answers the same twice, and that its answers have the form of the source's.
FEW = 16
#: Runtimes whose graph is looked at before anything is timed.
_LOOKED_AT = "onnxruntime"


class Preparer:
    """Builds and checks the trials of a stage, some at the same time."""

    def __init__(
        self, bench: Bench, profile: HardwareProfile, progress: Progress, base: Trial | None = None
    ) -> None:
        """Take what the trials share.

        Args:
            bench: What all trials share.
            profile: Its rules reject candidates.
            progress: Takes the news.
            base: The baseline; None while that itself is prepared, and then nothing is screened.
        """
        self._bench = bench
        self._profile = profile
        self._progress = progress
        self._base = base

    def prepare(
        self,
        trials: list[Trial],
        stage: str,
        until: float,
        beside: Callable[[], object] | None = None,
    ) -> None:
        """Take trials as far as they get before they are measured.

        Args:
            trials: Their verdict and reason say what became of them.
            stage: Its name, for the news.
            until: Share of the budget after which no further recipe is begun.
            beside: Further work, which is begun first.
        """
        groups: dict[tuple[object, ...], list[Trial]] = {}
        for trial in trials:
            groups.setdefault(_files_of(trial.recipe), []).append(trial)
        total, done = len(trials), 0

        def group(mine: list[Trial]) -> None:
            nonlocal done
            if self._progress.used() > until:
                for trial in mine:
                    trial.fail(Standing.SKIPPED, NO_TIME)
            else:
                self._progress.step(stage, done / total, mine[0].recipe.name)
                self._group(mine)
            done += len(mine)
            self._progress.step(stage, done / total, f"{done} of {total}")

        self._progress.step(stage, 0.0, f"0 of {total}")
        work: list[Callable[[], object]] = [partial(group, mine) for mine in groups.values()]
        each(lambda one: one(), [beside, *work] if beside else work, self._bench)

    def _group(self, mine: list[Trial]) -> None:
        """Build what some trials share, and check each."""
        recipe = mine[0].recipe
        shared = self._base is not None and not recipe.passes
        if shared and self._base and recipe.target == self._base.recipe.target:
            for trial in mine:
                trial.built, trial.folder = self._base.built, self._base.folder
        else:
            try:
                built, folder = self._build(recipe)
            except JobError as error:
                for trial in mine:
                    trial.fail(Standing.ERROR, f"could not be built: {error}")
                self._progress.say(f"{recipe.name}: could not be built: {error}")
                return
            for trial in mine:
                trial.built, trial.folder = built, folder
            self._progress.say(f"{recipe.name}: built, {mine[0].size_bytes / 1024:,.0f} KiB")
        for trial in mine:
            if self._base is not None:
                self._apply_rules(trial)
                self._screen(trial)
            if trial.alive:
                self._check(trial)

    def _build(self, recipe: Recipe) -> tuple[Built, Path]:
        """Return the files of a recipe, built or from the cache.

        Raises:
            JobError: They cannot be built.
        """
        bench = self._bench
        folder = bench.work / "built" / recipe.name
        folder.mkdir(parents=True)
        key = build_key(recipe, bench)
        if key and (known := bench.cache.take(key, folder)) is not None:
            return msgspec.msgpack.decode(known, type=Built), folder
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
        built = bench.pool.run(job, Built, BUILD)
        if key:
            bench.cache.keep(
                key, msgspec.msgpack.encode(built), [folder / name for name in built.files]
            )
        return built, folder

    def _apply_rules(self, trial: Trial) -> None:
        """Take out what the profile's rules for operators and shapes do not allow."""
        if trial.alive and trial.built is not None:
            reason = problem(self._profile, trial.built.traits, trial.built.inputs)
            if reason:
                trial.fail(Standing.FAILED, reason)

    def _screen(self, trial: Trial) -> None:
        """Take out what cannot win, as its runtime's graph shows."""
        looked_at = trial.runtime == _LOOKED_AT and not trial.absent and trial.folder
        if not (trial.alive and trial.built and looked_at and trial.recipe.precision == "int8"):
            return
        assert trial.folder is not None and self._base is not None
        try:
            trial.coverage = self._look(trial.folder / trial.built.entry, trial)
        except JobError as error:
            # What cannot be looked at is checked and timed: those say what is wrong with it.
            self._progress.say(f"{trial.id}: cannot be looked at: {error}")
            return
        reason = loser(trial.coverage, trial.size_bytes, self._base.size_bytes)
        if reason:
            trial.fail(Standing.SKIPPED, f"dropped before timing: {reason}")
            self._progress.say(f"{trial.id}: {trial.reason}")

    def _look(self, file: Path, trial: Trial) -> Coverage:
        bench, options = self._bench, trial.recipe.options[trial.runtime]
        job = LookJob(str(file), trial.runtime, bench.threads, options)
        key = key_of(
            "look", bench.context, file_digest(file), msgspec.structs.replace(job, file="")
        )
        if (known := bench.cache.take(key, bench.work)) is not None:
            return msgspec.msgpack.decode(known, type=Coverage)
        found = bench.pool.run(job, Coverage, BUILD)
        bench.cache.keep(key, msgspec.msgpack.encode(found))
        return found

    def _check(self, trial: Trial) -> None:
        """Run a trial on the first few samples."""
        checked = check(trial, self._bench, self._progress, few=FEW)
        if checked is None:
            return
        self._progress.say(f"{trial.id}: runs on {checked.placement}")
        if self._base is not None and (reason := mismatch(self._base.glimpsed(), trial.glimpsed())):
            trial.fail(Standing.FAILED, reason)


def check(trial: Trial, bench: Bench, progress: Progress, few: int = 0) -> Checked | None:
    """Run a trial on samples, in a process of its own; None when it does not run.

    Args:
        trial: Gets what is found.
        bench: What all trials share.
        progress: Takes the news.
        few: So many samples are enough, when all would take long; 0 for all.
    """
    results, glimpse = bench.work / f"{trial.id}.npz", bench.work / f"{trial.id}.few.npz"
    job = CheckJob(
        str(trial.folder),
        trial.here(bench.threads),
        bench.inputs,
        bench.outputs,
        str(bench.samples.path),
        str(results),
        few=few,
        reload=trial.checked is None,
        glimpse=str(glimpse) if few else "",
    )
    before = trial.checked
    try:
        trial.checked = bench.check(job)
    except JobError as error:
        trial.fail(Standing.ERROR, f"does not run: {error}")
        progress.say(f"{trial.id}: does not run: {error}")
        return None
    if before is not None:
        trial.checked = msgspec.structs.replace(trial.checked, load_ms=before.load_ms)
    if few:
        trial.glimpse = glimpse
    if trial.checked.whole:
        trial.results = results
    return trial.checked


def _files_of(recipe: Recipe) -> tuple[object, ...]:
    """Return what decides a recipe's files: two with the same share them."""
    return (recipe.target, msgspec.json.encode(recipe.passes))


def build_key(recipe: Recipe, bench: Bench) -> str:
    """Return the key of a recipe's files; empty when it uses code whose version is not known."""
    known = {"passes": BUILTINS["passes"], "targets": BUILTINS["targets"]}
    own = recipe.target in known["targets"] and all(
        call.name in known["passes"] for call in recipe.passes
    )
    if not own:
        return ""
    data = [file_digest(path) for path in (*source_files(bench.model), bench.calibration)]
    contract = sha256_bytes(msgspec.json.encode((bench.inputs, bench.outputs)))
    how = (recipe.passes, recipe.target, bench.seed, bench.threads)
    return key_of("build", bench.context, data, contract, how)


def source_files(model: Path) -> list[Path]:
    """Return the files of the source: a large one has its weights beside it."""
    return sorted(model.parent.glob(f"{model.name}*"))


def each(work: Callable[[T], object], items: Iterable[T], bench: Bench) -> None:
    """Do the work for every item, some at the same time; the first exception comes out."""
    with ThreadPoolExecutor(max_workers=bench.jobs) as pool:
        try:
            for done in [pool.submit(work, item) for item in items]:
                done.result()
        except BaseException:  # Ctrl-C too: what runs is ended, what waits is not begun
            bench.pool.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
