"""Spool: the outbox of messages that add up (telemetry windows, events), on disk.

One file per message, ``<boot>_<sequence>.<kind>``, kept until the fleet's application says that it
has applied it. Each kind has a limit of its own; beyond it the oldest of that kind goes. A full
disk loses messages, never the agent: what cannot be stored is still sent once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from edgeml.errors import UsageError
from edgeml_agent import durable

logger = logging.getLogger(__name__)

#: Kind -> how many messages are kept: events outlive windows.
LIMITS = {"telemetry": 2000, "event": 1000}


class Spool:
    """Messages that the fleet has not applied yet. Safe from any thread.

    Args:
        folder: Made when it is not there.
        boot: Id of this start of the agent; later starts sort after earlier ones.
        limits: Kind -> how many messages are kept.
    """

    def __init__(self, folder: Path, boot: str, limits: dict[str, int] = LIMITS) -> None:
        """Read what earlier starts have left."""
        if "_" in boot or "/" in boot:
            raise UsageError(f"boot id '{boot}' holds '_' or '/'")
        self._folder = durable.private_folder(folder)
        self._boot = boot
        self._limits = limits
        self._lock = threading.Lock()
        self._sequence = 0
        #: (boot, sequence, kind) of everything that waits, oldest first; payloads are on disk.
        self._waiting: dict[tuple[str, int], str] = {}
        self._memory: dict[tuple[str, int], bytes] = {}
        self.lost = 0
        for path in sorted(folder.iterdir()):
            key = _key(path.name)
            if key is None:
                with contextlib.suppress(OSError):
                    path.unlink()
            else:
                self._waiting[key] = path.suffix[1:]

    def __len__(self) -> int:
        """Return the number of messages that wait."""
        return len(self._waiting)

    def next_sequence(self) -> int:
        """Return the next sequence number of this boot."""
        with self._lock:
            self._sequence += 1
            return self._sequence

    def put(self, kind: str, sequence: int, payload: bytes) -> None:
        """Keep a message. Never fails: without disk space it stays in memory, once."""
        key = (self._boot, sequence)
        try:
            durable.write(self._path(key, kind), payload, durable=kind == "event")
        except OSError as error:
            logger.warning("cannot spool a message of %d bytes: %s", len(payload), error)
            self._memory[key] = payload
        with self._lock:
            self._waiting[key] = kind
            self._bound(kind)

    def _bound(self, kind: str) -> None:
        mine = [key for key, other in self._waiting.items() if other == kind]
        for key in mine[: max(0, len(mine) - self._limits[kind])]:
            self._drop(key)
            self.lost += 1

    def applied(self, boot: str, sequences: Iterable[int]) -> None:
        """Forget what the fleet has applied."""
        with self._lock:
            for sequence in sequences:
                self._drop((boot, sequence))

    def _drop(self, key: tuple[str, int]) -> None:
        kind = self._waiting.pop(key, None)
        self._memory.pop(key, None)
        if kind is not None:
            try:
                self._path(key, kind).unlink(missing_ok=True)
            except OSError as error:  # sent again after the next start, and applied once
                logger.warning("cannot remove a spooled message: %s", error)

    def pending(self) -> list[tuple[str, int]]:
        """Return (boot, sequence) of everything that waits, oldest first."""
        with self._lock:
            return sorted(self._waiting)

    def counts(self) -> dict[str, int]:
        """Return kind -> how many messages wait."""
        with self._lock:
            return dict(Counter(self._waiting.values()))

    def read(self, key: tuple[str, int]) -> tuple[str, bytes] | None:
        """Return kind and payload of a message; None when it is gone or torn."""
        with self._lock:
            kind = self._waiting.get(key)
            if kind is None:
                return None
            if key in self._memory:
                return kind, self._memory[key]
            try:
                payload = self._path(key, kind).read_bytes()
            except OSError as error:
                logger.warning("cannot read a spooled message: %s", error)
                payload = b""
            if not payload:  # a power cut before the disk had it
                self._drop(key)
                return None
            return kind, payload

    def _path(self, key: tuple[str, int], kind: str) -> Path:
        return self._folder / f"{key[0]}_{key[1]:010d}.{kind}"


def _key(name: str) -> tuple[str, int] | None:
    """Return (boot, sequence) of a file's name; None for what is not ours."""
    stem, _, kind = name.rpartition(".")
    boot, _, sequence = stem.rpartition("_")
    if not boot or boot.startswith(".") or not sequence.isdigit() or kind not in LIMITS:
        return None
    return boot, int(sequence)
