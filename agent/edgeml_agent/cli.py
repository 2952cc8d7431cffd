"""The command line of the agent: a lazy group, from a table of strings."""

from __future__ import annotations

import sys

from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import Row

COMMANDS: dict[str, Row] = {
    "enrol": Row(
        "edgeml_agent.commands:enrol",
        "Make this machine a device of a fleet, from an enrolment file.",
    ),
    "run": Row("edgeml_agent.commands:run", "Run this device's agent until it is told to stop."),
    "serve": Row(
        "edgeml_agent.serve.command:serve", "Serve bundles over HTTP, without a fleet.", "agent"
    ),
    "status": Row(
        "edgeml_agent.commands:status",
        "Show what this device runs, from what its agent wrote down.",
    ),
    "doctor": Row(
        "edgeml_agent.commands:doctor",
        "Check what this device needs: disk, clock, state, trust, runtimes, broker.",
    ),
}


def main() -> None:
    """Entry point of ``edgeml-agent``."""
    group = LazyGroup(COMMANDS, name="edgeml-agent", help="Run models on this device.")
    sys.exit(run(group))
