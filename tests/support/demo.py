"""How the tests call the demo, and see whether it left anything behind."""

import os
import sys
from pathlib import Path

DEMO = [sys.executable, "-m", "edgeml.cli", "demo"]


def children_below(folder):
    """Command lines of processes that still mention a folder."""
    found = []
    for folder_of in Path("/proc").glob("[0-9]*"):
        try:
            words = (
                (folder_of / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
        except OSError:
            continue
        if str(folder) in words and folder_of.name != str(os.getpid()):
            found.append(words)
    return found
