"""Histogram: counts of values in bins that grow with what is seen.

The width of a bin is a power of two and 0 is always an edge, so growing merges whole bins, loses
nothing that was counted, and does not depend on the order of the data.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgeml.tensors import Array

#: Bins on each side of 0; the larger side of what is seen fills more than half of its bins.
SIDE = 4096
_CHUNK = 1 << 17


class Histogram:
    """Counts, the smallest and the largest value of one tensor.

    Attributes:
        low: The smallest value; 0 before anything is added.
        high: The largest value.
        width: Of a bin.
        counts: [2 * SIDE]; bin ``SIDE`` begins at 0.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.low = math.inf
        self.high = -math.inf
        self.width = 0.0
        self.counts: npt.NDArray[np.int64] = np.zeros(2 * SIDE, np.int64)

    def add(self, array: Array) -> None:
        """Count the values of an array; they are all finite."""
        flat = array.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            self._add(flat[start : start + _CHUNK])

    def _add(self, part: Array) -> None:
        low, high = float(part.min()), float(part.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach(max(-low, high))
        if not self.width:
            self.counts[SIDE] += part.size
            return
        bins = np.floor(part * np.float32(1 / self.width)).astype(np.int64)
        bins += SIDE
        np.clip(bins, 0, 2 * SIDE - 1, out=bins)
        self.counts += np.bincount(bins, minlength=2 * SIDE)

    def _reach(self, value: float) -> None:
        """Make the bins wide enough for a value of either sign."""
        if value <= 0:
            return
        # The smallest power of two with value < SIDE * width.
        need = math.ldexp(1.0, max(math.frexp(value / SIDE)[1], -100))
        if need <= self.width:
            return
        if self.width:
            factor = min(int(need / self.width), 2 * SIDE)
            bins = (np.arange(2 * SIDE) - SIDE) // factor + SIDE
            merged = np.zeros_like(self.counts)
            np.add.at(merged, bins, self.counts)
            self.counts = merged
        self.width = need

    @property
    def middles(self) -> npt.NDArray[np.float64]:
        """The middle of every bin."""
        return (np.arange(2 * SIDE, dtype=np.float64) - SIDE + 0.5) * np.float64(self.width)
