"""DataPlane: the supervisor's side of the process that serves.

The process is started, asked over its Unix socket, and killed; what to do when it crashes is the
supervisor's business. One request at a time; safe from any thread, but ``start`` belongs to a
thread that lives as long as the agent (see ``child``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from edgeml.errors import DeviceError, UnreachableError
from edgeml_agent.control import Quit, Reply, Request

logger = logging.getLogger(__name__)

#: A Unix socket's path may have at most this many bytes (Linux: 108 with the final zero).
_MAX_SOCKET_PATH = 100
_MAX_REPLY = 64 << 20
#: The command that serves, for a control socket.
PlaneCommand = Callable[[Path], Sequence[str]]


class PlaneGoneError(UnreachableError):
    """The data plane is not running, or went away while it was asked."""


class DataPlane:
    """A data plane process, and the way to ask it.

    Args:
        command: Returns the command line for a control socket.
        folder: Where the socket goes; a temporary folder instead when the path is too long, or
            the disk read-only.
        environment: Variables that it gets beside ours.
        start_timeout: Seconds that a new process has to open its socket.
    """

    def __init__(
        self,
        command: PlaneCommand,
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
    ) -> None:
        """Remember how; start nothing."""
        self._command = command
        self._environment = environment or {}
        self._start_timeout = start_timeout
        self._temporary: Path | None = None
        path = folder.resolve() / "control.sock"
        if len(str(path).encode()) > _MAX_SOCKET_PATH or not os.access(folder, os.W_OK):
            self._temporary = Path(tempfile.mkdtemp(prefix="edgeml-"))
            path = self._temporary / "control.sock"
        self.path = path
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._buffer = b""

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def usable(self) -> bool:
        """Whether the process runs and can be asked."""
        return self._socket is not None and self.alive

    @property
    def busy(self) -> bool:
        """Whether it is being asked something now."""
        return self._lock.locked()

    @property
    def pid(self) -> int:
        """The process's id; 0 when there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def exit_code(self) -> int | None:
        """How the process ended; None while it runs."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        """Start the process and wait until it answers.

        Raises:
            DeviceError: It ended, or did not open its socket in time.
        """
        self.kill()
        self.path.unlink(missing_ok=True)
        process = subprocess.Popen(
            self._command(self.path),
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self._environment},
        )
        self._process = process
        deadline = time.monotonic() + self._start_timeout
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise DeviceError(f"the data plane ended at its start with {process.returncode}")
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(self.path))
            except OSError:
                connection.close()
                time.sleep(0.02)
                continue
            self._buffer = b""
            self._socket = connection
            return
        self.kill()
        raise DeviceError(f"the data plane opened no socket within {self._start_timeout:.0f} s")

    def ask(self, request: Request, timeout: float = 120.0) -> Reply:
        """Ask, and wait for the answer.

        Raises:
            PlaneGoneError: It does not run, hung up, or did not answer in time (it is then
                killed: an answer that comes late would be taken for the next one).
        """
        with self._lock:
            connection = self._socket
            if connection is None:
                raise PlaneGoneError("the data plane does not run")
            try:
                connection.settimeout(timeout)
                connection.sendall(msgspec.json.encode(request) + b"\n")
                return msgspec.json.decode(self._line(connection, timeout), type=Reply)
            except (OSError, msgspec.DecodeError) as error:
                self._hang_up()
                if isinstance(error, (TimeoutError, msgspec.DecodeError)):
                    self._signal_kill()
                kind = type(request).__name__.lower()
                raise PlaneGoneError(f"the data plane broke off at '{kind}': {error}") from error

    def _line(self, connection: socket.socket, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = connection.recv(1 << 16)
            if not piece:
                raise ConnectionResetError("it hung up")
            self._buffer += piece
            if len(self._buffer) > _MAX_REPLY:
                raise ConnectionResetError(f"reply is longer than {_MAX_REPLY} bytes")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def stop(self, grace: float = 5.0) -> None:
        """Ask it to finish what is in flight; kill it when it does not end in time."""
        if self.alive and not self.busy:
            with contextlib.suppress(PlaneGoneError):
                self.ask(Quit(), timeout=grace)
            if self._process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(grace)
        self.kill()
        self.path.unlink(missing_ok=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def kill(self) -> None:
        """Kill the process and take its exit code."""
        self._hang_up()
        self._signal_kill()
        if self._process is not None:
            self._process.wait()

    def _signal_kill(self) -> None:
        if self.alive and self._process is not None:
            self._process.kill()

    def _hang_up(self) -> None:
        if self._socket is not None:
            # Wakes a thread that waits for an answer.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None
