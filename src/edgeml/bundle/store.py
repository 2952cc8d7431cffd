"""Where the bytes of a layout lie: in a folder, or in one tar that is read in place."""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from edgeml.errors import BundleError

_BLOCK = 512
_CHUNK = 1 << 20
_MAX_MEMBERS = 20_000
_MAX_PAX = 64 << 10
_NAME = re.compile(r"oci-layout|index\.json|blobs/sha256/[0-9a-f]{64}")
#: Records of an extended header that would change what a plain reader sees.
_PAX_FORBIDDEN = re.compile(rb"(^|\n)\d+ (path|size|linkpath|GNU\.sparse[^=]*)=")


class Store(Protocol):
    """Named files of a layout."""

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None when it is not there."""
        ...

    def stream(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file in pieces.

        Raises:
            BundleError: It is not there, not a regular file, or cannot be read.
        """
        ...


def blob_name(digest: str) -> str:
    """Return the name of a blob in a layout."""
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def open_store(path: Path) -> Store:
    """Return the store of a bundle.

    Raises:
        BundleError: Nothing is there, or it is neither a folder nor a tar.
    """
    if path.is_dir():
        return FolderStore(path)
    if not path.exists():
        raise BundleError(f"no bundle at {path}", "give a folder or a .edgeml file")
    return TarStore(path)


class FolderStore:
    """A layout in a folder. Links are not followed."""

    def __init__(self, folder: Path) -> None:
        """Take the folder that holds ``oci-layout``."""
        self._folder = folder

    def size(self, name: str) -> int | None:
        """Return the size of a file; see ``Store``."""
        try:
            info = (self._folder / name).lstat()
        except OSError:
            return None
        return info.st_size if stat.S_ISREG(info.st_mode) else None

    def stream(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file; see ``Store``."""
        path = self._folder / name
        try:
            # Without O_NONBLOCK a named pipe in a hostile folder would hold us for ever.
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}") from error
        with open(handle, "rb") as stream:  # noqa: PTH123 - a handle, not a path
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise BundleError(f"{path} is not a regular file")
            yield from _pieces(stream, path, os.fstat(handle).st_size)


class TarStore:
    """A layout in one tar, read in place. Only plain files and folders are accepted in it."""

    def __init__(self, path: Path) -> None:
        """Read the headers.

        Raises:
            BundleError: It is not a tar, is cut short, or holds what a bundle may not hold.
        """
        self._path = path
        self._members: dict[str, tuple[int, int]] = {}
        try:
            with path.open("rb") as stream:
                self._scan(stream, path.stat().st_size)
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}") from error

    def _scan(self, stream: BinaryIO, end: int) -> None:
        position = 0
        for _ in range(_MAX_MEMBERS):
            stream.seek(position)
            block = stream.read(_BLOCK)
            if len(block) == _BLOCK and not any(block):
                return
            info = self._header(block)
            start = position + _BLOCK
            position = start + -(-info.size // _BLOCK) * _BLOCK
            if info.size < 0 or position > end:
                raise BundleError(f"{self._path} is cut short", "fetch or make it again")
            self._take(info, start, stream)
        raise BundleError(f"{self._path} holds more than {_MAX_MEMBERS} members")

    def _header(self, block: bytes) -> tarfile.TarInfo:
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise BundleError(
                f"{self._path} is not a bundle, or is cut short: {error}",
                "give a folder or a NAME-VERSION.edgeml; 'edgeml convert' makes one from a model",
            ) from error

    def _take(self, info: tarfile.TarInfo, start: int, stream: BinaryIO) -> None:
        name = info.name.removeprefix("./")
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE):
            if info.size > _MAX_PAX or _PAX_FORBIDDEN.search(stream.read(info.size)):
                raise BundleError(f"{self._path} has an extended header that renames a file")
        elif info.type == tarfile.DIRTYPE:
            if info.size or name.rstrip("/") not in ("", ".", "blobs", "blobs/sha256"):
                raise BundleError(f"{self._path} holds the folder {info.name[:80]!r}")
        elif info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or not _NAME.fullmatch(name):
            raise BundleError(
                f"{self._path} holds {info.name[:80]!r} (type {info.type!r}), expected only "
                "oci-layout, index.json and blobs/sha256/<hex> as plain files"
            )
        elif name in self._members:
            raise BundleError(f"{self._path} holds {name} twice")
        else:
            self._members[name] = (start, info.size)

    def size(self, name: str) -> int | None:
        """Return the size of a file; see ``Store``."""
        member = self._members.get(name)
        return None if member is None else member[1]

    def stream(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file; see ``Store``."""
        if name not in self._members:
            raise BundleError(f"{self._path} does not hold {name}")
        start, size = self._members[name]
        try:
            stream = self._path.open("rb")
        except OSError as error:
            raise BundleError(f"cannot read {self._path}: {error.strerror}") from error
        with stream:
            stream.seek(start)
            yield from _pieces(stream, self._path, size)


def _pieces(stream: BinaryIO, path: Path, size: int) -> Iterator[bytes]:
    left = size
    while left:
        try:
            piece = stream.read(min(left, _CHUNK))
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}") from error
        if not piece:
            raise BundleError(f"{path} is cut short")
        left -= len(piece)
        yield piece
