"""The server of one kind of work: ``python -m edgeml_converters.jobs.server KIND FD MODE``.

It imports what such work needs, and then makes a copy of itself for every job that it is handed.
It has one thread and runs no model, so that a copy is safe. Where copies are not safe (macOS: the
system's own libraries may not be used after ``fork``) every job is a new process (``MODE`` spawn).
It ends, and its children with it, when the process that started it is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import FrameType

import msgspec

from edgeml.errors import EdgemlError, MissingPackageError
from edgeml.plugins import load_object
from edgeml_converters.jobs.wire import NO_SPACE, Channel, Ended, Order, Reply, Started

#: Kind of work -> what it imports: only that, for memory is bounded and imports take long.
PRELOAD: dict[str, tuple[str, ...]] = {
    "build": (
        "onnx:ModelProto",
        "onnxruntime:InferenceSession",
        "edgeml.runtime.onnxruntime:OnnxRuntime",
        "edgeml_converters.worker:work",
        "edgeml_converters.rules:traits",
        "edgeml_converters.targets.cpu:CpuTarget",
        "edgeml_converters.passes.opset:UpgradeOpset",
        "edgeml_converters.passes.shapes:FixBatch",
        "edgeml_converters.passes.simplify:Simplify",
        "edgeml_converters.passes.quantize_static:QuantizeStatic",
        "edgeml_converters.layers.coverage:coverage",
    ),
    "onnxruntime": (
        "onnxruntime:InferenceSession",
        "edgeml.runtime.onnxruntime:OnnxRuntime",
        "edgeml_converters.worker:work",
    ),
    "openvino": (
        "edgeml.runtime.openvino:OpenVinoRuntime",  # first: see there
        "openvino:Core",
        "edgeml_converters.worker:work",
    ),
    "litert": (
        "ai_edge_litert.interpreter:Interpreter",
        "edgeml.runtime.litert:LiteRtRuntime",
        "edgeml_converters.worker:work",
    ),
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Of Linux, sys/prctl.h: the signal that a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1


class Server:
    """Starts a child for each job and tells how it ended."""

    def __init__(self, control: socket.socket, fork: bool) -> None:
        """Take the socket over which jobs are handed in, each as the descriptor of its channel."""
        self._control = control
        self._fork = fork
        self._children: dict[int, Channel] = {}
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        signal.signal(signal.SIGCHLD, _nothing)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)

    def serve(self) -> None:
        """Serve until the other side is gone."""
        while True:
            ready, _, _ = select.select([self._control, self._woken], [], [])
            if self._woken in ready:
                self._woken.recv(4096)
                self._reap()
            if self._control in ready:
                data, ends, _, _ = socket.recv_fds(self._control, 64, 16)
                for end in ends:
                    self._start(socket.socket(fileno=end))
                if not data and not ends:
                    break
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def _start(self, end: socket.socket) -> None:
        """Start the child that talks over ``end``."""
        if not self._fork:
            words = [sys.executable, "-P", "-m", "edgeml_converters.jobs.server"]
            child = subprocess.Popen(
                [*words, "child", str(end.fileno()), "spawn"], pass_fds=[end.fileno()]
            )
            child.returncode = 0  # the loop reaps it
            self._children[child.pid] = Channel(end)
            return
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for mine in (self._control, self._woken, self._wake):
                mine.close()
            for channel in self._children.values():
                channel.close()
            os._exit(child_main(end))
        self._children[pid] = Channel(end)

    def _reap(self) -> None:
        """Tell of every child that ended."""
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            channel = self._children.pop(pid, None)
            if channel is None:
                continue  # not one of ours: a library, or who was here before, started it
            with contextlib.suppress(OSError):  # nobody waits for it any more
                channel.send(Ended(os.waitstatus_to_exitcode(status)))
            channel.close()


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Take a signal; the descriptor of ``set_wakeup_fd`` does the rest."""


def child_main(end: socket.socket) -> int:
    """Do the one job that comes over a socket; return the exit code."""
    _end_with_parent()
    channel = Channel(end)
    try:
        channel.send(Started(os.getpid()))
        order = channel.receive(Order)
        if order is None:
            return 0
        os.environ["TMPDIR"] = tempfile.tempdir = order.folder
        log = os.open(Path(order.folder) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        reply = _do(order.job, channel)
        sys.stdout.flush()
        sys.stderr.flush()
        channel.send(reply)
    except OSError as error:
        return NO_SPACE if error.errno in _FULL else 1
    return 0


def _do(job: bytes, channel: Channel) -> Reply:
    """Do a job and return its outcome.

    Raises:
        OSError: There is no room for its files.
    """
    from edgeml_converters.worker import AnyJob, work

    try:
        return Reply(
            msgspec.msgpack.encode(work(msgspec.msgpack.decode(job, type=AnyJob), channel))
        )
    except EdgemlError as error:
        return Reply(error=error.message)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        # The boundary of the process: whatever a library raises costs this candidate, no more.
        traceback.print_exc()
        text = " ".join(str(error).split())[:400]
        return Reply(error=f"{type(error).__name__}: {text}")


def _end_with_parent() -> None:
    """Have the kernel end this process when the one that started it is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Serve, or be the child of a server that does not copy itself; return the exit code."""
    kind, end, mode = sys.argv[1], socket.socket(fileno=int(sys.argv[2])), sys.argv[3]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    if kind == "child":
        return child_main(end)
    if mode == "fork":
        try:
            for name in PRELOAD.get(kind, ("edgeml_converters.worker:work",)):
                load_object(name)
        except (MissingPackageError, ImportError):
            pass  # the job that needs it says so
    Server(end, mode == "fork").serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
