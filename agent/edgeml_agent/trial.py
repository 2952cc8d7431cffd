"""Trial: does the new version do no harm? Pure; looked at every second or so."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from edgeml.messages.payloads import CALLER_ERRORS
from edgeml_agent.control import SlotStatus

#: Failures that are the caller's fault or the load's, not the model's.
NOT_HARM = CALLER_ERRORS | {"overload", "deadline"}
_MIN_ERRORS = 3
_MAX_SHARE = 0.1
_MIN_PROBES = 2


class Judgement(StrEnum):
    """What a trial has come to."""

    GOING = "going"
    PASSED = "passed"
    HARMED = "harmed"


class Trial(msgspec.Struct, frozen=True):
    """What a trial asks for.

    Attributes:
        requests: Served requests that are enough.
        seconds: Or this long, when every golden probe was right.
        was_degraded: Whether the version before it ran on a fallback already.
    """

    requests: int
    seconds: float
    was_degraded: bool = False

    def judge(self, status: SlotStatus, elapsed: float, probes: int) -> tuple[Judgement, str]:
        """Judge what is known so far.

        Args:
            status: Of the new version.
            elapsed: Seconds since it serves (monotonic).
            probes: Golden probes that were right.

        Returns:
            The judgement, and for harm the reason.
        """
        failed = {kind: n for kind, n in status.errors.items() if kind not in NOT_HARM and n}
        errors = sum(failed.values())
        total = status.requests + errors
        if errors >= _MIN_ERRORS and errors > _MAX_SHARE * total:
            kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(failed.items()))
            return (
                Judgement.HARMED,
                f"{errors} of {total} requests failed in the trial ({kinds}), "
                f"expected at most {_MAX_SHARE:.0%}",
            )
        if status.degraded and not self.was_degraded:
            return Judgement.HARMED, f"runs on a fallback in the trial: {status.degraded}"
        enough = status.requests >= self.requests or elapsed >= self.seconds
        if enough and probes >= _MIN_PROBES:
            return Judgement.PASSED, ""
        return Judgement.GOING, ""
