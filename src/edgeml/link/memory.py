"""An in-memory broker and its links: the twin of ``mqtt`` for tests and simulation.

Same promises as a real broker (retained slots, wills, QoS 1 with sessions that wait for their
owner), no threads, no clock. A message that is published goes into the queue of every session
that asked for it. ``deliver`` empties the queues in a fixed order; unless ``immediate`` is off,
every publish does so itself. A plan of faults, drawn from a seed, loses, doubles and reorders.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from typing import Final

import msgspec

from edgeml.errors import InternalError
from edgeml.link.base import ConnectionHandler, Handler, LinkMessage, Will
from edgeml.link.match import dispatch, matches, tell
from edgeml.messages.payloads import MAX_PAYLOAD

#: Messages that wait for a session; the newest are dropped, as mosquitto does by default.
MAX_QUEUED: Final = 1000


class Faults(msgspec.Struct, frozen=True):
    """How often the network misbehaves, as probabilities per delivery.

    Attributes:
        seed: The same seed gives the same faults.
        drop: QoS 0 is lost; QoS 1 is delivered again after everything else that waits. Below 1.
        duplicate: Delivered twice.
        reorder: Delivered after its successor.
    """

    seed: int = 0
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0


class _Waiting(msgspec.Struct):
    message: LinkMessage
    qos: int


class _Session:
    """What the broker knows of one client id."""

    def __init__(self) -> None:
        self.link: MemoryLink | None = None
        self.patterns: list[str] = []
        self.waiting: deque[_Waiting] = deque()

    def offer(self, message: LinkMessage, qos: int) -> None:
        """Queue a message; QoS 0 does not wait for who is away."""
        if (self.link is not None or qos > 0) and len(self.waiting) < MAX_QUEUED:
            self.waiting.append(_Waiting(message, qos))


class MemoryBroker:
    """A broker in this process. Safe from any thread; handlers run on the delivering one.

    Args:
        faults: What goes wrong; None for nothing.
        immediate: Whether every publish delivers at once. Otherwise ``deliver`` does.
    """

    def __init__(self, faults: Faults | None = None, *, immediate: bool = True) -> None:
        """Start empty, running."""
        self._faults = faults or Faults()
        self._random = random.Random(self._faults.seed)
        self._immediate = immediate
        self._lock = threading.RLock()
        self._delivering = False
        self._sessions: dict[str, _Session] = {}
        self._links: dict[str, MemoryLink] = {}  # every open link, connected or not
        self._running = True
        self.retained: dict[str, bytes] = {}

    # -- for tests and simulations --------------------------------------------------------------

    def deliver(self, limit: int | None = None) -> int:
        """Deliver what waits, including what handlers publish meanwhile.

        Args:
            limit: At most so many deliveries.

        Returns:
            How many were made. 0 when another call is at it: that one will deliver.
        """
        with self._lock:
            if self._delivering:
                return 0
            self._delivering = True
        count = 0
        try:
            while limit is None or count < limit:
                if not self._deliver_one():
                    return count  # and the mark is gone already
                count += 1
        except BaseException:
            self._delivering = False
            raise
        self._delivering = False
        return count

    def cut(self, client_id: str) -> None:
        """Break a client's connection: its will is published, and it stays away."""
        with self._lock:
            link = self._links.get(client_id)
            session = self._sessions.get(client_id)
            if link is None or session is None or session.link is None:
                return
            session.link = None
            will = link.will
        link.lose()
        if will is not None:
            self.publish(will.topic, will.payload, retain=True, qos=1)

    def restore(self, client_id: str) -> None:
        """Let a client that was cut come back."""
        with self._lock:
            link = self._links.get(client_id)
        if link is not None and not link.connected:
            self.attach(link)

    def stop(self) -> None:
        """Go away; every link loses its connection, and nobody publishes a will."""
        with self._lock:
            self._running = False
            lost = [session.link for session in self._sessions.values() if session.link]
            for session in self._sessions.values():
                session.link = None
        for link in lost:
            link.lose()

    def start(self, *, wipe: bool = False) -> None:
        """Come back; open links reconnect. ``wipe`` forgets retained slots and sessions."""
        with self._lock:
            self._running = True
            if wipe:
                self.retained.clear()
                self._sessions.clear()
            links = list(self._links.values())
        for link in links:
            if not link.connected:
                self.attach(link)

    # -- for links ------------------------------------------------------------------------------

    def attach(self, link: MemoryLink) -> None:
        """Connect a link, taking the session of its id over from an earlier one."""
        with self._lock:
            self._links[link.client_id] = link
            if not self._running:
                return
            session = self._sessions.setdefault(link.client_id, _Session())
            earlier, session.link = session.link, link
        if earlier is not None and earlier is not link:
            earlier.lose()
        link.gain()
        self._settle()

    def detach(self, link: MemoryLink) -> None:
        """Disconnect a link gracefully; its session stays."""
        with self._lock:
            if self._links.get(link.client_id) is link:
                del self._links[link.client_id]
            session = self._sessions.get(link.client_id)
            if session is not None and session.link is link:
                session.link = None

    def subscribe(self, link: MemoryLink, pattern: str) -> None:
        """Add a pattern to a link's session and queue the retained messages that fit."""
        with self._lock:
            session = self._sessions.get(link.client_id)
            if session is None or session.link is not link:
                return
            if pattern not in session.patterns:
                session.patterns.append(pattern)
            for topic, payload in self.retained.items():
                if matches(pattern, topic):
                    session.offer(LinkMessage(topic, payload, retained=True), 1)
        self._settle()

    def publish(self, topic: str, payload: bytes, *, retain: bool, qos: int) -> None:
        """Keep a message where it is to be kept, and queue it for who asked for it."""
        with self._lock:
            if retain and payload:
                self.retained[topic] = payload
            elif retain:
                self.retained.pop(topic, None)
            for session in self._sessions.values():
                if any(matches(pattern, topic) for pattern in session.patterns):
                    session.offer(LinkMessage(topic, payload), qos)
        self._settle()

    def _settle(self) -> None:
        if self._immediate:
            self.deliver()

    def _deliver_one(self) -> bool:
        """Make one delivery; False when nothing waits for anybody who is here."""
        with self._lock:
            for session in self._sessions.values():
                if session.link is not None and session.waiting:
                    link, times, item = session.link, 1, self._next(session)
                    break
            else:
                # In the same breath as the look: what is queued later finds nobody at it.
                self._delivering = False
                return False
            if self._chance(self._faults.drop):
                times = 0
                if item.qos > 0:
                    session.waiting.append(item)
            elif self._chance(self._faults.duplicate):
                times = 2
        # Outside the lock: a handler may publish, and so may other threads.
        for _ in range(times):
            link.receive(item.message)
        return True

    def _next(self, session: _Session) -> _Waiting:
        if len(session.waiting) > 1 and self._chance(self._faults.reorder):
            first = session.waiting.popleft()
            second = session.waiting.popleft()
            session.waiting.appendleft(first)
            return second
        return session.waiting.popleft()

    def _chance(self, probability: float) -> bool:
        return probability > 0 and self._random.random() < probability


