"""The chi-squared distribution, for whole degrees of freedom, without SciPy."""

from __future__ import annotations

import math


def chi2_sf(x: float, df: int) -> float:
    """Return P(X > x) of a chi-squared variable.

    The closed forms for whole degrees of freedom: Abramowitz and Stegun, 26.4.4 and 26.4.5.

    Args:
        x: The statistic.
        df: Degrees of freedom, at least 1.

    Raises:
        ValueError: ``df`` is less than 1.
    """
    if df < 1:
        raise ValueError(f"{df} degrees of freedom, expected 1 at least")
    if x <= 0:
        return 1.0
    half = x / 2
    if half > 700:  # exp(-700) is the smallest that does not underflow
        return 0.0
    if df % 2 == 0:
        term = total = 1.0
        for k in range(1, df // 2):
            term *= half / k
            total += term
        return min(1.0, math.exp(-half) * total)
    term, total = math.sqrt(x), 0.0
    for k in range(1, df, 2):
        total += term
        term *= x / (k + 2)
    return min(1.0, math.erfc(math.sqrt(half)) + math.sqrt(2 / math.pi) * math.exp(-half) * total)
