"""What is checked before any work is done: options, profiles, types, and where things go."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgeml.bundle.check import check_manifest
from edgeml.errors import ModelError, UsageError, nearest
from edgeml.hardware import DeviceFacts, HardwareProfile, fits, load_profile
from edgeml.manifest import Lineage, Manifest
from edgeml.runtime.energy import EnergyCounter
from edgeml_converters.choose import OBJECTIVES
from edgeml_converters.rules import check_profile
from edgeml_converters.search import EFFORTS
from edgeml_converters.source import Source

_SUFFIX = ".edgeml"
_WORK = "edgeml-convert-"


@dataclass(frozen=True)
class Place:
    """Name of the model, and where the bundle goes."""

    name: str
    out: Path


def profiles_of(names: Sequence[str]) -> list[HardwareProfile]:
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


def check_options(
    objective: str, effort: str, max_drop: float, threads: int | None, jobs: int
) -> None:
    """Check what has a fixed set of values.

    Raises:
        UsageError: An option has a value that it cannot have.
    """
    for what, value, known in (("objective", objective, OBJECTIVES), ("effort", effort, EFFORTS)):
        if value not in known:
            raise UsageError(f"unknown {what} '{value}'", nearest(value, known))
    if not 0.0 <= max_drop < float("inf"):
        raise UsageError(
            f"max_drop is {max_drop}, expected a number that is not negative", "for example 0.01"
        )
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}, expected at least 1")
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}, expected at least 1")


def check_threads(
    threads: int | None, profiles: Sequence[HardwareProfile], facts: DeviceFacts
) -> None:
    """Check a number of threads against this machine, where a profile is measured on it.

    Raises:
        UsageError: There are fewer processors: the source would crawl, and all seem to gain.
    """
    here = [profile.name for profile in profiles if not fits(profile, facts)]
    if threads is not None and here and threads > facts.cores:
        raise UsageError(
            f"--threads is {threads}, and this machine, which is measured for {here[0]}, has "
            f"{facts.cores} processors",
            f"give {facts.cores} at most, or measure on a device with more: --on-device",
        )


def check_run(
    objective: str, budget_s: float | None, resume: bool, fresh: bool, cache: bool
) -> None:
    """Check what depends on one another, and on this machine.

    Raises:
        UsageError: Options that contradict, or a counter that is not here.
    """
    if budget_s is not None and not 0.0 < budget_s < float("inf"):
        raise UsageError(f"the budget is {budget_s} s, expected more than 0", "for example 10m")
    if resume and (fresh or not cache):
        other = "fresh" if fresh else "no-cache"
        raise UsageError(
            f"--resume takes recorded measurements, --{other} does not", "give one of them"
        )
    if objective == "energy" and EnergyCounter.find() is None:
        raise UsageError(
            "there is no energy counter here that may be read (/sys/class/powercap)",
            "use another objective, or run where the kernel counts energy and you may read it",
        )


def check_types(source: Source) -> None:
    """Raise when a tensor holds no numbers: nothing could be compared."""
    for kind, specs in (("input", source.inputs), ("output", source.outputs)):
        for spec in specs:
            if spec.dtype == "object":
                raise ModelError(
                    f"{kind} '{spec.name}' of '{source.path}' holds strings, expected numbers",
                    "cut the model behind its text processing, and convert the part with numbers",
                )


def check_bundle(source: Source, name: str | None, version: str, out: str | Path | None) -> Place:
    """Return name and place of the bundle, checked before any work is done.

    Raises:
        BundleError: Name or version are not allowed.
        UsageError: The place cannot be used.
    """
    chosen = name if name is not None else _name_of(source.path)
    lineage = Lineage(source.path.name, source.digest, "", 0, {}, {})
    check_manifest(Manifest(chosen, version, source.inputs, source.outputs, (), lineage))
    path = Path(out) if out is not None else Path(f"{chosen}-{version}{_SUFFIX}")
    if path.is_dir() and path.suffix == _SUFFIX:
        raise UsageError(f"'{path}' is a folder, expected a file", "give another name by -o")
    if path.exists() and path.suffix != _SUFFIX:
        raise UsageError(
            f"'{path}' exists already", "give a new folder, or a file that ends in .edgeml, by -o"
        )
    check_place(path, "-o")
    return Place(chosen, path)


def check_place(path: Path, option: str) -> None:
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
def workplace() -> Iterator[Path]:
    """Yield a folder for the files of one run, removed at the end.

    What runs left that were killed is removed too: a lock tells who still lives.

    Raises:
        UsageError: The system refused something, a full disk as a rule.
    """
    try:
        _remove_left()
        with tempfile.TemporaryDirectory(prefix=_WORK) as name:
            lock = os.open(Path(name) / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield Path(name)
            finally:
                os.close(lock)
    except BrokenPipeError:
        raise  # nobody reads what is told; that is no fault of the folder
    except OSError as error:
        raise UsageError(
            f"the work in {tempfile.gettempdir()} failed: {error}",
            "free space there, or name another folder by TMPDIR",
        ) from error


def _remove_left() -> None:
    """Remove the folders of runs that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_WORK}*"):
        with suppress(OSError):  # somebody else's, or just gone
            lock = os.open(folder / "lock", os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _name_of(path: Path) -> str:
    """Return a model name from a file name."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("._-")
    return plain[:100] or "model"
