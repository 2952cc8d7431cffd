"""Measurement: what the fleet holds and shows of candidates that are measured on its devices.

Structs of the standard library's types and msgspec only, as in ``views``.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from edgeml.messages.measuring import FINAL, MeasureStatus
from edgeml.messages.payloads import Ref

RUNNING, DONE, CANCELLED = "running", "done", "cancelled"


class MeasureRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is asked for, besides the bundle of the candidates.

    Attributes:
        selector: Which devices.
        baseline: Id of the variant that the others are compared with.
        rounds: Of the interleaved measurement.
        budget_s: Seconds after which a device begins no new round.
        limit_s: Seconds after which the whole measurement ends.
    """

    selector: str
    baseline: str
    rounds: Annotated[int, msgspec.Meta(ge=6, le=1000)] = 40
    budget_s: Annotated[float, msgspec.Meta(gt=0.0, le=3600.0)] = 60.0
    limit_s: Annotated[float, msgspec.Meta(gt=0.0, le=86_400.0)] = 1800.0


class Measurement(msgspec.Struct, frozen=True, omit_defaults=True):
    """Candidates that are measured, or were, on devices of the fleet.

    Attributes:
        id: Its id.
        state: ``running``, ``done`` (every device said its last word, or time ran out) or
            ``cancelled``.
        ref: The bundle of the candidates.
        size: Length of its OCI manifest.
        profile: Hardware profile of the candidates, and of the devices.
        request: What was asked for.
        author: Who asked.
        created: When.
        numbers: Device -> number of its order.
        parts: Device -> what it said last.
        skipped: Device of the selector -> why it takes no part.
        ended: When it was ended before all had answered; 0 when it was not.
    """

    id: str
    state: str
    ref: Ref
    size: int
    profile: str
    request: MeasureRequest
    author: str
    created: float
    numbers: dict[str, int]
    parts: dict[str, MeasureStatus]
    skipped: dict[str, str] = {}
    ended: float = 0.0

    @property
    def ends(self) -> float:
        """Unix seconds at which it ends, whoever has not answered."""
        return self.created + self.request.limit_s

    @property
    def open(self) -> tuple[str, ...]:
        """Devices whose last word is still to come."""
        return tuple(name for name, part in self.parts.items() if part.state not in FINAL)

    def told(self, device: str, status: MeasureStatus) -> Measurement:
        """Return it with a device's status; what is final does not change any more."""
        part = self.parts.get(device)
        if part is None or part.state in FINAL or status.number != part.number:
            return self
        changed = msgspec.structs.replace(self, parts={**self.parts, device: status})
        if changed.state == RUNNING and not changed.open:
            return msgspec.structs.replace(changed, state=DONE)
        return changed

    def cut(self, now: float, state: str, part_state: str, detail: str) -> Measurement:
        """Return it ended, and every open part with a last word that we give it."""
        parts = {
            name: MeasureStatus(self.id, part.number, part_state, detail)
            if part.state not in FINAL
            else part
            for name, part in self.parts.items()
        }
        return msgspec.structs.replace(self, state=state, parts=parts, ended=now)
