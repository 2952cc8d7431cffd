"""Shares of a count, and differences of two shares, with intervals that hold for small counts.

Wilson's score interval for one share, and Newcombe's hybrid score interval (method 10 of his 1998
paper) for the difference of two independent shares. Both stay inside what is possible, and both
are usable with no successes at all, where the textbook interval has width zero.
"""

from __future__ import annotations

import math

#: Two-sided 95 %.
Z95 = 1.959963984540054


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's interval of a share.

    Args:
        successes: How many had the property.
        n: Out of how many.
        z: Quantile of the normal distribution; the default is for two-sided 95 %.

    Returns:
        Lower and upper bound in [0, 1]; (0, 1) when ``n`` is 0.

    Raises:
        ValueError: ``successes`` is not in 0..n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    lower = 0.0 if successes == 0 else max(0.0, (centre - spread) / scale)
    upper = 1.0 if successes == n else min(1.0, (centre + spread) / scale)
    return lower, upper


def newcombe(
    successes: int, n: int, other: int, other_n: int, z: float = Z95
) -> tuple[float, float]:
    """Return Newcombe's interval of ``successes / n - other / other_n``.

    Returns:
        Lower and upper bound in [-1, 1]; an arm without observations counts as unknown.

    Raises:
        ValueError: A count is impossible.
    """
    share = successes / n if n else 0.5
    other_share = other / other_n if other_n else 0.5
    low, high = wilson(successes, n, z)
    other_low, other_high = wilson(other, other_n, z)
    difference = share - other_share
    down = math.sqrt((share - low) ** 2 + (other_high - other_share) ** 2)
    up = math.sqrt((high - share) ** 2 + (other_share - other_low) ** 2)
    return max(-1.0, difference - down), min(1.0, difference + up)
