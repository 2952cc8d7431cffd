"""A device's side of TUF: which bundles may run, and whose desired states count.

A refresh works on a copy of the accepted metadata and takes its place in one rename, so a
refused or broken-off refresh changes nothing. Expiry decides only whether *new* metadata is
accepted; what was accepted stays usable without network and without a clock.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from securesystemslib.exceptions import Error as SecureSystemsError
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    RepositoryError,
)
from tuf.api.metadata import Metadata, Targets
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgeml.errors import EdgemlError, NotTrustedError, UnreachableError
from edgeml.trust.desired import DirectorKeys
from edgeml.trust.files import sync_folder

logger = logging.getLogger(__name__)

Fetch = Callable[[str], bytes]
T = TypeVar("T")
_CONFIG: Final = UpdaterConfig(
    max_root_rotations=32,
    max_delegations=4,
    root_max_length=256 << 10,
    timestamp_max_length=16 << 10,
    snapshot_max_length=256 << 10,
    targets_max_length=4 << 20,
)
#: A time before every expiry: the reference of a client that does not judge expiry.
_NEVER: Final = datetime.min.replace(tzinfo=UTC)


class TargetInfo(NamedTuple):
    """What the metadata says of a target: its length in bytes and ``sha256:<hex>``."""

    length: int
    digest: str


class TrustClient:
    """Verifies metadata. Not safe from several threads at once.

    Args:
        folder: Where accepted metadata is kept; made when missing.
        root: The root metadata that this device was enrolled with.
        fetch: Returns a metadata file by name. Raises FileNotFoundError when the server says
            that there is none, UnreachableError when it does not answer.
        now: Unix seconds of the clock; returns None while the clock is not trusted.

    Raises:
        NotTrustedError: The root is not well-formed or not signed by itself.
    """

    def __init__(
        self,
        folder: Path,
        root: bytes,
        fetch: Fetch,
        now: Callable[[], float | None] = time.time,
    ) -> None:
        """Check the root; touch no network."""
        self._folder = folder
        self._root = root
        self._fetch = fetch
        self._now = now
        self._targets: Targets | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        _mapped(
            lambda: Metadata.from_bytes(root).verify_delegate("root", Metadata.from_bytes(root))
        )

    def _sweep(self) -> None:
        """Remove what a refresh that broke off has left."""
        for link in self._folder.glob(".link-*"):
            link.unlink()
        for stage in self._folder.glob("next-*"):
            if stage.resolve() != self._current.resolve():
                shutil.rmtree(stage)

    @property
    def _current(self) -> Path:
        return self._folder / "current"

    def refresh(self) -> None:
        """Fetch what is new, verify it, and accept all of it or nothing.

        Raises:
            NotTrustedError: The metadata is not signed, not whole, older than what was
                accepted, or has expired by a trusted clock.
            UnreachableError: The server does not answer, or lacks a file that it names.
            OSError: The folder cannot be written.
        """
        stage = Path(tempfile.mkdtemp(prefix="next-", dir=self._folder))
        try:
            if self._current.exists():
                shutil.copytree(self._current, stage, symlinks=True, dirs_exist_ok=True)
            now = self._now()
            reference = _NEVER if now is None else datetime.fromtimestamp(now, UTC)
            targets = self._load(stage, self._fetch, reference)
            if not self._current.exists() or _contents(stage) != _contents(self._current):
                self._accept(stage)
            self._targets = targets
        finally:
            self._sweep()

    def target(self, path: str) -> TargetInfo:
        """Return what the accepted metadata says of a target.

        Raises:
            NotTrustedError: It is not listed, or no metadata was ever accepted.
        """
        listed = self._accepted().targets.get(path)
        if listed is None or "sha256" not in listed.hashes:
            raise NotTrustedError(
                f"'{path}' is not listed in the trusted metadata", "refresh, or publish it"
            )
        return TargetInfo(listed.length, "sha256:" + listed.hashes["sha256"])

    def director_keys(self) -> DirectorKeys:
        """Return who may sign desired states.

        Raises:
            NotTrustedError: No metadata was ever accepted, or it names no director.
        """
        delegations = self._accepted().delegations
        role = (delegations.roles or {}).get("director") if delegations else None
        if delegations is None or role is None:
            raise NotTrustedError("the trusted metadata delegates to no 'director'")
        keys = tuple(delegations.keys[keyid] for keyid in role.keyids)
        return DirectorKeys(keys, role.threshold)

    def _accepted(self) -> Targets:
        """Return the targets accepted last; from disk after a start, verified again."""
        if self._targets is None:
            if not self._current.exists():
                raise NotTrustedError("no trusted metadata here yet", "refresh first")
            self._targets = self._load(self._current, self._local, _NEVER)
        return self._targets

    def _local(self, name: str) -> bytes:
        """Serve the accepted timestamp as if it were remote: the same version is no news."""
        if name != "timestamp.json":
            raise FileNotFoundError(name)
        return (self._current / name).read_bytes()

    def _load(self, folder: Path, fetch: Fetch, reference: datetime) -> Targets:
        """Run TUF's client workflow in a folder and return the verified targets."""

        def workflow() -> Targets:
            updater = Updater(
                str(folder), "", fetcher=_Fetcher(fetch), config=_CONFIG, bootstrap=self._root
            )
            # Updater offers no other way to give it a clock.
            updater._trusted_set.reference_time = reference
            updater.refresh()
            return Metadata[Targets].from_bytes((folder / "targets.json").read_bytes()).signed

        return _mapped(workflow)

    def _accept(self, stage: Path) -> None:
        """Let a verified folder take the place of the accepted one, durably."""
        for path in stage.rglob("*.json"):
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(stage / "root_history")
        sync_folder(stage)
        link = self._folder / f".link-{stage.name}"
        link.symlink_to(stage.name)
        link.replace(self._current)
        sync_folder(self._folder)


class _Fetcher(FetcherInterface):
    """Gives TUF what ``fetch`` returns, by file name."""

    def __init__(self, fetch: Fetch) -> None:
        self._get = fetch

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.lstrip("/")
        try:
            return iter([self._get(name)])
        except FileNotFoundError as error:
            raise DownloadHTTPError(f"there is no {name}", 404) from error


def _contents(folder: Path) -> dict[str, bytes]:
    """Return relative path -> bytes of all metadata in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.json")}


def _mapped(step: Callable[[], T]) -> T:
    """Run a step of TUF and raise every error of its as one of ours.

    Raises:
        NotTrustedError: What came does not verify; asking again does not help.
        UnreachableError: It could not be fetched; asking again may help.
    """
    try:
        return step()
    except DownloadLengthMismatchError as error:
        raise NotTrustedError(f"metadata is longer than allowed: {error}") from error
    except DownloadHTTPError as error:
        raise UnreachableError(f"trust metadata is not complete: {error}") from error
    except DownloadError as error:
        if isinstance(error.__cause__, EdgemlError):
            raise error.__cause__ from error
        raise UnreachableError(f"trust metadata cannot be fetched: {error.__cause__}") from error
    except (RepositoryError, SecureSystemsError, ValueError) as error:
        raise NotTrustedError(
            f"trust metadata is refused: {type(error).__name__}: {error}",
            "check the server's trust repository and this device's clock",
        ) from error
