"""Latency in fixed buckets: the same bounds on every device, so that counts merge by addition.

The bounds are quarter powers of two (each 19 % above the last) from 10 microseconds to about
84 seconds: a percentile read from them is at most 19 % off, on any device.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

#: Upper bounds in seconds; one more bucket above the last.
LATENCY_BOUNDS: tuple[float, ...] = tuple(10e-6 * 2 ** (i / 4) for i in range(93))


class LatencyHistogram:
    """Counts per bucket of ``LATENCY_BOUNDS``, and the sum."""

    def __init__(self, counts: Sequence[int] = (), total: float = 0.0) -> None:
        """Start empty, or from counts that another one had (as many as there are buckets)."""
        size = len(LATENCY_BOUNDS) + 1
        self.counts: list[int] = list(counts) if counts else [0] * size
        if len(self.counts) != size:
            raise ValueError(f"{len(self.counts)} buckets, expected {size}")
        self.total = total

    @property
    def n(self) -> int:
        """Number of observations."""
        return sum(self.counts)

    def add(self, seconds: float, times: int = 1) -> None:
        """Count an observation."""
        self.counts[bisect_left(LATENCY_BOUNDS, seconds)] += times
        self.total += seconds * times

    def merge(self, other: LatencyHistogram) -> None:
        """Add the counts of another histogram to this one."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def quantile(self, q: float) -> float:
        """Return the upper bound in seconds of the bucket that holds quantile ``q``.

        Returns:
            0.0 when nothing was counted; the last bound when it lies above it.
        """
        n = self.n
        if n == 0:
            return 0.0
        seen = 0
        for bound, count in zip(LATENCY_BOUNDS, self.counts, strict=False):
            seen += count
            if seen >= q * n:
                return bound
        return LATENCY_BOUNDS[-1]
