"""The command line: a lazy group, from a table of strings.

``edgeml --help`` imports no command: names and one-line helps stand in ``edgeml.cli.table``.
"""

from __future__ import annotations

import sys

from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import COMMANDS


def main() -> None:
    """Entry point of ``edgeml``."""
    group = LazyGroup(
        COMMANDS,
        name="edgeml",
        help="Convert models, run them on edge devices, and manage the fleet.",
    )
    sys.exit(run(group))
