"""The table of the contest, and its geometric means."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from edgeml.runtime.measure import Ratio

from .compare import BASE, Row, Table

OURS, ALONE = "edgeml", "edgeml, onnxruntime alone"
#: What the ratio to the best peer must reach, with the upper end of its interval.
REACH = 0.97


class Told(msgspec.Struct, frozen=True):
    """What one model's contest brought.

    Attributes:
        model: Its name.
        tables: One per number of threads.
        metric: What was judged by.
    """

    model: str
    metric: str
    tables: tuple[Table, ...]


def row_of(table: Table, way: str) -> Row | None:
    """Return the row of a way; None when it has none."""
    return next((row for row in table.rows if row.way == way), None)


def geomean(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.mean(np.log(values)))) if values else float("nan")


def lines(told: Sequence[Told], nine: Sequence[str]) -> list[str]:
    """Return the lines of the table."""
    out = [
        f"{'model':18}{'thr':>4}{'fp32 ms':>9}  {'edgeml':34}{'x [95 %]':>19}{'drop':>8}"
        f"  {'best peer':18}{'x':>6}{'ours/peer [95 %]':>21}{'alone x':>9}"
        f"{'conv s':>8}{'MB':>6}{'ort MB':>7}{'bytes':>11}"
    ]
    for one in told:
        out += [_line(one.model, table) for table in one.tables]
    out.append("")
    for threads in sorted({table.threads for one in told for table in one.tables}):
        out += _means(told, nine, threads)
    for one in told:
        for table in one.tables[:1]:
            out += [f"{one.model}: {way} failed: {why[:150]}" for way, why in table.lost.items()]
    return out


def _line(model: str, table: Table) -> str:
    base, mine = row_of(table, BASE), row_of(table, OURS)
    if base is None or mine is None:
        return f"{model:18}{table.threads:>4}  failed: {table.lost}"
    best, lone = row_of(table, table.best), row_of(table, ALONE)
    static = row_of(table, "ort static")
    drop = "" if mine.drop is None else f"{mine.drop:.4f}"
    over = table.over_best[OURS]
    mark = " " if over.high >= REACH and mine.speedup.high >= 1.0 else "!"
    return (
        f"{model:18}{table.threads:>4}{base.p50_ms:9.3f}  {mine.recipe[:33]:34}"
        f"{_ratio(mine.speedup):>19}{drop:>8}  {table.best:18}"
        f"{best.speedup.value if best else 0:6.2f}{_ratio(over):>20}{mark}"
        f"{lone.speedup.value if lone else float('nan'):9.2f}{mine.seconds:8.1f}"
        f"{mine.peak_bytes / 1e6:6.0f}{static.peak_bytes / 1e6 if static else 0:7.0f}"
        f"{mine.size_bytes:11}"
    )


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _means(told: Sequence[Told], nine: Sequence[str], threads: int) -> list[str]:
    tables = [t for one in told if one.model in nine for t in one.tables if t.threads == threads]
    if not tables:
        return []
    ways = dict.fromkeys(row.way for table in tables for row in table.rows)
    out = [f"geometric mean over {len(tables)} of the nine, {threads} thread(s), over {BASE}:"]
    for way in ways:
        rows = [row for table in tables if (row := row_of(table, way)) is not None]
        note = "" if len(rows) == len(tables) else f"  (only {len(rows)} models)"
        passed = sum(row.state in ("ok", "undecided") for row in rows)
        mean = geomean([row.speedup.value for row in rows])
        out.append(f"  {way:28}{mean:6.2f}  within the limit on {passed}{note}")
    best = [row for t in tables if (row := row_of(t, t.best)) is not None]
    out.append(f"  {'the best peer of each':28}{geomean([r.speedup.value for r in best]):6.2f}")
    return out
