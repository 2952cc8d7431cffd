"""Is there room for the next version?"""

from __future__ import annotations

import shutil
from pathlib import Path

from edgeml_agent.checks.base import Finding, Grade
from edgeml_agent.config import AgentConfig
from edgeml_agent.slots import MARGIN


def check(config: AgentConfig) -> Finding:
    """Compare the free space with the margin that every download must leave."""
    folder = Path(config.state)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    message = f"{free >> 20} MiB free in {folder}"
    if free < MARGIN:
        return Finding("disk", Grade.BAD, message, f"at least {MARGIN >> 20} MiB are needed")
    if free < 8 * MARGIN:
        return Finding("disk", Grade.WARNING, message, "larger models will not fit")
    return Finding("disk", Grade.GOOD, message)
