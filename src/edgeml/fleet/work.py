"""Work: one transaction of the controller, and what must be sent once it is on disk."""

from __future__ import annotations

import sqlalchemy as sa

from edgeml.fleet.views import Change
from edgeml.messages.measuring import MeasureOrder
from edgeml.messages.payloads import Rpc


class Work:
    """What a batch of messages leads to.

    Nothing leaves the process before the transaction is on disk: an acknowledgement means that
    the message is stored, and a generation that was published is never given out again.

    Args:
        db: The open transaction.
        now: Unix seconds; the same for the whole batch.
    """

    def __init__(self, db: sa.Connection, now: float) -> None:
        """Start with nothing to send."""
        self.db = db
        self.now = now
        #: (device, boot) -> sequences that were applied.
        self.acks: dict[tuple[str, str], list[int]] = {}
        #: Devices whose desired state has changed.
        self.desired: set[str] = set()
        #: Orders to measure, and requests to devices: (device, request).
        self.orders: list[MeasureOrder] = []
        self.calls: list[tuple[str, Rpc]] = []
        self.changes: dict[Change, None] = {}

    def changed(self, kind: str, name: str = "") -> None:
        """Remember what those who watch should look at again."""
        self.changes[Change(kind, name)] = None
