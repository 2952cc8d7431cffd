"""Figures as words: the same on the command line, in reports, and whoever prints them."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "-"


def milliseconds(value: float) -> str:
    """Return a latency in milliseconds, three significant digits."""
    return f"{value:.3g}"


def ratio(value: float, interval: Sequence[float]) -> str:
    """Return ``2.31 [2.28, 2.35]``: a ratio with its 95 % interval."""
    return f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def score(value: float, interval: Sequence[float]) -> str:
    """Return a score with its interval's half width."""
    return f"{value:.4g} ± {(interval[1] - interval[0]) / 2:.2g}"


def size(count: int | None) -> str:
    """Return a number of bytes with a unit that suits it."""
    if count is None:
        return NOTHING
    if count < 10 << 20:
        return f"{count / 1024:,.0f} KiB" if count >= 10 << 10 else f"{count / 1024:.1f} KiB"
    if count < 10 << 30:
        return f"{count / (1 << 20):,.1f} MiB"
    return f"{count / (1 << 30):,.1f} GiB"
