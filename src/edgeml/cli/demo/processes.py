"""The demo's child processes: started with a log each, ended for certain."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from edgeml.errors import InternalError, UnreachableError

_GRACE_S = 10.0
_PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end_with_parent() -> None:
    """Ask the kernel to end a child when the demo itself is killed; a no-op where it cannot."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Processes:
    """All children of the demo; leaving the context ends every one, and what they started."""

    def __init__(self, logs: Path) -> None:
        """Write the output of each child to ``logs/NAME.log``."""
        self.logs = logs
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        """Make the folder of the logs."""
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End everything, also after an error."""
        self.stop()

    def start(self, name: str, words: Sequence[str]) -> None:
        """Start a child in a process group of its own."""
        with (self.logs / f"{name}.log").open("ab") as log:
            self.children[name] = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def run(self, words: Sequence[str]) -> bytes:
        """Run a command to its end and return what it printed.

        Raises:
            InternalError: It failed; the message is its own.
        """
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
            raise InternalError(
                f"a command of the demo failed with exit code {done.returncode}: {said[0]}",
                said[-1] if len(said) > 1 else "",
            )
        return done.stdout

    def wait_for(self, what: str, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until ``ready()``.

        Raises:
            UnreachableError: It did not come true in time, or a child ended.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, child in self.children.items():
                if child.poll() is not None:
                    raise UnreachableError(
                        f"'{name}' ended with exit code {child.returncode}: {self.tail(name)}",
                        f"read {self.logs / (name + '.log')}",
                    )
            if ready():
                return
            time.sleep(0.1)
        raise UnreachableError(
            f"{what}: not within {seconds:.0f} s", f"read the logs in {self.logs}"
        )

    def tail(self, name: str) -> str:
        """Return the last line that a child wrote."""
        text = (self.logs / f"{name}.log").read_text(errors="replace").strip()
        return text.splitlines()[-1] if text else "it wrote nothing"

    def stop(self) -> list[str]:
        """Ask all children to end, newest first; kill what does not.

        Returns:
            Names of those that had to be killed, or that ended with an error.
        """
        for child in reversed(self.children.values()):
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        rough = []
        end = time.monotonic() + _GRACE_S
        for name, child in self.children.items():
            try:
                code = child.wait(timeout=max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = -int(signal.SIGKILL)
            # Whatever a child left behind in its own process group goes with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            if code != 0:
                rough.append(f"{name} ({code})")
        self.children.clear()
        return rough
