"""The shape of a check: a function of the configuration that returns one Finding."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import msgspec

from edgeml_agent.config import AgentConfig


class Grade(StrEnum):
    """How good a finding is."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a check found.

    Attributes:
        name: The check.
        grade: How good it is.
        message: What was found.
        hint: What to do about it; empty when it is good.
    """

    name: str
    grade: Grade
    message: str
    hint: str = ""


class Check(Protocol):
    """One check; it changes nothing on the device but a file of its own that it removes."""

    def __call__(self, config: AgentConfig) -> Finding:
        """Look, and say what was found. Never raises for what it looks for."""
        ...
