"""Starts a module as a process that dies with its parent: ``python -m edgeml_agent.child``.

Linux sends the signal when the *thread* that made the process ends, so a parent must start its
children from a thread that lives as long as itself.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent is gone; a no-op where it cannot.

    Args:
        parent: Process id of the parent; when it is gone already, this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module as a child that dies with this process."""
    return [sys.executable, "-m", "edgeml_agent.child", str(os.getpid()), module, *arguments]


def main() -> None:
    """Tie this process to its parent, and become the module."""
    parent, module, *arguments = sys.argv[1:]
    die_with_parent(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
