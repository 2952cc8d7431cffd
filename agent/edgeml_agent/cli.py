"""The command line of the agent: a lazy group, from a table of strings."""

from __future__ import annotations

import sys

from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import Row

COMMANDS: dict[str, Row] = {}


def main() -> None:
    """Entry point of ``edgeml-agent``."""
    group = LazyGroup(COMMANDS, name="edgeml-agent", help="Run models on this device.")
    sys.exit(run(group))
