"""Which runtimes really run a model on this machine?"""

from __future__ import annotations

from edgeml.runtime.facts import probe_runtimes
from edgeml_agent.checks.base import Finding, Grade
from edgeml_agent.config import AgentConfig


def check(config: AgentConfig) -> Finding:
    """Try each in a process of its own: a library built for another processor ends it."""
    tried = probe_runtimes()
    usable = [f"{name} {state.version}" for name, state in tried.items() if state.usable]
    broken = [f"{name}: {s.reason}" for name, s in tried.items() if not s.usable and s.version]
    if not usable:
        reasons = "; ".join(f"{name}: {state.reason}" for name, state in tried.items())
        hint = "pip install 'edgeml-kit[agent]'"
        return Finding("runtimes", Grade.BAD, f"none is usable: {reasons}", hint)
    message = ", ".join(usable)
    if broken:
        return Finding("runtimes", Grade.WARNING, f"{message}; broken: {'; '.join(broken)}")
    return Finding("runtimes", Grade.GOOD, message)
