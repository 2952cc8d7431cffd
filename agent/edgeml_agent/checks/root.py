"""Is the root of trust there and whole?"""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgeml.errors import NotTrustedError
from edgeml.trust.client import TrustClient
from edgeml_agent.checks.base import Finding, Grade
from edgeml_agent.config import AgentConfig


def check(config: AgentConfig) -> Finding:
    """Verify the root of trust by its own signatures."""
    try:
        root = Path(config.root).read_bytes()
        with tempfile.TemporaryDirectory() as scratch:
            TrustClient(Path(scratch), root, _no_network)
    except (OSError, NotTrustedError) as error:
        return Finding("root", Grade.BAD, f"{config.root}: {error}", "enrol this device again")
    return Finding("root", Grade.GOOD, f"{config.root} is signed by itself")


def _no_network(name: str) -> bytes:
    raise FileNotFoundError(name)
