"""Natural batching: what came in one turn of the loop runs together; nothing waits on a timer.

A short model runs on the loop itself (no hop between threads); a longer one on one worker
thread, and what arrives meanwhile forms the next batch. A batch that fails is run again one by
one, so that one bad request harms no other; a request whose client is gone, or whose deadline is
over, is dropped before the run.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from edgeml.errors import DeviceError, EdgemlError
from edgeml.tensors import Array
from edgeml_agent.serve.refused import Refused

logger = logging.getLogger(__name__)

#: A batch that takes longer than this many seconds does not run on the loop.
_TOO_LONG_INLINE = 0.005

#: While a run lasts on the thread, deadlines are looked at this often.
_SWEEP_SECONDS = 0.1
_JOIN_SECONDS = 1.0

Feed = dict[str, Array]
Outcome = Feed | EdgemlError
Run = Callable[[Feed], Feed]


class Item:
    """One request in the queue.

    Attributes:
        feed: Its inputs.
        rows: Length of axis 0.
        deadline: ``time.perf_counter`` at which it is dropped.
        gone: Set when nobody waits for it any more.
        arrived: ``time.perf_counter`` at which it came.
    """

    __slots__ = ("_done", "arrived", "deadline", "feed", "gone", "key", "rows")

    def __init__(self, feed: Feed, deadline: float, done: Callable[[Outcome], None]) -> None:
        """Take a feed that fits the model; axis 0 of the first input is its length.

        Args:
            feed: The inputs.
            deadline: ``time.perf_counter`` at which it is dropped.
            done: Called once on the loop with the outputs or the error.
        """
        self.feed = feed
        arrays = list(feed.values())
        first = arrays[0].shape
        self.rows = first[0] if first else 1
        self.key = first[1:] if len(arrays) == 1 else tuple(array.shape[1:] for array in arrays)
        self.deadline = deadline
        self._done: Callable[[Outcome], None] | None = done
        self.gone = False
        self.arrived = time.perf_counter()

    def settle(self, outcome: Outcome) -> None:
        """Give it its outcome; what comes after the first is dropped."""
        done, self._done = self._done, None
        if done is not None:
            done(outcome)


class BatchStats:
    """What the batcher counts: runs by number of rows, and where the time went.

    Attributes:
        runs: Rows of a run -> how many runs there were.
        run_seconds: Rows of a run -> seconds spent in them.
        queue_seconds: Seconds that requests waited, summed.
        taken: Requests that were taken from the queue to be run.
    """

    def __init__(self) -> None:
        """Start at zero."""
        self.runs: dict[int, int] = {}
        self.run_seconds: dict[int, float] = {}
        self.queue_seconds = 0.0
        self.taken = 0

    def add(self, rows: int, seconds: float) -> None:
        """Count a run."""
        self.runs[rows] = self.runs.get(rows, 0) + 1
        self.run_seconds[rows] = self.run_seconds.get(rows, 0.0) + seconds


class Batcher:
    """The queue of one loaded model, and whoever runs it.

    Args:
        loop: The loop on which ``submit`` and every ``done`` are called.
        run: Runs the model once; called by one thread at a time.
        limit: Most rows of one batch; 1 for a model that cannot be batched.
        hard: Most rows of one run; a longer request is run in pieces. 0 for no limit.
        inline: Whether to run on the loop.
        max_queue: Requests that may wait.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        run: Run,
        *,
        limit: int = 1,
        hard: int = 0,
        inline: bool = False,
        max_queue: int = 256,
    ) -> None:
        """Start empty; the worker thread starts with the first request."""
        self.stats = BatchStats()
        self.limit = limit
        self.inline = inline
        self._loop = loop
        self._run = run
        self.hard = hard
        self._max_queue = max_queue
        self._queue: deque[Item] = deque()
        self._rows = 0
        self._busy = False
        self._scheduled = False
        self._batch_seconds = 0.0
        self._running: list[Item] = []
        self._started = 0.0
        self._idle = asyncio.Event()
        self._idle.set()
        self._work: queue.SimpleQueue[list[Item] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, item: Item) -> None:
        """Put a request into the queue.

        Raises:
            Refused: The queue is full, or the wait would be longer than the deadline.
        """
        wait = self.predicted_wait()
        if len(self._queue) >= self._max_queue:
            raise _overload(f"{len(self._queue)} requests wait already", wait)
        if wait and time.perf_counter() + wait > item.deadline:
            raise _overload(f"the queue is {wait:.3f} s long, longer than the deadline", wait)
        self._queue.append(item)
        self._rows += item.rows
        self._idle.clear()
        self._schedule()

    def predicted_wait(self) -> float:
        """Return the seconds that a new request would wait: batches ahead times a batch's time."""
        ahead = math.ceil(self._rows / self.limit) if self._queue else 0
        return (ahead + self._busy) * self._batch_seconds

    @property
    def depth(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    @property
    def running_seconds(self) -> float:
        """How long the run on the worker thread has taken so far; 0 when there is none."""
        return time.perf_counter() - self._started if self._busy else 0.0

    async def drained(self) -> None:
        """Wait until nothing waits and nothing runs."""
        await self._idle.wait()

    def close(self) -> None:
        """End the worker thread. Safe to call twice. A thread whose run hangs is left behind."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join(_JOIN_SECONDS)
            self._thread = None

    def _schedule(self) -> None:
        if not self._scheduled and not self._busy:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Take the next batch and run it, or hand it to the worker."""
        self._scheduled = False
        items = self._take()
        if not items:
            self._idle.set()
            return
        if self.inline:
            self._landed(items, *self._execute(items))
            return
        self._busy = True
        self._running, self._started = items, time.perf_counter()
        self._loop.call_later(_SWEEP_SECONDS, self._sweep, items)
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="batcher", daemon=True)
            self._thread.start()
        self._work.put(items)

    def _take(self) -> list[Item]:
        """Return the requests of the next run: alike in shape, together at most ``limit`` rows."""
        items: list[Item] = []
        rows = 0
        now = time.perf_counter()
        while self._queue:
            item = self._queue[0]
            if item.gone or now > item.deadline:
                self._drop()
                continue
            if items and (rows + item.rows > self.limit or item.key != items[0].key):
                break
            self._queue.popleft()
            self._rows -= item.rows
            rows += item.rows
            items.append(item)
            self.stats.queue_seconds += now - item.arrived
        self.stats.taken += len(items)
        return items

    def _drop(self) -> None:
        item = self._queue.popleft()
        self._rows -= item.rows
        item.settle(_expired(item))

    def _sweep(self, items: list[Item]) -> None:
        """While one run lasts: nobody waits longer than his deadline, even when it hangs."""
        if self._running is not items:
            return
        now = time.perf_counter()
        for item in items:
            if now > item.deadline:
                item.settle(_expired(item))
        waiting, self._queue = self._queue, deque()
        for item in waiting:
            if item.gone or now > item.deadline:
                self._rows -= item.rows
                item.settle(_expired(item))
            else:
                self._queue.append(item)
        self._loop.call_later(_SWEEP_SECONDS, self._sweep, items)

    def _serve(self) -> None:
        """Run batches until the end; on the worker thread."""
        while (items := self._work.get()) is not None:
            outcomes, seconds = self._execute(items)
            self._loop.call_soon_threadsafe(self._landed, items, outcomes, seconds)

    def _landed(self, items: list[Item], outcomes: list[Outcome], seconds: float) -> None:
        """Give every request its outcome, and start the next batch."""
        self._busy = False
        self._running = []
        self.stats.add(sum(item.rows for item in items), seconds)
        known = self._batch_seconds or seconds
        self._batch_seconds = 0.8 * known + 0.2 * seconds
        if self.inline and self._batch_seconds > _TOO_LONG_INLINE:
            self.inline = False  # a slower fallback must not hold up the loop
        for item, outcome in zip(items, outcomes, strict=True):
            item.settle(outcome)
        if self._queue:
            self._schedule()
        else:
            self._idle.set()

    def _execute(self, items: list[Item]) -> tuple[list[Outcome], float]:
        """Run a batch; never raises."""
        start = time.perf_counter()
        outcomes: list[Outcome]
        if len(items) == 1:
            outcomes = [self._single(items[0])]
        else:
            try:
                outcomes = self._together(items)
            except EdgemlError as error:
                logger.warning("a batch of %d failed (%s): one by one", len(items), error)
                outcomes = [self._single(item) for item in items]
        return outcomes, time.perf_counter() - start

    def _single(self, item: Item) -> Outcome:
        try:
            if self.hard and item.rows > self.hard:
                return self._in_pieces(item)
            return self._guarded(item.feed)
        except EdgemlError as error:
            return error

    def _together(self, items: list[Item]) -> list[Outcome]:
        """Run several requests as one, and give each its own rows back.

        Raises:
            DeviceError: The model failed, or did not return one row per row.
        """
        names = items[0].feed
        feed = {name: np.concatenate([item.feed[name] for item in items]) for name in names}
        total = sum(item.rows for item in items)
        outputs = self._guarded(feed)
        check_rows(outputs, total)
        parts: list[Outcome] = []
        start = 0
        for item in items:
            end = start + item.rows
            parts.append({name: array[start:end] for name, array in outputs.items()})
            start = end
        return parts

    def _in_pieces(self, item: Item) -> Feed:
        """Run one long request in pieces of at most ``hard`` rows."""
        pieces: list[Feed] = []
        for start in range(0, item.rows, self.hard):
            piece = {k: array[start : start + self.hard] for k, array in item.feed.items()}
            pieces.append(self._guarded(piece))
            check_rows(pieces[-1], min(self.hard, item.rows - start))
        return {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}

    def _guarded(self, feed: Feed) -> Feed:
        """Run the model; whatever it raises becomes one of our errors."""
        try:
            return self._run(feed)
        except EdgemlError:
            raise
        except Exception as error:
            # A boundary: a runtime of a third party may raise anything, and the batcher of a
            # served model must outlive it.
            logger.exception("the model raised an unexpected error")
            raise DeviceError(f"the model failed: {type(error).__name__}: {error}") from error


def check_rows(outputs: Feed, rows: int) -> None:
    """Check that every output has one row per row of the inputs.

    Raises:
        DeviceError: An output has another length on axis 0: it cannot be split.
    """
    for name, array in outputs.items():
        if not array.ndim or array.shape[0] != rows:
            raise DeviceError(
                f"output '{name}' has shape {list(array.shape)} for {rows} rows: not splittable"
            )


def _expired(item: Item) -> Refused:
    reason = "the client went away" if item.gone else "the deadline passed"
    return Refused(reason, status=504, kind="cancelled" if item.gone else "deadline")


def _overload(reason: str, wait: float) -> Refused:
    after = max(1, math.ceil(wait))
    return Refused(reason, "try again later", status=503, kind="overload", retry_after=after)
