"""Writes that survive a power cut: temporary file, sync, rename, sync of the folder.

Everything that must not be lost or torn on a device goes through these few functions.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from edgeml.errors import DeviceError


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: The folder cannot be opened, or the disk failed.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync(stream: IO[bytes]) -> None:
    """Make what was written to an open file durable.

    Raises:
        OSError: The disk failed.
    """
    stream.flush()
    os.fsync(stream.fileno())


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """Write a file under a temporary name, and give it its name when the block ends well.

    Args:
        path: The file; its folder exists.
        durable: Whether it must be on the disk before this returns.

    Raises:
        OSError: The disk is full, read-only or broken; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as stream:
            yield stream
            if durable:
                sync(stream)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a file's content in one step; see ``replacing``."""
    with replacing(path, durable=durable) as stream:
        stream.write(data)


def private_folder(path: Path) -> Path:
    """Return a folder that only this user may enter, made when it is not there.

    Raises:
        DeviceError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DeviceError(f"cannot make the folder {path}: {error.strerror}") from error
    return path
