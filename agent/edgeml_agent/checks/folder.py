"""Can the state folder be written, and is it durable?"""

from __future__ import annotations

import errno
from pathlib import Path

from edgeml.errors import DeviceError
from edgeml_agent import durable
from edgeml_agent.checks.base import Finding, Grade
from edgeml_agent.config import AgentConfig


def check(config: AgentConfig) -> Finding:
    """Write, sync and remove a small file; look whether others may enter."""
    folder = Path(config.state)
    probe = folder / ".doctor"
    try:
        durable.private_folder(folder)
        durable.write(probe, b"probe")
        probe.unlink()
    except (OSError, DeviceError) as error:
        code = error.errno if isinstance(error, OSError) else None
        full = code in (errno.ENOSPC, errno.EDQUOT)
        hint = "make room on the disk" if full else "check its owner"
        if code == errno.EROFS:
            hint = "the disk is read-only: check it, and mount it again"
        return Finding("state", Grade.BAD, f"cannot write {folder}: {error}", hint)
    if folder.stat().st_mode & 0o077:
        return Finding("state", Grade.WARNING, f"others may enter {folder}", f"chmod 700 {folder}")
    return Finding("state", Grade.GOOD, f"{folder} can be written")
