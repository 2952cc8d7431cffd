"""Runtime -> Program -> Session, DeviceFacts of this machine, and measurement."""

from __future__ import annotations

from functools import cache

from edgeml.plugins import load, table
from edgeml.runtime.base import Availability, Program, ProgramOptions, Runtime, Session

__all__ = [
    "Availability",
    "Program",
    "ProgramOptions",
    "Runtime",
    "Session",
    "get_runtime",
    "runtime_names",
]


@cache
def get_runtime(name: str) -> Runtime:
    """Return the runtime with this name.

    Raises:
        UsageError: No such runtime; the hint gives the nearest.
    """
    runtime: Runtime = load("runtimes", name)()
    return runtime


def runtime_names() -> tuple[str, ...]:
    """Return the names of all known runtimes, built-ins and plug-ins, usable here or not."""
    return tuple(table("runtimes"))
