"""Link: what the agent and the fleet need of MQTT, and no more.

Relies on retained slots, a last will and QoS 1 only, so that any MQTT 3.1.1 broker will do. A
handler runs on the link's own thread and must be quick; a message is acknowledged to the broker
after its handler has returned, so what the handler stored on disk is never lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec


class LinkMessage(msgspec.Struct, frozen=True):
    """A message that came in.

    Attributes:
        topic: Full topic.
        payload: Its bytes.
        retained: Whether the broker had kept it before we subscribed.
    """

    topic: str
    payload: bytes
    retained: bool = False


class Will(msgspec.Struct, frozen=True):
    """What the broker says for us when we are gone (always retained, QoS 1)."""

    topic: str
    payload: bytes


Handler = Callable[[LinkMessage], None]
ConnectionHandler = Callable[[bool], None]


class Link(Protocol):
    """A connection that comes back by itself."""

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached now."""
        ...

    def subscribe(self, pattern: str, handler: Handler) -> None:
        """Hand every message that fits ``pattern`` (``+`` and ``#`` allowed) to ``handler``.

        May be called before or after ``open``; holds over reconnects. What was not asked for is
        dropped.
        """
        ...

    def on_connection(self, handler: ConnectionHandler) -> None:
        """Call ``handler(True)`` after every connect, ``handler(False)`` after every loss."""
        ...

    def open(self) -> None:
        """Start to connect, and return at once; goes on trying with back-off until closed."""
        ...

    def wait_connected(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds for a connection; tell whether there is one."""
        ...

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        qos: int = 1,
        expiry: int | None = None,
    ) -> bool:
        """Send a message; safe from any thread.

        Args:
            topic: Full topic.
            payload: Its bytes; empty with ``retain`` clears the slot.
            retain: Whether the broker keeps it for later subscribers.
            qos: 0 or 1.
            expiry: Seconds after which it is worthless (MQTT 5; ignored on 3.1.1).

        Returns:
            Whether it was handed to the network. What must not be lost is kept by the sender
            until the other side's application has acknowledged it.
        """
        ...

    def close(self) -> None:
        """Disconnect gracefully (the will is not sent). Safe to call twice."""
        ...
