"""What the agent checks of itself and its device, one file each."""

from __future__ import annotations

from edgeml_agent.checks import broker, clock, disk, folder, root, runtimes
from edgeml_agent.checks.base import Check, Finding, Grade

#: In the order in which they are run.
CHECKS: tuple[Check, ...] = (
    folder.check,
    disk.check,
    clock.check,
    root.check,
    runtimes.check,
    broker.check,
)

__all__ = ["CHECKS", "Check", "Finding", "Grade"]
