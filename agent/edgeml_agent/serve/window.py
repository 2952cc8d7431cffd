"""Counts of one version in one slot: totals for the metrics, and windows for the fleet."""

from __future__ import annotations

import time
from collections import Counter

from edgeml.messages.payloads import Ref
from edgeml.stats.buckets import LatencyHistogram
from edgeml_agent.control import Window
from edgeml_agent.serve.batcher import BatchStats
from edgeml_agent.serve.watch import DriftFeed


class Counts:
    """What happened to the requests of one version.

    Attributes:
        slot: The slot.
        ref: The version.
        requests: Answered with a result.
        errors: Kind -> how many were not.
        latency: From the last byte of a request to its outputs.
        fallbacks: Answered by a fallback.
        labelled: Labels that came for predictions of this version.
        correct: How many of them agreed.
        last: Unix seconds of the last answer; 0 for never.
        drift: What watches its inputs and outputs; None without a drift reference.
    """

    def __init__(self, slot: str, ref: Ref, drift: DriftFeed | None = None) -> None:
        """Start at zero."""
        self.drift = drift
        self.slot = slot
        self.ref = ref
        self.requests = 0
        self.errors: dict[str, int] = {}
        self.latency = LatencyHistogram()
        self.fallbacks = 0
        self.labelled = 0
        self.correct = 0
        self.last = 0.0
        self._since = time.monotonic()
        self._told = Window(slot, ref, 0.0, 0, latency=tuple(self.latency.counts))

    def answered(self, seconds: float, fallback: bool) -> None:
        """Count a request that was answered with a result."""
        self.requests += 1
        self.latency.add(seconds)
        self.fallbacks += fallback
        self.last = time.time()

    def failed(self, kind: str) -> None:
        """Count a request that was not."""
        self.errors[kind] = self.errors.get(kind, 0) + 1

    def labels(self, labelled: int, correct: int) -> None:
        """Count labels that came late."""
        self.labelled += labelled
        self.correct += correct

    async def take(self) -> Window:
        """Return what was counted since the last ``take``."""
        drift = await self.drift.take() if self.drift is not None else b""
        now = time.monotonic()
        total = Window(
            self.slot,
            self.ref,
            now,
            self.requests,
            dict(self.errors),
            tuple(self.latency.counts),
            self.fallbacks,
            self.labelled,
            self.correct,
        )
        told, self._told = self._told, total
        errors = {kind: n - told.errors.get(kind, 0) for kind, n in total.errors.items()}
        pairs = zip(total.latency, told.latency, strict=True)
        window = Window(
            slot=self.slot,
            ref=self.ref,
            seconds=now - self._since,
            requests=total.requests - told.requests,
            errors={kind: n for kind, n in errors.items() if n},
            latency=tuple(new - old for new, old in pairs),
            fallbacks=total.fallbacks - told.fallbacks,
            labelled=total.labelled - told.labelled,
            correct=total.correct - told.correct,
            drift=drift,
        )
        self._since = now
        return window


class Totals:
    """Sums of everything that one version did in one slot, over all times that it was loaded.

    Attributes:
        requests: Answered with a result; ``errors``, ``latency``, ``fallbacks``, ``labelled`` and
            ``correct`` as in ``Counts``.
        runs: Rows of a run -> how many runs there were.
        run_seconds: Seconds spent in them.
        queue_seconds: Seconds that requests waited to be run.
    """

    def __init__(self) -> None:
        """Start at zero."""
        self.requests = 0
        self.errors: Counter[str] = Counter()
        self.latency = LatencyHistogram()
        self.fallbacks = 0
        self.labelled = 0
        self.correct = 0
        self.runs: Counter[int] = Counter()
        self.run_seconds = 0.0
        self.queue_seconds = 0.0

    def add(self, counts: Counts, stats: BatchStats) -> None:
        """Add what one generation counted."""
        self._add(counts)
        self.runs.update(stats.runs)
        self.run_seconds += sum(stats.run_seconds.copy().values())
        self.queue_seconds += stats.queue_seconds

    def merge(self, other: Totals) -> None:
        """Add other totals of the same version."""
        self._add(other)
        self.runs.update(other.runs)
        self.run_seconds += other.run_seconds
        self.queue_seconds += other.queue_seconds

    def _add(self, other: Counts | Totals) -> None:
        self.requests += other.requests
        self.errors.update(other.errors)
        self.latency.merge(other.latency)
        self.fallbacks += other.fallbacks
        self.labelled += other.labelled
        self.correct += other.correct


def is_empty(window: Window) -> bool:
    """Tell whether a window says nothing but that time passed."""
    return not (window.requests or window.errors or window.labelled or window.drift)
