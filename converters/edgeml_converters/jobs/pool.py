"""The side that asks: hands jobs to servers and watches them."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import TypeVar

import msgspec

from edgeml_converters.jobs.wire import NO_SPACE, Channel, Ended, Order, Reply, Started, Word

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Children may be copies of a running process here.
CAN_FORK = sys.platform == "linux"
#: Environment in which libraries start no threads when they are imported: a copy of a process has
#: one thread, and its libraries must not count on more.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
_POLL = 0.05
_TAIL = 400
#: A server that does not start within this time never will.
_START_S = 120.0


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one job.

    Attributes:
        seconds: Wall time.
        memory_bytes: Resident memory of the child.
        idle_seconds: Wall time without any processor time (where the system tells it).
    """

    seconds: float = 600.0
    memory_bytes: int = 8 << 30
    idle_seconds: float = 60.0


class JobError(Exception):
    """A job failed; the text is the reason, in one line, for the report."""


class ServerGoneError(JobError):
    """The process that starts jobs ended, and with it what it had started: no fault of a job."""


class StuckError(JobError):
    """A job waits for what never comes: as after a copy that was made while a lock was held."""


class Pool:
    """Servers for every kind of work; safe to use from many threads."""

    def __init__(self, limits: Limits, folder: Path) -> None:
        """Start with no server.

        Args:
            limits: Bounds of every job.
            folder: Where the jobs' temporary files go; it exists.
        """
        self.limits = limits
        self.stop = Event()
        self._folder = folder
        self._servers: dict[tuple[str, str], _Server] = {}
        self._lock = Lock()

    def warm(self, *kinds: str) -> None:
        """Start the servers of these kinds of work, without waiting for them."""
        for kind in kinds:
            self._server(kind, fresh=False)

    def run(self, job: msgspec.Struct, result: type[T], kind: str) -> T:
        """Run a job in a child process.

        Args:
            job: A tagged struct that ``edgeml_converters.worker`` knows.
            result: Type of what it returns.
            kind: Of the work: ``build``, or the name of a runtime.

        Raises:
            JobError: It failed, crashed, went over a bound, or was stopped.
            OSError: There is no room for its files.
        """
        try:
            with self.converse(job, kind) as child:
                return child.answer(result)
        except (ServerGoneError, StuckError) as error:
            logger.warning("%s: %s; trying once more in a new process", kind, error)
            with self.converse(job, kind, fresh=True) as child:
                return child.answer(result)

    def converse(self, job: msgspec.Struct, kind: str, fresh: bool = False) -> Conversation:
        """Start a job that answers questions.

        Args:
            job: As for ``run``.
            kind: As for ``run``.
            fresh: Run it in a new process and not in a copy of a server.

        Raises:
            JobError: It cannot be started.
            OSError: There is no room for its files.
        """
        folder = Path(tempfile.mkdtemp(prefix="job-", dir=self._folder))
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._server(kind, fresh).hand_over(theirs)
            channel = Channel(ours)
            return Conversation(
                channel, job, folder, self._folder / f"{kind}.log", self.limits, self.stop
            )
        except BaseException:  # whatever ended it, nothing of it stays
            ours.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def close(self) -> None:
        """End all servers and what they run."""
        self.stop.set()
        with self._lock:
            for server in self._servers.values():
                server.close()
            self._servers.clear()

    def __enter__(self) -> Pool:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _server(self, kind: str, fresh: bool) -> _Server:
        """Return the server of a kind, started anew when the last one has ended."""
        mode = "fork" if CAN_FORK and not fresh else "spawn"
        with self._lock:
            server = self._servers.get((kind, mode))
            if server is None or server.ended():
                server = self._servers[kind, mode] = _Server(kind, mode, self._folder)
            return server