class MemoryLink:
    """A link to a ``MemoryBroker`` (see ``edgeml.link.base.Link``).

    Args:
        broker: The broker.
        client_id: Our id; also the name of the session.
        will: What the broker says for us when we are gone.
    """

    def __init__(self, broker: MemoryBroker, client_id: str, will: Will | None = None) -> None:
        """Keep the settings; ``open`` connects."""
        self.client_id, self.will = client_id, will
        self._broker = broker
        self._subscriptions: list[tuple[str, Handler]] = []
        self._connection_handlers: list[ConnectionHandler] = []
        self._connected = threading.Event()
        self._opened = False
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached now."""
        return self._connected.is_set()

    def subscribe(self, pattern: str, handler: Handler) -> None:
        """Hand every message that fits ``pattern`` to ``handler``, now and after reconnects."""
        self._subscriptions.append((pattern, handler))
        self._broker.subscribe(self, pattern)

    def on_connection(self, handler: ConnectionHandler) -> None:
        """Call ``handler(True)`` after every connect, ``handler(False)`` after every loss."""
        self._connection_handlers.append(handler)

    def open(self) -> None:
        """Connect, or wait for the broker to come.

        Raises:
            InternalError: The link is open, or was closed.
        """
        if self._opened:
            raise InternalError("a link is opened once")
        self._opened = True
        self._broker.attach(self)

    def wait_connected(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds for a connection; tell whether there is one."""
        return self._connected.wait(timeout)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        qos: int = 1,
        expiry: int | None = None,
    ) -> bool:
        """Send a message; ``expiry`` has no meaning where there is no clock.

        Raises:
            InternalError: The payload is longer than ``MAX_PAYLOAD``.
        """
        if len(payload) > MAX_PAYLOAD:
            raise InternalError(
                f"payload of {len(payload)} bytes for '{topic}', expected at most {MAX_PAYLOAD}"
            )
        if not self.connected:
            return False
        self._broker.publish(topic, payload, retain=retain, qos=qos)
        return True

    def close(self) -> None:
        """Disconnect gracefully (the will is not sent). Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._broker.detach(self)
        self.lose()

    # -- for the broker -------------------------------------------------------------------------

    def gain(self) -> None:
        """The broker has connected us: subscribe again, then tell."""
        self._connected.set()
        for pattern in dict.fromkeys(pattern for pattern, _ in self._subscriptions):
            self._broker.subscribe(self, pattern)
        tell(list(self._connection_handlers), True)

    def lose(self) -> None:
        """The connection is gone; told once."""
        if self._connected.is_set():
            self._connected.clear()
            tell(list(self._connection_handlers), False)

    def receive(self, message: LinkMessage) -> None:
        """A message has come; acknowledged when this returns."""
        dispatch(list(self._subscriptions), message)
