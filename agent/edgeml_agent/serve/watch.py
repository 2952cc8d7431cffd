"""Feeds the drift window beside the hot path: requests are collected and counted in batches."""

from __future__ import annotations

import asyncio
import logging
import threading

import numpy as np

from edgeml.drift.reference import DriftReference
from edgeml.drift.window import DriftWindow
from edgeml.errors import DataError
from edgeml.tensors import Array

logger = logging.getLogger(__name__)

Arrays = dict[str, Array]

#: So many rows, or so many bytes, are counted at once, on a thread.
_ROWS = 32
_BYTES = 4 << 20


class DriftFeed:
    """Counts what a model sees and says. ``add`` is called on the loop.

    While a batch is being counted the next one is collected; what comes beyond that is left out,
    so that counting never holds up serving: the window then holds a part of the requests.

    Args:
        reference: What the counts are held against.
        loop: The loop.
    """

    def __init__(self, reference: DriftReference, loop: asyncio.AbstractEventLoop) -> None:
        """Start with an empty window."""
        self._reference = reference
        self._loop = loop
        self._window: DriftWindow | None = DriftWindow(reference)
        self._lock = threading.Lock()
        self._waiting: list[tuple[Arrays, Arrays]] = []
        self._rows = 0
        self._bytes = 0
        self._counting: asyncio.Future[None] | None = None

    def add(self, feed: Arrays, outputs: Arrays) -> None:
        """Collect one request and its outputs."""
        full = self._rows >= _ROWS or self._bytes >= _BYTES
        if full and self._counting is not None and not self._counting.done():
            return
        self._waiting.append((feed, outputs))
        first = next(iter(feed.values()))
        self._rows += first.shape[0] if first.ndim else 1
        self._bytes += sum(array.nbytes for array in feed.values())
        if self._rows >= _ROWS or self._bytes >= _BYTES:
            self._start()

    async def take(self) -> bytes:
        """Return what was counted since the last time; empty when nothing was."""
        if self._counting is not None:
            await self._counting
        self._start()
        if self._counting is not None:
            await self._counting
        return await asyncio.to_thread(self._swap)

    def _start(self) -> None:
        """Count what is collected, on a thread, one batch at a time."""
        if not self._waiting or (self._counting is not None and not self._counting.done()):
            return
        batch, self._waiting = self._waiting, []
        self._rows = self._bytes = 0
        self._counting = self._loop.run_in_executor(None, self._count, batch)

    def _count(self, batch: list[tuple[Arrays, Arrays]]) -> None:
        """Add a batch to the window; requests of one shape together."""
        groups: dict[tuple[tuple[int, ...], ...], list[tuple[Arrays, Arrays]]] = {}
        for feed, outputs in batch:
            shapes = tuple(a.shape[1:] for part in (feed, outputs) for a in part.values())
            groups.setdefault(shapes, []).append((feed, outputs))
        with self._lock:
            if self._window is None:
                return
            try:
                for group in groups.values():
                    feeds, results = zip(*group, strict=True)
                    self._window.add(_together(feeds), _together(results))
            except DataError as error:
                logger.warning("drift is not watched any more: %s", error)
                self._window = None

    def _swap(self) -> bytes:
        with self._lock:
            window = self._window
            if window is None or window.n == 0:
                return b""
            self._window = DriftWindow(self._reference)
        return window.encode()


def _together(parts: tuple[Arrays, ...]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