class _Server:
    """One server process."""

    def __init__(self, kind: str, mode: str, folder: Path) -> None:
        ours, theirs = socket.socketpair()
        self._control = ours
        self._lock = Lock()
        with theirs, (folder / f"{kind}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgeml_converters.jobs.server",
                 kind, str(theirs.fileno()), mode],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this process, which then ends that one
                env={**os.environ, **ONE_THREAD, "TMPDIR": str(folder)},
            )  # fmt: skip

    def ended(self) -> bool:
        """Whether it runs no longer."""
        return self._process.poll() is not None

    def hand_over(self, end: socket.socket) -> None:
        """Give the server the channel of a job.

        Raises:
            JobError: The server is gone.
        """
        try:
            with self._lock:
                socket.send_fds(self._control, [b"j"], [end.fileno()])
        except OSError as error:
            raise ServerGoneError(f"the process that starts jobs is gone: {error}") from error

    def close(self) -> None:
        """End it, and what it started."""
        self._control.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Conversation:
    """One running job; use it with ``with``."""

    def __init__(
        self,
        channel: Channel,
        job: msgspec.Struct,
        folder: Path,
        server_log: Path,
        limits: Limits,
        stop: Event,
    ) -> None:
        """Send the job; see ``Pool.converse``."""
        self._channel = channel
        self._folder = folder
        self._server_log = server_log
        self._limits = limits
        self._stop = stop
        self._job = type(job).__name__
        self._pid = 0
        self._over = False
        self._ticks: int | None = None
        self._moved = 0.0
        try:
            channel.send(Order(str(folder), msgspec.msgpack.encode(job)))
        except OSError as error:
            raise ServerGoneError(f"the process ended before its work began: {error}") from error

    def answer(self, result: type[T]) -> T:
        """Wait for the next answer of the child.

        Raises:
            JobError: It failed, crashed, went over a bound, or was stopped.
            OSError: There was no room for its files.
        """
        end = time.monotonic() + self._limits.seconds
        self._ticks, self._moved = None, time.monotonic()
        while True:
            try:
                word: Word | None = self._channel.receive(Word, _POLL)
            except TimeoutError:
                self._check(end)
                continue
            except OSError:
                word = None
            if isinstance(word, Started):
                self._pid = word.pid
            elif isinstance(word, Reply):
                if word.error:
                    raise JobError(word.error)
                return msgspec.msgpack.decode(word.result, type=result)
            else:
                self._over = True
                raise self._crash(word.code if word else None)

    def ask(self, question: msgspec.Struct, result: type[T]) -> T:
        """Ask the child, and wait for its answer.

        Raises:
            JobError: As for ``answer``.
        """
        with contextlib.suppress(OSError):  # it has ended: its last word says how
            self._channel.send(question)
        return self.answer(result)

    def _check(self, end: float) -> None:
        """Look after a child that says nothing.

        Raises:
            JobError: It went over a bound, or is to stop.
        """
        used = resident_bytes(self._pid) if self._pid else 0
        if self._stop.is_set():
            raise JobError("stopped")
        if used > self._limits.memory_bytes:
            raise JobError(
                f"took {used >> 20} MiB of memory, more than the bound of "
                f"{self._limits.memory_bytes >> 20} MiB"
            )
        if time.monotonic() > end:
            raise JobError(f"took longer than the bound of {self._limits.seconds:.0f} s")
        ticks = busy_ticks(self._pid) if self._pid else None
        if ticks is None or ticks != self._ticks:
            self._ticks, self._moved = ticks, time.monotonic()
        elif time.monotonic() - self._moved > self._limits.idle_seconds:
            raise StuckError(f"took no processor time for {self._limits.idle_seconds:.0f} s")

    def _crash(self, code: int | None) -> Exception:
        """Return the error for a child that ended without an answer."""
        if code == NO_SPACE:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        log = _tail(self._folder / "log") or _tail(self._server_log)
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        last = lines[-1][:_TAIL] if lines else "it said nothing"
        if code is None:
            return ServerGoneError(f"the process that runs it ended: {last}")
        how = f"exit {code}" if code >= 0 else f"killed by {_signal_name(-code)}"
        return JobError(f"the process crashed ({how}): {last}")

    def close(self) -> None:
        """End the child, if it still runs, and remove its files."""
        if self._pid and not self._over:
            self._end()
        for line in _tail(self._folder / "log").splitlines():
            logger.debug("%s: %s", self._job, line)
        self._channel.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> None:
        """Kill the child and wait for its last word: then it holds no memory any more."""
        try:
            os.kill(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        end = time.monotonic() + 5.0
        while time.monotonic() < end:
            try:
                word = self._channel.receive(Word, end - time.monotonic())
            except OSError:
                return
            if word is None or isinstance(word, Ended):
                return

    def __enter__(self) -> Conversation:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()


def _tail(log: Path) -> str:
    """Return the end of a log; empty when there is none."""
    try:
        return log.read_bytes()[-20_000:].decode(errors="replace")
    except OSError:
        return ""


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 when it has just ended."""
    statm = Path(f"/proc/{pid}/statm")
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return 0
    except (ProcessLookupError, IndexError):
        return 0
    # No /proc (macOS): ps tells it in KiB.
    told = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return int(told.stdout.strip() or 0) * 1024


def busy_ticks(pid: int) -> int | None:
    """Return the processor time of a process in ticks of the system.

    None where the system does not tell it, and for a process that has children: they may be at
    work for it.
    """
    tasks = Path(f"/proc/{pid}/task")
    try:
        if any((task / "children").read_text() for task in tasks.iterdir()):
            return None
        # The name, in brackets, may hold anything; utime and stime are 11 and 12 behind it.
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(words[11]) + int(words[12])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def run_job(job: msgspec.Struct, result: type[T], limits: Limits) -> T:
    """Run one job, with a server of its own; who has many of them makes a ``Pool``.

    Raises:
        JobError: It failed, crashed or went over a bound.
        OSError: There is no room for its files.
    """
    kind = getattr(getattr(job, "variant", None), "runtime", "build")
    with (
        tempfile.TemporaryDirectory(prefix="edgeml-job-") as name,
        Pool(limits, Path(name)) as pool,
    ):
        return pool.run(job, result, kind)
