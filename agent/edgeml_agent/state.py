"""StateStore: the one file that the agent must never lose.

``state.json`` is replaced in one step (temporary file, sync, rename, sync of the folder), so a
power cut leaves the old content or the new one. A lock file keeps a second agent away.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeml.errors import DeviceError, UsageError
from edgeml_agent import durable
from edgeml_agent.transitions import DeviceState


class StateStore:
    """The stored ``DeviceState``; safe from any thread.

    Args:
        folder: The agent's state folder; it exists.

    Raises:
        DeviceError: The stored state cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        """Read what is stored, or start with nothing."""
        self.path = folder / "state.json"
        self._lock = threading.RLock()
        self._state = read_state(self.path)

    @property
    def state(self) -> DeviceState:
        """What is stored now."""
        return self._state

    def update(self, change: Callable[[DeviceState], DeviceState]) -> DeviceState:
        """Apply a pure change, and return the new state when it is safe on the disk.

        Raises:
            DeviceError: It cannot be written; the old state stays, on disk and in memory.
        """
        with self._lock:
            changed = change(self._state)
            if changed != self._state:
                try:
                    durable.write(self.path, msgspec.json.encode(changed))
                except OSError as error:
                    raise DeviceError(
                        f"cannot write {self.path}: {error.strerror}",
                        "is the disk full, or read-only?",
                    ) from error
                self._state = changed
            return self._state


def read_state(path: Path) -> DeviceState:
    """Return the state in a file; an empty one when there is no file.

    Raises:
        DeviceError: The file cannot be read, or is not such a state. It is never started anew by
            itself: that would forget the highest generation, which protects against old orders.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return DeviceState()
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror}") from error
    try:
        return msgspec.json.decode(data, type=DeviceState)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DeviceError(
            f"{path} is damaged: {error}", "check the disk; then enrol the device again"
        ) from error


class FolderLock:
    """Holds a state folder for one agent, for as long as its process lives."""

    def __init__(self, folder: Path) -> None:
        """Take the folder.

        Raises:
            UsageError: Another agent has it.
            DeviceError: It may not be entered.
        """
        path = folder / "lock"
        try:
            try:
                self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError:  # a read-only disk: a lock needs no writing
                self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceError(
                f"cannot use {folder}: {error.strerror}", "check its owner, or use sudo"
            ) from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._handle)
            raise UsageError(
                f"another agent uses {folder}", "see 'edgeml-agent status', or stop it first"
            ) from error

    def close(self) -> None:
        """Give the folder back."""
        os.close(self._handle)


def in_use(folder: Path) -> bool:
    """Tell whether an agent runs on a state folder."""
    path = folder / "lock"
    if not path.exists():
        return False
    try:
        FolderLock(folder).close()
    except (DeviceError, UsageError):
        return True
    return False
