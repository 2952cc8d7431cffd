"""Traffic: rates, latencies and accuracies of the last minutes, read once each.

Summing five minutes of windows of a thousand devices from the database takes a second; a page that
is looked at asks every second. So the windows of the last quarter of an hour stay here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import msgspec
import numpy as np

from edgeml.fleet.telemetry import Window
from edgeml.stats.buckets import LATENCY_BOUNDS

#: How long windows are kept, in seconds.
KEPT = 900.0
#: What "now" means for a rate, in seconds.
NOW = 60.0
#: Width of one point of the fleet's curve, in seconds.
STEP = 5.0
_BOUNDS = np.array([*LATENCY_BOUNDS, LATENCY_BOUNDS[-1]])


class Stats(msgspec.Struct, frozen=True):
    """Sums over some windows.

    Attributes:
        last: When the newest of them came in.
        rate: Answered requests per second.
        p50_ms: Median latency, at most 19 % too high; None without requests.
        p95_ms: The same for the 95th percentile.
    """

    last: float
    requests: int
    errors: int
    fallbacks: int
    labelled: int
    correct: int
    rate: float
    p50_ms: float | None
    p95_ms: float | None


class Point(msgspec.Struct, frozen=True):
    """One window of one device, for a chart."""

    at: float
    version: str
    rate: float
    p50_ms: float | None
    p95_ms: float | None


class Traffic:
    """Windows of the last minutes, per device.

    Args:
        read: Returns the windows that came in at a moment or later (``Services.windows``).
    """

    def __init__(self, read: Callable[[float], list[Window]]) -> None:
        """Start empty."""
        self._read = read
        self._last = 0.0
        self._at_last: set[tuple[str, str, int]] = set()
        self._kept: dict[str, deque[Window]] = {}

    def update(self, now: float) -> None:
        """Read what is new, and drop what is old."""
        for window in self._read(max(self._last, now - KEPT)):
            key = (window.device, window.boot, window.sequence)
            if window.received > self._last:
                self._last, self._at_last = window.received, set()
            if key in self._at_last:
                continue
            self._at_last.add(key)
            self._kept.setdefault(window.device, deque()).append(window)
        for device, kept in list(self._kept.items()):
            while kept and kept[0].received < now - KEPT:
                kept.popleft()
            if not kept:
                del self._kept[device]

    def devices(self, now: float) -> dict[str, Stats]:
        """Return device -> what it did in the last minute, or in its newest window before that.

        A device without traffic sends no windows: its latencies stay those of its newest one, its
        rate is 0 once the next one is overdue.
        """
        found = {}
        for device, kept in self._kept.items():
            newest = kept[-1]
            lately = [w for w in kept if w.received > now - NOW] or [newest]
            if newest.received <= now - KEPT / 3:
                continue
            stats = _sum(lately, sum(w.seconds for w in lately))
            overdue = newest.received + max(NOW, 2 * newest.seconds) < now
            found[device] = msgspec.structs.replace(stats, rate=0.0) if overdue else stats
        return found

    def versions(self, now: float, seconds: float = 300.0) -> dict[tuple[str, str], Stats]:
        """Return (model, version) -> what all devices together did lately; ``rate`` is of now."""
        groups: dict[tuple[str, str], list[Window]] = {}
        for kept in self._kept.values():
            for window in kept:
                if window.received > now - seconds:
                    groups.setdefault((window.model, window.version), []).append(window)
        found = {}
        for key, group in sorted(groups.items()):
            first = min(w.received - w.seconds for w in group)
            lately = sum(w.requests for w in group if w.received > now - NOW)
            rate = lately / max(1.0, min(NOW, now - first))
            found[key] = msgspec.structs.replace(_sum(group, 0.0), rate=rate)
        return found

    def curve(self, now: float) -> list[tuple[float, float]]:
        """Return (moment, requests per second of the fleet), oldest first.

        A window is spread over the time that it covers; the newest points, whose windows have not
        come in yet, are left out.
        """
        windows = [w for kept in self._kept.values() for w in kept]
        if not windows:
            return []
        spans = sorted(w.seconds for w in windows[-200:])
        end = now - max(STEP, spans[len(spans) // 2])
        begin = max(min(w.received - w.seconds for w in windows), now - KEPT)
        count = int((end - begin) // STEP)
        if count < 2:
            return []
        sums = np.zeros(count)
        for window in windows:
            first = int((window.received - window.seconds - begin) // STEP)
            last = int((window.received - begin) // STEP)
            share = window.requests / (last - first + 1) / STEP
            if last >= 0 and first < count:
                sums[max(first, 0) : last + 1] += share
        return [(begin + (i + 0.5) * STEP, float(value)) for i, value in enumerate(sums)]

    def history(self, device: str) -> list[Point]:
        """Return the windows of a device, oldest first."""
        points = []
        for window in self._kept.get(device, ()):
            stats = _sum([window], window.seconds)
            points.append(
                Point(window.received, window.version, stats.rate, stats.p50_ms, stats.p95_ms)
            )
        return points


def _sum(windows: Iterable[Window], seconds: float) -> Stats:
    counts = np.zeros(len(_BOUNDS), dtype=np.int64)
    last = 0.0
    requests = errors = fallbacks = labelled = correct = 0
    for window in windows:
        last = max(last, window.received)
        requests += window.requests
        errors += window.errors
        fallbacks += window.fallbacks
        labelled += window.labelled
        correct += window.correct
        if window.latency:
            counts += np.asarray(window.latency, dtype=np.int64)
    p50, p95 = _quantile(counts, 0.5), _quantile(counts, 0.95)
    rate = requests / seconds if seconds > 0 else 0.0
    return Stats(last, requests, errors, fallbacks, labelled, correct, rate, p50, p95)


def _quantile(counts: np.ndarray[tuple[int], np.dtype[np.int64]], q: float) -> float | None:
    """Return the upper bound in ms of the bucket that holds a quantile."""
    total = counts.cumsum()
    if not total[-1]:
        return None
    return float(1e3 * _BOUNDS[np.searchsorted(total, q * total[-1])])
