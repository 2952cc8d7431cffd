"""Controller: the one thread that changes the fleet, between the link and the database.

Messages, requests of people and the clock come in through one queue and are worked off in order,
many in one transaction. Only when that is on disk are acknowledgements, desired states and notes
of change sent out. Every reconnect publishes all desired states again, so that a broker that was
wiped is refilled.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future
from typing import NamedTuple, Protocol, TypeVar, cast

import msgspec
from securesystemslib.signer import Signer
from sqlalchemy.exc import SQLAlchemyError

from edgeml.errors import NotTrustedError, UnreachableError
from edgeml.fleet import inventory, measuring, telemetry
from edgeml.fleet.blocks import BlockServer
from edgeml.fleet.engine import RolloutEngine
from edgeml.fleet.ingest import ingest
from edgeml.fleet.presence import Presence
from edgeml.fleet.store import Store
from edgeml.fleet.views import Change
from edgeml.fleet.work import Work
from edgeml.link.base import Link, LinkMessage
from edgeml.messages import topics
from edgeml.messages.payloads import DesiredState, Rpc, decode, encode
from edgeml.trust import desired as trust_desired
from edgeml.trust import measuring as trust_measuring

logger = logging.getLogger(__name__)

T = TypeVar("T")
_BATCH = 500
_ASK_SECONDS = 30.0
_PRUNE_EVERY = 3600.0
_REMIND_EVERY = 5.0
_EVENTS_AT_ONCE = 5
KEEP_DAYS = 14.0


class Keeper(Protocol):
    """What holds bundles that are measured."""

    def keep(self, digests: Collection[str]) -> None:
        """Remove all bundles but these."""
        ...


class _Question(NamedTuple):
    """Something that people ask for, and where the answer goes."""

    change: Callable[[Work], object]
    answer: Future[object]


#: A message or the clock, a question, or nothing (to wake the thread up).
_Item = Callable[[Work], None] | _Question | None


class Controller:
    """Keeps devices where they should be.

    Args:
        fleet: Name of the fleet.
        store: The database.
        link: The connection to the broker; opened by ``start``, closed by ``stop``.
        signer: The director's key.
        blocks: Answers requests for pieces.
        scratch: Told which bundles of candidates are still measured; None where none ever are.
        clock: Unix seconds.
        tick: Seconds between two looks at the gates.
        keep_days: Older telemetry and events are dropped, at the start and every hour.
    """

    def __init__(
        self,
        fleet: str,
        store: Store,
        link: Link,
        signer: Signer,
        blocks: BlockServer,
        *,
        scratch: Keeper | None = None,
        clock: Callable[[], float] = time.time,
        tick: float = 1.0,
        keep_days: float = KEEP_DAYS,
    ) -> None:
        """Subscribe; nothing moves before ``start`` (or ``work_off``)."""
        self.fleet = fleet
        self.engine = RolloutEngine()
        self.clock = clock
        self.presence = Presence(clock())
        self._store, self._link, self._signer, self._blocks = store, link, signer, blocks
        self._scratch = scratch
        self._tick = tick
        self._next_tick = 0.0
        self._keep = keep_days * 24 * 3600.0
        self._next_prune = 0.0
        self._next_order = 0.0
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._watchers: list[Callable[[Change], None]] = []
        self._next_reminder = 0.0
        self._behind: set[str] = set()
        self._stale = False
        self._clean = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet-controller", daemon=True)
        link.on_connection(self._on_connection)
        link.subscribe(topics.all_up(fleet), self._on_message)

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached now."""
        return self._link.connected

    def start(self) -> None:
        """Connect, and begin to work."""
        self._blocks.start()
        self._thread.start()
        self._link.open()

    def stop(self) -> None:
        """Work off what has come in, then stop and disconnect."""
        self._stopped.set()
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()
        self._blocks.stop()
        self._link.close()

    def watch(self, watcher: Callable[[Change], None]) -> Callable[[], None]:
        """Tell ``watcher`` of every change, on the controller's thread; return how to end it."""
        self._watchers = [*self._watchers, watcher]

        def end() -> None:
            self._watchers = [w for w in self._watchers if w is not watcher]

        return end

    def ask(self, change: Callable[[Work], T]) -> T:
        """Run ``change`` in a transaction of its own on the controller's thread.

        Raises:
            EdgemlError: What ``change`` raised; then nothing was written.
            UnreachableError: The fleet is stopping, or did not come to it in time.
        """
        if self._stopped.is_set():
            raise UnreachableError("the fleet is stopping")
        question = _Question(change, Future())
        self._queue.put(question)
        if not self._thread.is_alive():
            self._work_off(self._take())
        try:
            return cast(T, question.answer.result(_ASK_SECONDS))
        except TimeoutError as error:
            raise UnreachableError("the fleet is busy", "try again in a minute") from error

    # -- what comes in --------------------------------------------------------------------------

    def _on_message(self, message: LinkMessage) -> None:
        address = topics.parse(message.topic)
        if address is None or address.fleet != self.fleet or address.way != "up":
            return
        if address.kind == "block":
            self._blocks.ask(address, message)
        elif address.kind == "rpc":
            self._queue.put(lambda work: _reply(work, address.device, message.payload))
        else:
            self._queue.put(lambda work: ingest(work, self.engine, self.presence, address, message))

    def _on_connection(self, connected: bool) -> None:
        if connected:
            logger.info("broker connected")
            self._queue.put(self._on_connected)
        else:
            if not self._stopped.is_set():
                logger.warning("broker lost: devices keep serving, and are reached again with it")
            self._queue.put(self._on_lost)

    def _on_connected(self, work: Work) -> None:
        """Publish every desired state again: the broker may have been wiped."""
        self.presence.connected(work.now)
        work.desired.update(state.device for state in inventory.all_desired(work.db, ""))
        work.changed("broker")

    def _on_lost(self, work: Work) -> None:
        self.presence.lost(work.now)
        work.changed("broker")

    # -- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped.is_set():
            wait = max(0.0, self._next_tick - time.monotonic())
            try:
                items = [self._queue.get(timeout=wait), *self._take()]
            except queue.Empty:
                items = []
            self._work_off(items)
            if time.monotonic() >= self._next_tick:
                self._next_tick = time.monotonic() + self._tick
                self._guarded([self._on_tick])
        while items := self._take():
            self._work_off(items)

    def work_off(self) -> None:
        """Work off what has come in and look at the gates once, on the caller's thread.

        For simulations that bring their own clock, instead of ``start``.
        """
        while items := self._take():
            self._work_off(items)
        self._guarded([self._on_tick])

    def _take(self) -> list[_Item]:
        """Return what waits in the queue, at most a batch."""
        items: list[_Item] = []
        while len(items) < _BATCH and not self._queue.empty():
            items.append(self._queue.get())
        return items

    def _work_off(self, items: list[_Item]) -> None:
        """Work off items in order: messages together, each question in its own transaction."""
        batch: list[Callable[[Work], None]] = []
        for item in items:
            if isinstance(item, _Question):
                self._guarded(batch)
                batch = []
                self._answer(item)
            elif item is not None:
                batch.append(item)
        self._guarded(batch)

    def _answer(self, question: _Question) -> None:
        results: list[object] = []
        try:
            self._commit([lambda work: results.append(question.change(work))])
        except Exception as error:
            # Also a bug of ours must reach the one who asked, and must not stop the fleet.
            question.answer.set_exception(error)
        else:
            question.answer.set_result(results[0])

    def _guarded(self, batch: list[Callable[[Work], None]]) -> None:
        """Commit a batch; nothing that comes in may stop the thread."""
        try:
            self._commit(batch)
        except SQLAlchemyError as error:
            # Nothing was acknowledged: additive messages come again by themselves, and devices
            # are asked for the rest as soon as the database works.
            logger.error("the database cannot be written: %s", error)
            self._stale = True
        except Exception:
            # A bug that one message meets must not take the others with it.
            if len(batch) == 1:
                logger.exception("internal error, the message is dropped")
                return
            for item in batch:
                self._guarded([item])

    def _commit(self, batch: list[Callable[[Work], None]]) -> None:
        if not batch:
            return
        with self._store.write() as db:
            work = Work(db, self.clock())
            if not self._clean:
                self.engine.load(work)
            self._clean = False  # until this is on disk, memory is ahead of it
            for item in batch:
                item(work)
            self.engine.save(work)
            states = [
                state
                for device in sorted(work.desired)
                if (state := inventory.desired_of(db, self.fleet, device)) is not None
            ]
        self._clean = True
        self._send(work, states)

    def _send(self, work: Work, states: list[DesiredState]) -> None:
        for state in states:
            self._publish(state)
        for (device, boot), sequences in work.acks.items():
            ack = Rpc(id="", method="ack", params={"boot": boot, "sequences": sequences})
            self._link.publish(topics.down(self.fleet, device, "rpc"), encode(ack))
        for order in work.orders:
            mine = msgspec.structs.replace(order, fleet=self.fleet)
            params = {"envelope": trust_measuring.sign(mine, self._signer).decode()}
            work.calls.append((order.device, Rpc(id=order.id, method="measure", params=params)))
        for device, call in work.calls:
            self._link.publish(topics.down(self.fleet, device, "rpc"), encode(call), qos=0)
        for change in work.changes:
            for watcher in self._watchers:
                watcher(change)

    def _publish(self, state: DesiredState) -> None:
        # QoS 0, because brokers queue QoS 1 for who is away: a device that comes back would be
        # given every order that it missed, also one that has been taken back since. What counts
        # is the retained slot. A message that is lost on the way is sent again by _remind.
        topic = topics.down(self.fleet, state.device, "desired")
        self._link.publish(topic, trust_desired.sign(state, self._signer), retain=True, qos=0)

    def _on_tick(self, work: Work) -> None:
        if self._stale:
            self._stale = False
            self._ask_again(inventory.all_devices(work.db))
        self.engine.tick(work)
        self._tell_moves(work)
        self._remind(work)
        if work.now >= self._next_order:
            self._next_order = work.now + measuring.REPEAT
            needed = measuring.tick(work, inventory.all_devices(work.db))
            if self._scratch is not None:
                self._scratch.keep(needed)
        if work.now >= self._next_prune:
            self._next_prune = work.now + _PRUNE_EVERY
            telemetry.prune(work.db, work.now - self._keep)

    def _remind(self, work: Work) -> None:
        """Publish again what devices that are online have not taken up for a while."""
        if work.now < self._next_reminder:
            return
        self._next_reminder = work.now + _REMIND_EVERY
        devices = inventory.all_devices(work.db)
        behind = {
            state.device
            for state in inventory.all_desired(work.db, self.fleet)
            if (device := devices.get(state.device)) is not None and device.online
            if device.reported is not None and device.reported.generation < state.generation
        }
        work.desired.update(behind & self._behind)
        self._behind = behind
        self._ask_again(self.presence.to_ask(devices, work.now))

    def _ask_again(self, devices: Iterable[str]) -> None:
        """Ask devices to say again who they are and what they hold."""
        for device in devices:
            again = Rpc(id="", method="rebirth")
            self._link.publish(topics.down(self.fleet, device, "rpc"), encode(again))

    def _tell_moves(self, work: Work) -> None:
        """Keep an event of each device that came or went; one of all when many did at once."""
        for names, kind, what in zip(
            self.presence.moved(), ("offline", "online"), ("went offline", "came back"), strict=True
        ):
            if len(names) > _EVENTS_AT_ONCE:
                told = f"{len(names)} devices {what}: {', '.join(names[:3])} and more"
                telemetry.add_event(work.db, kind, "info", told, work.now)
            else:
                for name in names:
                    telemetry.add_event(work.db, kind, "info", f"{name} {what}", work.now, name)
            if names:
                work.changed("event")


def _reply(work: Work, device: str, payload: bytes) -> None:
    """Take a device's answer to a request; one that cannot be understood is logged."""
    try:
        measuring.replied(work, device, decode(payload, Rpc))
    except NotTrustedError as error:
        logger.warning("answer of %s is dropped: %s", device, error)
