"""Latency, speed-up, memory and batch size, measured on the machine that runs this.

**Interleaved.** A machine's speed drifts while it is measured (clock rate, other work), so all
candidates are measured in the same rounds, every round visits each of them once, in a random
order, and two candidates are compared by the ratio inside each round.

**Intervals.** The interval of a speed-up is the sign test's interval of the median ratio: order
statistics of the rounds, exact for any distribution of noise (Conover, Practical Nonparametric
Statistics, section 3.2). It is then widened by ``COPIES`` on both sides: two copies of one model
really do differ in speed, because their memory lies differently, and always in the same direction
while both live, by up to 3 % where this was tried. Of 200 pairs of fresh copies the plain interval
called 57 to 60 % different (a bootstrap's 62 to 65 %), the widened one at most 2 %.

**Clocks.** A latency is always wall time. A ratio is taken on wall time too, unless the runs
proved to be one busy thread (in their quietest round processor time equals wall time) and other
work took the processor from it: then on processor time, which that work does not change.
``Ratio.clock`` says which.

**Where a candidate runs** is the caller's choice: ``interleave`` calls functions of this process,
``round_robin`` visits anything that gives a ``Block`` back, such as a process of its own that is
parked while others run.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edgeml.errors import DeviceError, RequestError, UsageError
from edgeml.runtime.base import Session
from edgeml.tensors import Array

Clock = Literal["wall", "cpu"]
Seconds = npt.NDArray[np.float64]

#: Fewer rounds than this cannot carry a 95 % interval of a median: 2 / 2**6 < 0.05 < 2 / 2**5.
LEAST_ROUNDS = 6
#: The share by which two copies of one model may differ in speed.
COPIES = 0.03
_MOST_CALLS = 1000


@dataclass(frozen=True, eq=False)
class Timing:
    """How long one candidate took.

    Attributes:
        samples: Wall time of every single call, in seconds.
        wall: Median wall time of a call, for each round, in seconds.
        cpu: Mean processor time of a call (all threads), for each round, in seconds.
        joules: Mean energy of a call, for each round; None without a counter.
    """

    samples: Seconds
    wall: Seconds
    cpu: Seconds
    joules: npt.NDArray[np.float64] | None = None

    @property
    def p50(self) -> float:
        """Median wall time of a call in seconds."""
        return float(np.percentile(self.samples, 50))

    @property
    def p95(self) -> float:
        """95th percentile of the wall time of a call in seconds."""
        return float(np.percentile(self.samples, 95))

    @property
    def p99(self) -> float:
        """99th percentile of the wall time of a call in seconds."""
        return float(np.percentile(self.samples, 99))

    def latency_ms(self) -> dict[str, float]:
        """Return the percentiles in milliseconds, as reports show them."""
        return {"p50": self.p50 * 1e3, "p95": self.p95 * 1e3, "p99": self.p99 * 1e3}


class Block(msgspec.Struct, frozen=True):
    """What one visit to a candidate gave.

    Attributes:
        walls: Wall time of every call, in seconds.
        cpu: Mean processor time of a call (all threads), in seconds.
        joules: Mean energy of a call; None without a counter.
    """

    walls: tuple[float, ...]
    cpu: float
    joules: float | None = None


class Ratio(msgspec.Struct, frozen=True):
    """How many times as fast one candidate is as another.

    Attributes:
        value: Median of the ratios of the rounds.
        low: Lower end of its 95 % interval, widened by ``COPIES``.
        high: Upper end.
        clock: ``wall`` or ``cpu``: the time that was compared.
    """

    value: float
    low: float
    high: float
    clock: Clock = "wall"


class BatchPlan(msgspec.Struct, frozen=True):
    """The batch that pays on this machine.

    Attributes:
        batch: The largest size that was still worth it.
        seconds: Median wall time of one run, for each size that was tried.
    """

    batch: int
    seconds: dict[int, float]


def interleave(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    min_block_s: float = 0.002,
    budget_s: float | None = None,
    seed: int = 0,
) -> dict[str, Timing]:
    """Measure several candidates in the same rounds.

    Args:
        runs: Name -> one run of the candidate.
        rounds: How often each is visited; at least ``LEAST_ROUNDS``.
        min_block_s: A visit repeats short runs until about this long.
        budget_s: Stop after this long, though not before ``LEAST_ROUNDS`` rounds.
        seed: Of the order inside the rounds.

    Returns:
        Name -> timing, in the order of ``runs``.

    Raises:
        UsageError: Too few rounds.
    """
    calls = {name: settle(run, min_block_s) for name, run in runs.items()}
    visits = {name: lambda run=run, n=calls[name]: visit(run, n) for name, run in runs.items()}
    return round_robin(visits, rounds=rounds, budget_s=budget_s, seed=seed)


def round_robin(
    visits: Mapping[str, Callable[[], Block]],
    *,
    rounds: int = 30,
    budget_s: float | None = None,
    seed: int = 0,
    each: Callable[[int], object] | None = None,
) -> dict[str, Timing]:
    """Visit several candidates in the same rounds, wherever they run.

    Args:
        visits: Name -> one visit of the candidate.
        rounds: How often each is visited; at least ``LEAST_ROUNDS``.
        budget_s: Stop after this long, though not before ``LEAST_ROUNDS`` rounds.
        seed: Of the order inside the rounds.
        each: Called after every round with the number of rounds done.

    Returns:
        Name -> timing, in the order of ``visits``.

    Raises:
        UsageError: Too few rounds.
    """
    if rounds < LEAST_ROUNDS:
        raise UsageError(f"{rounds} rounds, expected at least {LEAST_ROUNDS}")
    started = time.perf_counter()
    blocks: dict[str, list[Block]] = {name: [] for name in visits}
    order = list(visits)
    dice = random.Random(seed)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for done in range(rounds):
            late = budget_s is not None and time.perf_counter() - started > budget_s
            if late and done >= LEAST_ROUNDS:
                break
            dice.shuffle(order)
            for name in order:
                blocks[name].append(visits[name]())
            gc.collect(0)
            if each is not None:
                each(done + 1)
    finally:
        if collecting:
            gc.enable()
    return {name: _timing(found) for name, found in blocks.items()}


def settle(run: Callable[[], object], min_block_s: float = 0.002) -> int:
    """Return how many calls make a block; the first call is not counted, for it sets things up."""
    run()
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return min(max(math.ceil(min_block_s / max(best, 1e-9)), 1), _MOST_CALLS)


def visit(
    run: Callable[[], object], calls: int, joules: Callable[[], float] | None = None
) -> Block:
    """Call a candidate some times and tell what that took.

    A block of short calls starts with one that is not counted: it finds the caches full of
    another candidate's data, which a device that serves one model never does.

    Args:
        run: One run of the candidate.
        calls: How many calls are counted.
        joules: Energy used so far; None without a counter.
    """
    if calls > 1:
        run()
    clock = time.perf_counter
    walls: list[float] = []
    energy = joules() if joules else 0.0
    cpu = time.process_time()
    for _ in range(calls):
        start = clock()
        run()
        walls.append(clock() - start)
    used = time.process_time() - cpu
    return Block(tuple(walls), used / calls, (joules() - energy) / calls if joules else None)


def _timing(blocks: list[Block]) -> Timing:
    """Fold the blocks of one candidate."""
    joules = [block.joules for block in blocks if block.joules is not None]
    return Timing(
        samples=np.concatenate([np.asarray(block.walls) for block in blocks]),
        wall=np.asarray([np.median(block.walls) for block in blocks]),
        cpu=np.asarray([block.cpu for block in blocks]),
        joules=np.asarray(joules) if len(joules) == len(blocks) else None,
    )


def _one_busy_thread(timing: Timing) -> bool:
    """Whether a run uses the processor all the time, and only one.

    On a busy machine few rounds are quiet; what waits by itself is never busy in any of them.
    """
    share = timing.cpu / timing.wall
    return float(share.max()) >= 0.9 and float(np.percentile(share, 90)) <= 1.1


def _disturbed(timing: Timing) -> bool:
    """Whether other work took the processor from a run for a good part of the time."""
    return float(np.mean(timing.samples)) > 1.1 * float(np.median(timing.cpu))


def choose_clock(*timings: Timing) -> Clock:
    """Return the clock on which these timings should be compared (see the module's text)."""
    single = all(_one_busy_thread(timing) for timing in timings)
    return "cpu" if single and any(_disturbed(timing) for timing in timings) else "wall"


def speedup(baseline: Timing, other: Timing, clock: Clock | None = None) -> Ratio:
    """Return how many times as fast ``other`` is as ``baseline``, both from one ``interleave``.

    Args:
        baseline: What it is compared with.
        other: The candidate.
        clock: The time to compare; chosen by ``choose_clock`` when None.

    Raises:
        UsageError: They are not from the same rounds.
    """
    if len(baseline.wall) != len(other.wall):
        raise UsageError(
            f"timings of {len(baseline.wall)} and {len(other.wall)} rounds, expected equal numbers"
        )
    used = clock or choose_clock(baseline, other)
    above, below = (t.cpu if used == "cpu" else t.wall for t in (baseline, other))
    return _ratio(above, below, used)


def saving(baseline: Timing, other: Timing) -> Ratio | None:
    """Return how many times less energy ``other`` takes; None without a counter.

    Raises:
        UsageError: They are not from the same rounds.
    """
    if baseline.joules is None or other.joules is None:
        return None
    if len(baseline.joules) != len(other.joules):
        raise UsageError("energies of different numbers of rounds cannot be compared")
    return _ratio(baseline.joules, other.joules, "wall")


def _ratio(above: Seconds, below: Seconds, clock: Clock) -> Ratio:
    """Return the median ratio of the rounds with the widened interval of the sign test."""
    ratios = np.sort(above / np.maximum(below, 1e-12))
    low, high = sign_interval(len(ratios))
    wide = 1.0 + COPIES
    return Ratio(
        float(np.median(ratios)), float(ratios[low]) / wide, float(ratios[high]) * wide, clock
    )


def sign_interval(n: int, level: float = 0.95) -> tuple[int, int]:
    """Return the positions, in n sorted values, of the ends of an interval of their median.

    The chance that the median lies outside is ``2 * P(Binomial(n, 1/2) < k + 1)`` with the
    positions ``k`` and ``n - 1 - k``; the largest k is taken that keeps it within ``1 - level``.

    Args:
        n: Number of values; at least ``LEAST_ROUNDS`` for 95 %.
        level: Confidence.
    """
    total, k = 0, 0
    for i in range(n // 2):
        total += math.comb(n, i)
        if 2 * total > (1.0 - level) * 2**n:
            break
        k = i
    return k, n - 1 - k


def different(a: Timing, b: Timing) -> bool:
    """Tell whether two candidates of one ``interleave`` differ: the interval leaves out 1."""
    ratio = speedup(a, b)
    return ratio.low > 1.0 or ratio.high < 1.0


def calibrate_batch(
    session_factory: Callable[[], Session],
    feed: Mapping[str, Array],
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32),
    min_gain: float = 0.10,
    batched: Collection[str] | None = None,
) -> BatchPlan:
    """Find the largest batch that still pays: a fixed one is slower than none on some models.

    Args:
        session_factory: Opens a session; it is closed at the end.
        feed: One sample or more per input, samples on axis 0.
        sizes: Batches to try, growing; the first must work.
        min_gain: Least gain in samples per second over the size before, as a share.
        batched: Inputs that carry the batch; all when None.

    Returns:
        The plan; sizes that the model refuses, and all after them, are left out.
    """
    names = set(feed) if batched is None else set(batched)
    session = session_factory()
    seconds: dict[int, float] = {}
    best = sizes[0]
    try:
        for size in sizes:
            larger = {n: _repeat(a, size) if n in names else a for n, a in feed.items()}
            smaller = {n: _repeat(a, best) if n in names else a for n, a in feed.items()}
            try:
                session.run(larger)
            except (RequestError, DeviceError):
                if size == sizes[0]:
                    raise
                break
            pair = {"smaller": lambda f=smaller: session.run(f),
                    "larger": lambda f=larger: session.run(f)}  # fmt: skip
            timings = interleave(pair, rounds=10, min_block_s=0.001)
            seconds[size] = timings["larger"].p50
            gain = speedup(timings["smaller"], timings["larger"]).value * size / best
            if size != sizes[0] and gain < 1.0 + min_gain:
                break
            best = size
    finally:
        session.close()
    return BatchPlan(best, seconds)


def _repeat(array: Array, size: int) -> Array:
    """Return ``size`` samples, taken in turn from axis 0."""
    repeated: Array = array[np.arange(size) % array.shape[0]]
    return repeated
