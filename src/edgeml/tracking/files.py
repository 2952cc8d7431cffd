"""The tracker that is always there: a folder.

::

    runs.jsonl                  one line for each conversion, the oldest first
    NAME/VERSION-DIGEST/        its report; lineage.json

A line is written whole or not at all (one ``write`` to a file that is open for appending, under a
lock), so several conversions may share a folder.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from pathlib import Path
from typing import ClassVar, Self

import msgspec

from edgeml.errors import UsageError
from edgeml.tracking.base import Record

_RUNS = "runs.jsonl"


class FilesTracker:
    """Keeps records in a folder."""

    name: ClassVar[str] = "files"

    def __init__(self, folder: Path) -> None:
        """Take the folder; use ``open``."""
        self.folder = folder

    @classmethod
    def open(cls, address: str) -> Self:
        """Return the tracker of a folder, which is made when it is not there.

        Raises:
            UsageError: It cannot be made or written.
        """
        folder = Path(address or ".")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / _RUNS).open("ab"):
                pass
        except OSError as error:
            raise UsageError(
                f"cannot track to '{folder}': {error.strerror}", "name another folder by --track"
            ) from error
        return cls(folder)

    def keep(self, record: Record) -> str:
        """Write the report beside, then the line that points to it.

        Raises:
            UsageError: There is no room, or no right to write.
        """
        inner = f"{record.name}/{record.version}-{record.digest.rpartition(':')[2][:12]}"
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "name": record.name,
            "version": record.version,
            "bundle": str(record.bundle.absolute()),
            "digest": record.digest,
            "params": record.params,
            "metrics": record.metrics,
            "tags": record.tags,
            "folder": inner,
        }
        try:
            self._write_files(self.folder / inner, record)
            self._append(msgspec.json.encode(line) + b"\n")
        except OSError as error:
            raise UsageError(
                f"cannot track to '{self.folder}': {error.strerror}; the bundle is whole",
                "free space there, or name another folder by --track",
            ) from error
        return str(self.folder / inner)

    def _write_files(self, folder: Path, record: Record) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lineage = msgspec.json.format(msgspec.json.encode(record.lineage), indent=2) + b"\n"
        for name, data in {**record.files, "lineage.json": lineage}.items():
            temporary = folder / f".{name}.{secrets.token_hex(4)}.new"
            temporary.write_bytes(data)
            temporary.replace(folder / name)

    def _append(self, line: bytes) -> None:
        with (self.folder / _RUNS).open("ab", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.write(line)
            os.fsync(stream.fileno())
