"""Live: what the pages show, read once a second however many people look.

A page asks every second. Who comes first makes the snapshot, in a worker thread; the others get the
same one. What has not changed since (the fleet tells) is not read again; nobody looking costs
nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TypeVar, cast

import msgspec

from edgeml.fleet.dashboard.traffic import Point, Stats, Traffic
from edgeml.fleet.services import Services
from edgeml.fleet.views import Change, DeviceRow, EventRow, RolloutRow, VersionRow

T = TypeVar("T")
#: Seconds that a snapshot is good for.
FRESH = 0.9
#: Seconds after which everything is read again, whatever the fleet has told.
_ALL = 15.0
_KINDS = frozenset({"device", "rollout", "model", "event", "broker"})
_FORGET = 60.0


class Snapshot(msgspec.Struct, frozen=True):
    """The fleet at one moment.

    Attributes:
        at: Unix seconds.
        connected: Whether the broker can be reached.
        lost_for: For how many seconds it could not be; 0 while it can.
        stats: Device -> its traffic of the last minute.
        versions_stats: (model, version) -> traffic of the last five minutes.
        curve: Requests per second of the fleet, oldest first.
    """

    at: float
    fleet: str
    connected: bool
    lost_for: float
    devices: tuple[DeviceRow, ...]
    versions: tuple[VersionRow, ...]
    rollouts: tuple[RolloutRow, ...]
    events: tuple[EventRow, ...]
    stats: dict[str, Stats]
    versions_stats: dict[tuple[str, str], Stats]
    curve: tuple[tuple[float, float], ...]


class Live:
    """Snapshots of a fleet, shared by all who look."""

    def __init__(self, services: Services) -> None:
        """Start to listen for changes."""
        self.services = services
        self._traffic = Traffic(services.windows)
        self._changed: set[str] = set(_KINDS)
        self._guard = threading.Lock()
        self._read_all = 0.0
        self._snapshot: Snapshot | None = None
        self._kept: dict[object, tuple[float, object]] = {}
        self._locks: dict[object, asyncio.Lock] = {}
        self._end = services.subscribe(self._on_change)

    def close(self) -> None:
        """Listen no longer."""
        self._end()

    def _on_change(self, change: Change) -> None:
        with self._guard:
            self._changed.add(change.kind)

    async def shared(self, key: object, make: Callable[[], T]) -> T:
        """Return what ``make`` returned less than a second ago, for whomever it was.

        Raises:
            EdgemlError: What ``make`` raised; that is not kept.
        """
        self._forget(time.monotonic() - _FORGET)
        async with self._locks.setdefault(key, asyncio.Lock()):
            made, value = self._kept.get(key, (0.0, None))
            if time.monotonic() - made < FRESH:
                return cast(T, value)
            fresh = await asyncio.to_thread(make)
            self._kept[key] = (time.monotonic(), fresh)
            return fresh

    def _forget(self, before: float) -> None:
        """Drop what nobody has asked for lately."""
        for key in [k for k, lock in self._locks.items() if not lock.locked()]:
            if self._kept.get(key, (0.0, None))[0] < before:
                self._kept.pop(key, None)
                del self._locks[key]

    async def snapshot(self) -> Snapshot:
        """Return the fleet as it is now, at most a second old."""
        return await self.shared("snapshot", self._make)

    def history(self, device: str) -> list[Point]:
        """Return the last windows of a device; call it only after ``snapshot``."""
        return self._traffic.history(device)

    def _make(self) -> Snapshot:
        now = time.time()
        with self._guard:
            changed, self._changed = self._changed, set()
        if self._snapshot is None or now - self._read_all > _ALL:
            changed, self._read_all = set(_KINDS), now
        old, services = self._snapshot, self.services
        if old is not None and not changed:
            self._snapshot = msgspec.structs.replace(
                old, at=now, connected=services.connected, lost_for=services.lost_for
            )
            return self._snapshot
        try:
            self._traffic.update(now)
            self._snapshot = Snapshot(
                at=now,
                fleet=services.fleet,
                connected=services.connected,
                lost_for=services.lost_for,
                devices=old.devices
                if old and not changed & {"device", "rollout", "broker"}
                else tuple(services.devices()),
                versions=old.versions
                if old and not changed & {"model", "rollout"}
                else tuple(services.versions()),
                rollouts=old.rollouts
                if old and not changed & {"rollout", "device"}
                else tuple(services.rollouts()),
                events=old.events if old and "event" not in changed else tuple(services.events()),
                stats=self._traffic.devices(now),
                versions_stats=self._traffic.versions(now),
                curve=tuple(self._traffic.curve(now)),
            )
        except BaseException:
            # What was not read is still to be read.
            with self._guard:
                self._changed |= changed
            raise
        return self._snapshot
