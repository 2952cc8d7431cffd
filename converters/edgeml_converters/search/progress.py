"""Progress: what was done, for everybody; what is being done and how long it may take, for people.

Time left is reckoned from guesses: every piece of work has one before it begins, and the share of
the guesses that has come true so far scales the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock


class Progress:
    """Takes news of a search; safe to use from many threads."""

    def __init__(
        self,
        say: Callable[[str], None],
        show: Callable[[str], None] | None = None,
        budget_s: float | None = None,
    ) -> None:
        """Take where the news goes.

        Args:
            say: Takes lines that stay.
            show: Takes a line that the next one replaces; None for nobody looks.
            budget_s: Time that the whole may take; None for as long as it takes.
        """
        self.say = say
        self._show = show
        self._lock = Lock()
        self._began = time.monotonic()
        self._end = None if budget_s is None else self._began + budget_s
        self._guessed: dict[str, float] = {}
        self._done: dict[str, float] = {}
        self._stage = ""

    def left_s(self) -> float:
        """Return what is left of the budget in seconds; infinite without one."""
        return float("inf") if self._end is None else self._end - time.monotonic()

    def used(self) -> float:
        """Return the share of the budget that is gone, 0 without one."""
        if self._end is None:
            return 0.0
        whole = self._end - self._began
        return (time.monotonic() - self._began) / max(whole, 1e-9)

    def expect(self, stage: str, seconds: float) -> None:
        """Say how long a stage may take; what was said of it before counts no more."""
        with self._lock:
            self._guessed[stage] = max(seconds, 0.0)
            self._done.setdefault(stage, 0.0)

    def step(self, stage: str, share: float, what: str) -> None:
        """Say how much of a stage is done, in [0, 1], and what is being done."""
        with self._lock:
            self._stage = stage
            self._done[stage] = min(max(share, 0.0), 1.0) * self._guessed.get(stage, 0.0)
            if self._show is not None:
                self._show(f"{stage}: {what}{self._hint()}")

    def _hint(self) -> str:
        """Return the time left in words; empty while there is nothing to go by."""
        done, whole = sum(self._done.values()), sum(self._guessed.values())
        if done < 0.05 * whole or done <= 0.0:
            return ""
        left = (time.monotonic() - self._began) / done * (whole - done)
        return f", about {duration(left)} left"


def duration(seconds: float) -> str:
    """Return a duration in words: ``12 s``, ``3 min``, ``5 h``, ``2 days``."""
    for least, unit, name in ((172_800, 86_400, "days"), (7_200, 3_600, "h"), (120, 60, "min")):
        if seconds >= least:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(seconds, 0.0):.0f} s"
