"""What earlier runs left: built files by their content, and the measurements of each attempt.

**Built files and checks** are kept by a key over all that they depend on: the source, the passes
with their options, the calibration data, the seed, the versions of the tools, this project's own
code, the machine. The same key means the same bytes, so they are always taken.

**Measurements** are claims about a moment. They belong to an *attempt* at a run, and are taken
again only when that attempt ended (the same run once more), or when the user resumes it.

Two processes may use one cache: entries are written beside it and renamed, readers link the files
to a place of their own first, and what vanishes meanwhile is a miss. The oldest entries go when
the whole is larger than its bound.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

import edgeml
from edgeml.digest import sha256_bytes, sha256_file

#: All entries together are kept below this.
LIMIT_BYTES = 2 << 30
#: At most this many runs are remembered.
_MOST_RUNS = 100
#: What a killed process left is removed after this long.
_STALE_S = 3600.0


def default_folder() -> Path:
    """Return the user's cache folder (XDG base directory specification)."""
    home = os.environ.get("XDG_CACHE_HOME") or ""
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
    return base / "edgeml" / "convert"


def key_of(*parts: Any) -> str:
    """Return the key of an entry: a digest over everything that it depends on."""
    encoded = msgspec.json.encode(parts, order="deterministic")
    return sha256_bytes(encoded).removeprefix("sha256:")


def file_digest(file: Path) -> str:
    """Return the digest of a file, reckoned once as long as it does not change.

    Raises:
        OSError: It cannot be read.
    """
    state = file.stat()
    return _digest_of(file, state.st_ino, state.st_size, state.st_mtime_ns)


@cache
def _digest_of(file: Path, _inode: int, _size: int, _changed: int) -> str:
    return sha256_file(file)


@cache
def code_digest() -> str:
    """Return a digest of this project's own code: other code may build other bytes."""
    lines = []
    for package in (Path(edgeml.__file__).parent, Path(__file__).parent):
        files = sorted(package.rglob("*.py"))
        lines += [f"{file.relative_to(package)} {sha256_file(file)}" for file in files]
    return key_of(lines)


class Cache:
    """Entries by key: some bytes that say the outcome, and files. Without a folder it is empty."""

    def __init__(self, folder: Path | None, limit_bytes: int = LIMIT_BYTES) -> None:
        """Take the folder; None for no cache at all.

        Args:
            folder: Made when something is kept.
            limit_bytes: Bound of all entries together.
        """
        self.folder = folder
        self.limit_bytes = limit_bytes

    def take(self, key: str, into: Path) -> bytes | None:
        """Return the outcome of an entry, its files linked or copied to a folder; None on a miss.

        Args:
            key: From ``key_of``.
            into: An existing folder.
        """
        if self.folder is None:
            return None
        entry = self.folder / "entries" / key
        taken: list[Path] = []
        try:
            outcome = (entry / "outcome").read_bytes()
            for file in (entry / "files").iterdir():
                place = into / file.name
                _link(file, place)
                taken.append(place)
            os.utime(entry)
        except OSError:
            for place in taken:
                place.unlink(missing_ok=True)
            return None  # not there, evicted meanwhile, or not readable: build it
        return outcome

    def keep(self, key: str, outcome: bytes, files: Iterable[Path] = ()) -> None:
        """Keep an entry; that it cannot be kept (a full disk) is no error.

        Args:
            key: From ``key_of``.
            outcome: What ``take`` returns.
            files: They are linked or copied under their own names.
        """
        if self.folder is None:
            return
        entries = self.folder / "entries"
        new = entries / f".new-{secrets.token_hex(8)}"
        try:
            (new / "files").mkdir(parents=True)
            for file in files:
                _link(file, new / "files" / file.name)
            (new / "outcome").write_bytes(outcome)
            new.rename(entries / key)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)  # somebody kept it first, or there is no room
            return
        self._evict()

    def _evict(self) -> None:
        """Remove the entries that were not used for longest until the rest is below the bound."""
        assert self.folder is not None
        known: list[tuple[float, int, Path]] = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder / "entries"):
                with contextlib.suppress(OSError):
                    self._weigh(Path(entry.path), entry.stat().st_mtime, known)
        total = sum(size for _, size, _ in known)
        for _, size, path in sorted(known):
            if total <= self.limit_bytes:
                return
            gone = path.with_name(f".gone-{secrets.token_hex(8)}")
            with contextlib.suppress(OSError):
                path.rename(gone)  # at once: nobody sees half an entry
                shutil.rmtree(gone, ignore_errors=True)
            total -= size

    def _weigh(self, path: Path, used: float, known: list[tuple[float, int, Path]]) -> None:
        """Add an entry to the list; remove what a killed process left."""
        if path.name.startswith("."):
            if time.time() - used > _STALE_S:
                shutil.rmtree(path, ignore_errors=True)
            return
        files = [path / "outcome", *(path / "files").iterdir()]
        known.append((used, sum(file.stat().st_size for file in files), path))


def _link(source: Path, place: Path) -> None:
    """Give a file a second name, or copy it where that cannot be."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)


class _State(msgspec.Struct, frozen=True):
    """What is known of the last attempt at a run."""

    attempt: str
    finished: bool
    at: float


class Attempt:
    """The measurements of one attempt at a run."""

    def __init__(self, cache: Cache, run: str, fresh: bool = False, resume: bool = False) -> None:
        """Find the attempt to go on with, or begin one.

        Args:
            cache: Where attempts are kept.
            run: Key over all that a run depends on, the machine too.
            fresh: Begin a new one in any case.
            resume: Go on also with one that did not end.
        """
        self._folder = None if cache.folder is None else cache.folder / "runs" / run
        last = self._read()
        self.found = last is not None and not fresh and (last.finished or resume)
        self.interrupted = last is not None and not last.finished
        self.age_s = max(0.0, time.time() - last.at) if last else 0.0
        self.taken = 0
        self._id = last.attempt if last and self.found else secrets.token_hex(8)
        if not self.found:
            self._write(False)
            self._forget_old()

    def take(self, key: str) -> bytes | None:
        """Return a recorded measurement; None when there is none."""
        if self._folder is None:
            return None
        try:
            data = (self._folder / self._id / key).read_bytes()
        except OSError:
            return None
        self.taken += 1
        return data

    def keep(self, key: str, data: bytes) -> None:
        """Record a measurement; that it cannot be (a full disk) is no error."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / self._id).mkdir(parents=True, exist_ok=True)
                _replace(self._folder / self._id / key, data)

    def finish(self) -> None:
        """Say that the run has ended: the same run once more takes its measurements."""
        self._write(True)

    def _read(self) -> _State | None:
        if self._folder is None:
            return None
        try:
            return msgspec.json.decode((self._folder / "state").read_bytes(), type=_State)
        except (OSError, msgspec.DecodeError):
            return None

    def _write(self, finished: bool) -> None:
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
                state = _State(self._id, finished, time.time())
                _replace(self._folder / "state", msgspec.json.encode(state))

    def _forget_old(self) -> None:
        """Remove other attempts at this run, and the oldest runs."""
        if self._folder is None:
            return
        with contextlib.suppress(OSError):
            for old in self._folder.iterdir():
                if old.is_dir() and time.time() - old.stat().st_mtime > _STALE_S:
                    shutil.rmtree(old, ignore_errors=True)
            runs = sorted(self._folder.parent.iterdir(), key=lambda run: run.stat().st_mtime)
            for run in runs[:-_MOST_RUNS]:
                shutil.rmtree(run, ignore_errors=True)


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    new.write_bytes(data)
    new.replace(path)
