"""Does the broker answer?"""

from __future__ import annotations

import socket

from edgeml_agent.checks.base import Finding, Grade
from edgeml_agent.config import AgentConfig

_TIMEOUT = 5.0


def check(config: AgentConfig) -> Finding:
    """Open a TCP connection to the broker, and close it."""
    where = f"{config.broker.host}:{config.broker.port}"
    try:
        socket.create_connection((config.broker.host, config.broker.port), _TIMEOUT).close()
    except OSError as error:
        return Finding(
            "broker",
            Grade.BAD,
            f"{where} does not answer: {error}",
            "models are served all the same; check network and address",
        )
    return Finding("broker", Grade.GOOD, f"{where} answers")
