"""Run one piece of work in a child process with bounds on time and memory.

Libraries that build and run models crash, hang and eat memory on some models. Here that costs one
candidate, with its reason, and never the run. A job is a value: it goes to the child as bytes in
a file, and its result comes back the same way.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event
from typing import TypeVar

import msgspec

logger = logging.getLogger(__name__)

#: Exit code of a child that found no room for its files (EX_CANTCREAT of sysexits.h).
NO_SPACE = 73

_POLL = 0.05
_TAIL = 400
T = TypeVar("T")


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one job.

    Attributes:
        seconds: Wall time.
        memory_bytes: Resident memory of the child.
    """

    seconds: float = 600.0
    memory_bytes: int = 8 << 30


class Outcome(msgspec.Struct, frozen=True):
    """What the child leaves behind.

    Attributes:
        result: The job's result as msgpack; empty when it failed.
        error: Why it failed, in one line.
    """

    result: bytes = b""
    error: str = ""


class JobError(Exception):
    """A job failed; the text is the reason, in one line, for the report."""


def run_job(job: msgspec.Struct, result: type[T], limits: Limits, stop: Event | None = None) -> T:
    """Run a job in a child process.

    Args:
        job: A tagged struct that ``edgeml_converters.worker`` knows.
        result: Type of what it returns.
        limits: Bounds; the child is killed when it goes over one.
        stop: The child is killed when this is set.

    Raises:
        JobError: It failed, crashed, went over a bound, or was stopped.
        OSError: There is no room for its files.
    """
    with tempfile.TemporaryDirectory(prefix="edgeml-job-") as name:
        folder = Path(name)
        (folder / "job").write_bytes(msgspec.msgpack.encode(job))
        with (folder / "log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgeml_converters.worker", str(folder)],
                stdin=subprocess.PIPE,  # never written to: it closes when this process dies
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": name},  # what it leaves there goes with the folder
            )
            try:
                _watch(child, limits, stop or Event())
            finally:
                if child.poll() is None:
                    child.kill()
                child.communicate()
        text = (folder / "log").read_bytes()[-20_000:].decode(errors="replace")
        for line in text.splitlines():
            logger.debug("%s: %s", type(job).__name__, line)
        return _outcome(folder, child.returncode, text, result)


def _outcome(folder: Path, code: int, log: str, result: type[T]) -> T:
    """Return the result that a child wrote.

    Raises:
        JobError: It wrote none, or a reason why there is none.
        OSError: There was no room for it.
    """
    path = folder / "outcome"
    if code == 0 and path.exists():
        outcome = msgspec.msgpack.decode(path.read_bytes(), type=Outcome)
        if outcome.error:
            raise JobError(outcome.error)
        return msgspec.msgpack.decode(outcome.result, type=result)
    if code == NO_SPACE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1][:_TAIL] if lines else "it said nothing"
    how = f"exit {code}" if code >= 0 else f"killed by {_signal_name(-code)}"
    raise JobError(f"the process crashed ({how}): {last}")


def _watch(child: subprocess.Popen[bytes], limits: Limits, stop: Event) -> None:
    """Wait for the end of a child.

    Raises:
        JobError: It went over a bound, or was stopped.
    """
    end = time.monotonic() + limits.seconds
    while True:
        try:
            child.wait(_POLL)
            return
        except subprocess.TimeoutExpired:
            used = resident_bytes(child.pid)
        if stop.is_set():
            raise JobError("stopped")
        if used > limits.memory_bytes:
            raise JobError(
                f"took {used >> 20} MiB of memory, more than the bound of "
                f"{limits.memory_bytes >> 20} MiB"
            )
        if time.monotonic() > end:
            raise JobError(f"took longer than the bound of {limits.seconds:.0f} s")


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


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
