"""Times all products of a model in one run, and compares their answers on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial

import msgspec

from edgeml.errors import DataError, DeviceError, ModelError, RequestError
from edgeml.metrics import Metric
from edgeml.runtime.base import Session
from edgeml.runtime.measure import Ratio, Timing, interleave, speedup
from edgeml.tensors import Array
from edgeml_converters import samples
from edgeml_converters.judge import SAME_DB, mismatch, sqnr_db

from .entry import Entry, Product

BASE = "ort fp32"
#: A product this many times slower than the base is measured apart, a few times: it cannot win,
#: and would take most of the time.
_HOPELESS = 3.0
_FEW = 6


class Row(msgspec.Struct, frozen=True):
    """One product on one model.

    Attributes:
        way: Who made it.
        p50_ms: Median latency.
        speedup: Over onnxruntime's fp32 of the source, in the same rounds.
        drop: Of the metric; None when it was not looked at, for it is too slow to win.
        upper: Bound of the drop.
        state: ``ok``, ``undecided``, ``fails``; ``slow`` when it was not looked at.
        sqnr_db: Against the source.
        size_bytes: Of its files.
        seconds: Making it took.
        peak_bytes: Memory of the largest process that made it.
        recipe: Of ours.
    """

    way: str
    p50_ms: float
    speedup: Ratio
    drop: float | None
    upper: float | None
    state: str
    sqnr_db: float | None
    size_bytes: int
    seconds: float
    peak_bytes: int
    recipe: str


class Table(msgspec.Struct, frozen=True):
    """All products of one model at one number of threads.

    Attributes:
        threads: Of every run.
        rows: In the order of the products.
        best: Way of the best peer within the limit.
        over_best: Way of ours -> how many times as fast as that.
        lost: Way -> why it has no row.
    """

    threads: int
    rows: tuple[Row, ...]
    best: str
    over_best: dict[str, Ratio]
    lost: dict[str, str]


def compare(
    entry: Entry,
    products: Sequence[Product],
    metric: Metric,
    max_drop: float,
    threads: int,
    rounds: int,
    lost: Mapping[str, str],
) -> Table:
    """Run the contest of one model."""
    gone = dict(lost)
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for product in products:
            try:
                program = stack.enter_context(closing(product.open(threads)))
                session = stack.enter_context(closing(program.session()))
                session.run(next(samples.feeds(entry.samples)))
            except (ModelError, DeviceError, RequestError) as error:
                gone[product.way] = error.message
                continue
            sessions[product.way] = session
        timings = _time(entry, sessions, rounds)
        slow = {way for way in sessions if _ratio(timings, way).value < 1.0 / _HOPELESS}
        answers = {w: _answers(entry, s) for w, s in sessions.items() if w not in slow}
    found = {product.way: product for product in products if product.way in sessions}
    rows = tuple(
        _row(found[way], _ratio(timings, way), timings[way][1], answers, entry, metric, max_drop)
        for way in found
    )
    best = best_peer(rows)
    over = {
        row.way: speedup(timings[best][1], timings[row.way][1])
        for row in rows
        if row.way.startswith("edgeml")
    }
    return Table(threads, rows, best, over, gone)


#: Way -> the base's timing and its own, of the same rounds.
Pairs = dict[str, tuple[Timing, Timing]]


def _time(entry: Entry, sessions: Mapping[str, Session], rounds: int) -> Pairs:
    """Time all in one run; the hopeless apart, each beside the base."""
    feed = next(samples.feeds(entry.samples))
    runs: dict[str, Callable[[], object]] = {
        way: partial(session.run, feed) for way, session in sessions.items()
    }
    pairs: Pairs = {}
    for way, run in runs.items():
        found = interleave({"base": runs[BASE], way: run}, rounds=_FEW, min_block_s=0.0)
        if min(found[way].wall) > _HOPELESS * min(found["base"].wall):
            pairs[way] = found["base"], found[way]
    found = interleave({w: r for w, r in runs.items() if w not in pairs}, rounds=rounds)
    return pairs | {way: (found[BASE], timing) for way, timing in found.items()}


def _ratio(pairs: Pairs, way: str) -> Ratio:
    return speedup(*pairs[way])


def _answers(entry: Entry, session: Session) -> dict[str, Array]:
    return samples.join([session.run(f) for f in samples.feeds(entry.samples)], entry.batch)


def _row(
    product: Product,
    ratio: Ratio,
    timing: Timing,
    answers: Mapping[str, dict[str, Array]],
    entry: Entry,
    metric: Metric,
    max_drop: float,
) -> Row:
    state, drop, upper, sqnr = "slow", None, None, None
    if product.way in answers:
        base, mine = answers[BASE], answers[product.way]
        problem = mismatch(base, mine)
        state = f"fails: {problem}" if problem else "ok"
        if not problem:
            sqnr = sqnr_db(base, mine)
            state, drop, upper = _judge(metric, base, mine, entry, max_drop)
            if sqnr >= SAME_DB:
                state = "ok"
    return Row(
        product.way, timing.p50 * 1e3, ratio, drop, upper, state, sqnr, product.size_bytes,
        product.seconds, product.peak_bytes, product.recipe,
    )  # fmt: skip


def _judge(
    metric: Metric,
    base: dict[str, Array],
    mine: dict[str, Array],
    entry: Entry,
    max_drop: float,
) -> tuple[str, float | None, float | None]:
    try:
        found = metric.drop(base, mine, entry.labels, max_drop)
    except DataError as error:
        return f"fails: {error.message}", None, None
    return found.state, found.drop, found.upper


def best_peer(rows: Sequence[Row]) -> str:
    """Return the way of the fastest peer within the limit, by the rule that ours follow.

    One whose drop the data cannot tell counts only when nothing decided gains.
    """
    peers = [row for row in rows if not row.way.startswith("edgeml")]
    decided = [row for row in peers if row.state == "ok"]
    gains = [row for row in decided if row.speedup.low > 1.02]
    pool = gains or [row for row in peers if row.state in ("ok", "undecided")]
    return max(pool, key=lambda row: row.speedup.value).way
