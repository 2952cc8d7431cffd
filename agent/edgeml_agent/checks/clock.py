"""Can the clock be believed?"""

from __future__ import annotations

import time

from edgeml_agent.checks.base import Finding, Grade
from edgeml_agent.clock import Clock
from edgeml_agent.config import AgentConfig


def check(config: AgentConfig) -> Finding:
    """Compare the wall clock with the date of this release."""
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if Clock().trusted():
        return Finding("clock", Grade.GOOD, now)
    return Finding(
        "clock",
        Grade.WARNING,
        f"{now} is before this release",
        "set it (NTP); until then expiry dates are not judged",
    )
