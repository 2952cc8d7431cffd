"""Runs a command to its end, and tells its time and the memory of its largest process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Runs a command, and adds one line: peak memory in bytes of the largest process below it. A
#: process of its own, because the system counts over all that one has waited for.
_WATCH = """
import json, resource, subprocess, sys, time
start = time.monotonic()
try:
    code = subprocess.run(sys.argv[2:], timeout=float(sys.argv[1])).returncode
except subprocess.TimeoutExpired:
    code = 124
used = resource.getrusage(resource.RUSAGE_CHILDREN)
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({"code": code, "seconds": time.monotonic() - start,
                  "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss * unit}))
"""


@dataclass(frozen=True)
class Done:
    """How a command ended.

    Attributes:
        code: Its exit code; 124 when it took too long.
        seconds: Wall time.
        cpu: Processor time of all its processes.
        peak_bytes: Resident memory of the largest of its processes, at its peak.
        out: What it wrote to standard output.
        error: The last two lines of its standard error.
    """

    code: int
    seconds: float
    cpu: float
    peak_bytes: int
    out: str
    error: str


def run(command: Sequence[str], limit_s: float, env: Mapping[str, str] | None = None) -> Done:
    """Run a command; ``env`` is added to the environment."""
    whole = [sys.executable, "-I", "-c", _WATCH, str(limit_s), *command]
    done = subprocess.run(
        whole, capture_output=True, text=True, check=True, env={**os.environ, **(env or {})}
    )
    out, _, last = done.stdout.rstrip("\n").rpartition("\n")
    told = json.loads(last)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    error = " | ".join(lines[-2:])[:400]
    return Done(told["code"], told["seconds"], told["cpu"], told["peak"], out, error)
