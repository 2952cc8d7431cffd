"""Telemetry windows and events: applied once each, and summed up for gates and pages.

A window belongs to one version in one slot. When it began is told by the device's own clock when
that is trusted (but never later than it came in), else by when it came in less its length.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa

from edgeml.fleet import tables
from edgeml.fleet.inventory import text
from edgeml.gates import Arm
from edgeml.messages.payloads import CALLER_ERRORS, Event, Telemetry
from edgeml.stats.buckets import LATENCY_BOUNDS

_windows = tables.windows
_events = tables.events


class VersionCounts(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sums over the windows of one version.

    Attributes:
        devices: Devices that sent any.
        seconds: Length of all windows together.
        latency: Counts per bucket of ``edgeml.stats.buckets.LATENCY_BOUNDS``.
    """

    model: str
    version: str
    digest: str
    devices: int = 0
    seconds: float = 0.0
    requests: int = 0
    errors: int = 0
    fallbacks: int = 0
    labelled: int = 0
    correct: int = 0
    latency: tuple[int, ...] = ()


class StoredEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event with its place in the order in which events came in.

    Attributes:
        id: Rises with every event.
        device: Who sent it; empty for the fleet itself.
        received: When it came in, in Unix seconds.
    """

    id: int
    device: str
    kind: str
    severity: str
    message: str
    received: float
    wall: float = 0.0
    data: dict[str, Any] = {}


class Window(msgspec.Struct, frozen=True):
    """One stored window, as far as charts need it.

    Attributes:
        received: When it came in, in Unix seconds.
        latency: Counts per bucket of ``edgeml.stats.buckets.LATENCY_BOUNDS``; may be empty.
    """

    device: str
    boot: str
    sequence: int
    model: str
    version: str
    received: float
    seconds: float
    requests: int
    errors: int
    fallbacks: int
    labelled: int
    correct: int
    latency: tuple[int, ...]


def apply_window(db: sa.Connection, window: Telemetry, now: float) -> bool:
    """Keep a window; tell whether it is new."""
    key = (window.device, window.boot, window.sequence)
    same = sa.and_(
        _windows.c.device == key[0], _windows.c.boot == key[1], _windows.c.sequence == key[2]
    )
    if db.scalar(sa.select(_windows.c.device).where(same)) is not None:
        return False
    began = min(window.wall, now) if window.wall > 0 else now - window.seconds
    usable = len(window.latency) == len(LATENCY_BOUNDS) + 1
    row = {
        "device": window.device,
        "boot": window.boot,
        "sequence": window.sequence,
        "slot": window.slot,
        "model": window.ref.model,
        "version": window.ref.version,
        "digest": window.ref.digest,
        "began": began,
        "received": now,
        "seconds": window.seconds,
        "requests": window.requests,
        "errors": sum(n for kind, n in window.errors.items() if kind not in CALLER_ERRORS),
        "error_kinds": text(window.errors),
        "latency": text(window.latency if usable else ()),
        "fallbacks": window.fallbacks,
        "labelled": window.labelled,
        "correct": window.correct,
        "drift": window.drift,
        "gauges": text(window.gauges),
    }
    db.execute(_windows.insert(), row)
    return True


def apply_event(db: sa.Connection, event: Event, now: float) -> bool:
    """Keep an event; tell whether it is new."""
    same = sa.and_(
        _events.c.device == event.device,
        _events.c.boot == event.boot,
        _events.c.sequence == event.sequence,
    )
    if db.scalar(sa.select(_events.c.id).where(same)) is not None:
        return False
    row = {
        "device": event.device,
        "boot": event.boot,
        "sequence": event.sequence,
        "kind": event.kind,
        "severity": event.severity,
        "message": event.message,
        "wall": event.wall,
        "received": now,
        "data": text(event.data),
    }
    db.execute(_events.insert(), row)
    return True


def add_event(
    db: sa.Connection, kind: str, severity: str, message: str, now: float, device: str = ""
) -> None:
    """Keep an event of the fleet itself (about ``device``, when one is given)."""
    last = db.scalar(sa.select(sa.func.max(_events.c.sequence)).where(_events.c.boot == "fleet"))
    row = {
        "device": device,
        "boot": "fleet",
        "sequence": (last or 0) + 1,
        "kind": kind,
        "severity": severity,
        "message": message,
        "wall": now,
        "received": now,
        "data": "{}",
    }
    db.execute(_events.insert(), row)


def list_events(
    db: sa.Connection, after: int = 0, limit: int = 100, device: str = ""
) -> list[StoredEvent]:
    """Return the newest events with an id above ``after``, newest first."""
    query = sa.select(_events).where(_events.c.id > after).order_by(_events.c.id.desc())
    if device:
        query = query.where(_events.c.device == device)
    return [
        StoredEvent(
            id=row.id,
            device=row.device,
            kind=row.kind,
            severity=row.severity,
            message=row.message,
            received=row.received,
            wall=row.wall,
            data=msgspec.json.decode(row.data),
        )
        for row in db.execute(query.limit(limit))
    ]


def arm(
    db: sa.Connection, slot: str, since: float, digest: str, devices: Collection[str], new: bool
) -> Arm:
    """Sum the windows of one arm since a moment.

    Args:
        db: Open transaction.
        slot: The slot.
        since: Windows that began earlier do not count.
        digest: The new version.
        devices: The arm's devices.
        new: Whether the windows of the new version count, or those of the others.
    """
    c = _windows.c
    version = c.digest == digest if new else c.digest != digest
    query = (
        sa.select(
            c.device,
            sa.func.sum(c.requests).label("requests"),
            sa.func.sum(c.errors).label("errors"),
            sa.func.sum(c.labelled).label("labelled"),
            sa.func.sum(c.correct).label("correct"),
        )
        .where(c.slot == slot, c.began >= since, version)
        .group_by(c.device)
    )
    wanted = frozenset(devices)
    rows = [row for row in db.execute(query) if row.device in wanted]
    return Arm(
        devices=len(wanted),
        requests=sum(r.requests for r in rows),
        errors=sum(r.errors for r in rows),
        labelled=sum(r.labelled for r in rows),
        correct=sum(min(r.correct, r.labelled) for r in rows),
    )


def by_version(db: sa.Connection, since: float, device: str = "") -> list[VersionCounts]:
    """Sum the windows of every version that came in since a moment."""
    c = _windows.c
    counted = ("seconds", "requests", "errors", "fallbacks", "labelled", "correct")
    # The database sums up, and hands all histograms over as one text: minutes of a big fleet are
    # a hundred thousand windows, and decoding each by itself takes seconds.
    query = (
        sa.select(
            c.digest,
            sa.func.max(c.model).label("model"),
            sa.func.max(c.version).label("version"),
            sa.func.count(c.device.distinct()).label("devices"),
            *(sa.func.sum(c[name]).label(name) for name in counted),
            sa.func.aggregate_strings(c.latency, ",").label("latency"),
        )
        .where(c.received >= since)
        .group_by(c.digest)
    )
    if device:
        query = query.where(c.device == device)
    rows = sorted(db.execute(query), key=lambda row: (row.model, row.version))
    return [
        VersionCounts(
            model=row.model,
            version=row.version,
            digest=row.digest,
            devices=row.devices,
            latency=_summed(row.latency),
            **{name: getattr(row, name) for name in counted},
        )
        for row in rows
    ]


def _summed(histograms: str) -> tuple[int, ...]:
    """Return the sum of histograms, given as JSON arrays with commas between; some may be empty."""
    found = [h for h in msgspec.json.decode(f"[{histograms}]", type=list[list[int]]) if h]
    empty = [0] * (len(LATENCY_BOUNDS) + 1)
    total = np.sum(np.array([empty, *found], dtype=np.int64), axis=0)
    return tuple(int(count) for count in total)


def since(db: sa.Connection, moment: float, limit: int = 20_000) -> list[Window]:
    """Return the windows that came in at ``moment`` or later, oldest first, at most ``limit``."""
    c = _windows.c
    names = [
        c.device, c.boot, c.sequence, c.model, c.version, c.received, c.seconds, c.requests,
        c.errors, c.fallbacks, c.labelled, c.correct, c.latency,
    ]  # fmt: skip
    query = sa.select(*names).where(c.received >= moment).order_by(c.received).limit(limit)
    return [
        Window(**{**row._mapping, "latency": tuple(msgspec.json.decode(row.latency))})
        for row in db.execute(query)
    ]


def recent(db: sa.Connection, device: str, limit: int = 60) -> Sequence[dict[str, Any]]:
    """Return the newest windows of a device as plain values, newest first, without drift."""
    c = _windows.c
    names = [
        c.slot, c.model, c.version, c.began, c.seconds, c.requests, c.errors, c.fallbacks,
        c.labelled, c.correct, c.gauges,
    ]  # fmt: skip
    query = sa.select(*names).where(c.device == device).order_by(c.received.desc()).limit(limit)
    rows = [dict(row._mapping) for row in db.execute(query)]
    return [{**row, "gauges": msgspec.json.decode(row["gauges"])} for row in rows]


def prune(db: sa.Connection, before: float) -> int:
    """Drop windows and events that came in before a moment; return how many windows."""
    gone = db.execute(_windows.delete().where(_windows.c.received < before)).rowcount
    db.execute(_events.delete().where(_events.c.received < before))
    return gone
