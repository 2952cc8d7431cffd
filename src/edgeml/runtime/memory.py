"""Peak memory of loading a model and running it, in a fresh process of its own.

In the process that converts, memory of other models is already there and hides the answer.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from edgeml.errors import DeviceError
from edgeml.runtime.base import ProgramOptions

_CODE = "from edgeml.runtime.memory import child; child()"


class MemoryUse(msgspec.Struct, frozen=True):
    """What a process took.

    Attributes:
        peak_bytes: Peak resident memory of the whole process: Python, runtime and model.
        base_bytes: The part of it that was there with the runtime imported and no model loaded.
    """

    peak_bytes: int
    base_bytes: int

    @property
    def model_bytes(self) -> int:
        """What the model added."""
        return self.peak_bytes - self.base_bytes


class _Order(msgspec.Struct):
    """What the child is asked to do."""

    runtime: str
    model: str
    threads: int
    device: str
    extra: dict[str, str]
    batch: int
    runs: int


def measure_memory(
    runtime: str,
    model: Path,
    options: ProgramOptions | None = None,
    batch: int = 1,
    runs: int = 3,
    timeout_s: float = 120.0,
) -> MemoryUse:
    """Load and run a model in a fresh process, with zeros for input, and tell its peak memory.

    Args:
        runtime: Name of the runtime.
        model: The file.
        options: How to compile it; the cache is left out, for a warm one would hide the peak.
        batch: Samples in one run.
        runs: How many runs.
        timeout_s: Give up after this long.

    Raises:
        DeviceError: The process failed, was killed (perhaps for its memory), or took too long.
    """
    chosen = options or ProgramOptions()
    order = _Order(
        runtime,
        str(model.resolve()),
        chosen.threads,
        chosen.device,
        dict(chosen.extra),
        batch,
        runs,
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CODE],
            input=msgspec.json.encode(order),
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            f"measuring the memory of '{model.name}' took over {timeout_s} s"
        ) from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise DeviceError(
            f"measuring the memory of '{model.name}' ended with {done.returncode}: "
            f"{lines[-1][:300]}"
        )
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=MemoryUse)


def child() -> None:
    """Do what standard input asks for, and write the outcome to standard output."""
    from edgeml.runtime import get_runtime

    order = msgspec.json.decode(sys.stdin.buffer.read(), type=_Order)
    runtime = get_runtime(order.runtime)
    runtime.check()
    base = peak_resident()
    options = ProgramOptions(order.threads, order.device, order.extra)
    program = runtime.prepare(Path(order.model), options)
    session = program.session()
    feed = {spec.name: spec.zeros(order.batch) for spec in program.inputs}
    for _ in range(order.runs):
        session.run(feed)
    sys.stdout.write(msgspec.json.encode(MemoryUse(peak_resident(), base)).decode() + "\n")


def peak_resident() -> int:
    """Return the peak resident memory of this process in bytes."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no /proc: not Linux
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
