"""Whether the wall clock can be believed: a device without a battery wakes up in 1970."""

from __future__ import annotations

import time

#: Unix seconds of 2026-11-01, shortly before this release; no true clock is earlier.
RELEASED = 1_793_491_200.0


class Clock:
    """The wall clock, and a floor that it must be above.

    Args:
        floor: Unix seconds that must have passed.
    """

    def __init__(self, floor: float = RELEASED) -> None:
        """Take the floor."""
        self._floor = floor

    def trusted(self) -> bool:
        """Tell whether the wall clock can be believed."""
        return time.time() >= self._floor

    def now(self) -> float | None:
        """Return Unix seconds, or None when the clock is not to be believed."""
        seconds = time.time()
        return seconds if seconds >= self._floor else None
