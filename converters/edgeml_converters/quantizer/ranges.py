"""Calibration methods: from the histogram of a tensor to the range that 8 bits cover.

All but ``minmax`` cut off what is rare when that makes the steps finer for the rest. Every range
holds 0, and lies within the smallest and the largest value seen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgeml_converters.quantizer.histogram import Histogram
from edgeml_converters.quantizer.parameters import Range

_Floats = npt.NDArray[np.float64]
#: Share of the values that ``percentile`` covers.
COVERED = 0.9999
_LEVELS = 256
#: Candidates of a search: shares of the largest magnitude that are kept.
_SHARES = np.geomspace(1.0, 0.02, 50)


def minmax(found: Histogram) -> Range:
    """Return the whole range."""
    return min(found.low, 0.0), max(found.high, 0.0)


def percentile(found: Histogram) -> Range:
    """Return the range that leaves out half of ``1 - COVERED`` of the values at either end."""
    low, high = minmax(found)
    total = np.cumsum(found.counts)
    out = (1 - COVERED) / 2 * total[-1]
    first = int(np.searchsorted(total, out, side="right"))
    last = int(np.searchsorted(total, total[-1] - out, side="left"))
    half = found.width / 2
    return (
        float(np.clip(found.middles[first] - half, low, 0.0)),
        float(np.clip(found.middles[last] + half, 0.0, high)),
    )


def mse(found: Histogram) -> Range:
    """Return the range with the smallest mean squared error of rounding and clipping.

    Bounds of the magnitude are tried for both ends at once, then each end alone (the grid search
    of Banner et al. 2019, Post training 4-bit quantization, section 3, on a histogram).
    """
    low, high = minmax(found)
    values, weights = _filled(found)

    def error(cut: Range) -> float:
        return _error(values, weights, *cut)

    best = min(_cuts(low, high), key=error)
    best = min([best, *((low * s, best[1]) for s in _SHARES)], key=error)
    best = min([best, *((best[0], high * s) for s in _SHARES)], key=error)
    return float(best[0]), float(best[1])


def entropy(found: Histogram) -> Range:
    """Return the range that loses the least information.

    For each bound of the magnitude, the clipped distribution (what is cut off is counted at the
    ends) is compared with what 256 levels leave of it: Kullback-Leibler divergence, as in Migacz
    2017, 8-bit inference with TensorRT. The bin at 0, which rectifiers and padding fill, is left
    out.
    """
    low, high = minmax(found)
    counts = found.counts.astype(np.float64)
    counts[len(counts) // 2] = 0.0
    if counts.sum() == 0:
        return low, high
    return min(_cuts(low, high), key=lambda cut: _divergence(counts, found, *cut))


METHODS: dict[str, Callable[[Histogram], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def _cuts(low: float, high: float) -> list[Range]:
    """Return ranges in which the magnitude is bounded, the whole range first."""
    bounds = [float(share) * max(-low, high) for share in _SHARES]
    return [(max(low, -bound), min(high, bound)) for bound in bounds]


def _filled(found: Histogram) -> tuple[_Floats, _Floats]:
    """Return the middles of the bins that hold something, and their shares."""
    filled = found.counts > 0
    weights = found.counts[filled].astype(np.float64)
    return found.middles[filled], weights / max(weights.sum(), 1.0)


def _error(values: _Floats, weights: _Floats, low: float, high: float) -> float:
    """Return the mean squared error of storing values in [low, high] with 256 steps."""
    step = (high - low) / (_LEVELS - 1)
    if step <= 0:
        return float(weights @ values**2)
    zero = np.rint(-low / step)
    kept = (np.clip(np.rint(values / step) + zero, 0, _LEVELS - 1) - zero) * step
    return float(weights @ (values - kept) ** 2)


def _divergence(counts: _Floats, found: Histogram, low: float, high: float) -> float:
    """Return the divergence of 256 levels in [low, high] from the clipped distribution."""
    middles, half = found.middles, found.width / 2
    inside = (middles + half > low) & (middles - half <= high)
    clipped = counts[inside]
    if clipped.sum() == 0:
        return float("inf")
    reference = clipped.copy()
    reference[0] += counts[middles + half <= low].sum()
    reference[-1] += counts[middles - half > high].sum()
    steps = (middles[inside] - low) / ((high - low) / (_LEVELS - 1))
    level = np.clip(np.rint(steps), 0, _LEVELS - 1).astype(np.int64)
    sums = np.bincount(level, weights=clipped, minlength=_LEVELS)
    filled = np.bincount(level, weights=(clipped > 0).astype(np.float64), minlength=_LEVELS)
    spread = np.divide(sums, filled, out=np.zeros_like(sums), where=filled > 0)[level]
    spread[clipped == 0] = 0.0
    p, q = reference / reference.sum(), spread / spread.sum()
    # A bin that only the cut-off values fill has no partner: a small one stands in for it.
    q = np.maximum(q, 1e-12)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))
