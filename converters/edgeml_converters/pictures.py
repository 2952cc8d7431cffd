"""The pictures of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgeml.report import Picture
from edgeml.report.style import COLOURS
from edgeml_converters import words
from edgeml_converters.drawing import (
    BAD,
    GOOD,
    INK,
    LINE,
    PAPER,
    SOFT,
    height,
    key,
    look,
    picture,
    rows_y,
    scale_x,
)
from edgeml_converters.results import Candidate, Layer, Speedup, Standing

#: Colours of int8 and float layers; more layers than this make no picture that can be read.
_WIDTHS = {"int8": COLOURS["blue"], "float": COLOURS["orange"]}
_MOST_LAYERS = 150
#: So many times the limit is what a loss axis shows at most, and so many times the source's latency
#: what a latency axis does: who is beyond stands at the edge, and squeezes nobody.
_BEYOND_LOSS, _BEYOND_LATENCY = 1.8, 1.3


def pareto_picture(
    name: str, candidates: Sequence[Candidate], base: Candidate, winner: str, limit: float | None
) -> Picture:
    """Draw accuracy lost against latency; the area of a mark is the size of the files.

    Args:
        name: Of the picture.
        candidates: In the order of their numbers; those with a latency are drawn.
        base: The source.
        winner: Id of the winner, drawn with a ring.
        limit: Largest drop that is allowed; None without data.
    """
    judged = any(c.drop for c in candidates)
    shown = [
        (number, c)
        for number, c in enumerate(candidates, 1)
        if c.latency_ms and (c.drop or not judged)  # no place is known for what was not judged
    ]
    losses = [_loss(c) for _, c in shown]
    floor = _floor(losses, [c.drop.upper for _, c in shown if c.drop], limit)
    biggest = max((c.size_bytes for _, c in shown), default=1) or 1
    right = _right(base, [_ms(c) for _, c in shown])

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.grid(True)
        for number, c in sorted(shown, key=lambda pair: -pair[1].size_bytes):
            _bubble(axes, c, number, c.id == winner, biggest, (right, floor))
        front = _front([(_ms(c), _loss(c)) for _, c in shown if c.verdict == Standing.PASSED])
        if len(front) > 1:
            axes.step(*zip(*front, strict=True), where="post", color=SOFT, linewidth=1, zorder=1)
        if limit is not None and limit <= floor * 1.12:  # else far below what is drawn
            axes.axhline(limit, color=BAD, linewidth=1, linestyle=(0, (5, 3)))
            place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            axes.annotate(f"allowed {limit:g}", (1, limit), xytext=(-2, -10), ha="right",
                          color=BAD, fontsize=8.5, **place)  # fmt: skip
        axes.set_xlim(0, right * 1.08)
        axes.set_ylim(floor * 1.12, min(0.0, *losses) - 0.16 * floor)
        axes.set_xlabel("latency p50, ms")
        axes.set_ylabel("accuracy lost against the source")
        hollow = {"marker": "o", "color": SOFT, "markerfacecolor": PAPER}
        runtimes = list(dict.fromkeys(c.runtime for _, c in shown))
        key(axes, runtimes, [("not passed", hollow)], loc="upper center",
            bbox_to_anchor=(0.5, 1.13), ncols=4, fontsize=8.5)  # fmt: skip

    best = next((c for _, c in shown if c.id == winner), None)
    told = f"the winner {winner} at {_ms(best):.3g} ms" if best else "the winner was not measured"
    others = "; ".join(f"{n}: {c.id} {_ms(c):.3g} ms, loses {_loss(c):.3g}" for n, c in shown)
    caption = (
        "Left and up is better. Numbers are those of the table; area: size of the files; bars: the "
        "95 % interval of the latency, and the 95 % bound of the loss, which is what the gate "
        "looks at; ring: the winner; line: what nothing beats in both; an arrow at an edge: "
        "slower, or losing more, than the picture shows."
    )
    return picture(name, f"Accuracy lost against latency: {told}. {others}.", caption, draw)


def latency_picture(
    name: str,
    candidates: Sequence[Candidate],
    base: Candidate,
    winner: str,
    rounds_ms: Mapping[str, Sequence[float]],
) -> Picture:
    """Draw how the rounds of the measurement spread, fastest at the top."""
    shown = sorted((c for c in candidates if c.latency_ms and rounds_ms.get(c.id)), key=_ms)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.grid(True, axis="x")
        most = [_quantile(sorted(rounds_ms[c.id]), 0.95) for c in shown]
        right = 1.05 * _right(base, most)
        for row, c in enumerate(shown):
            values = sorted(rounds_ms[c.id])
            if _quantile(values, 0.5) > right:
                _beyond(axes, row, f"{_ms(c):.3g}")
                continue
            colour, mark = look(c.runtime)
            low, middle, high = (_quantile(values, q) for q in (0.25, 0.5, 0.75))
            axes.plot([low, high], [row, row], color=colour, alpha=0.35, linewidth=9,
                      solid_capstyle="butt")  # fmt: skip
            spots = [row + (0.26 if i % 2 else -0.26) * (i % 5) / 5 for i in range(len(values))]
            axes.plot(values, spots, mark, color=colour, markersize=2.6, alpha=0.6,
                      markeredgewidth=0)  # fmt: skip
            axes.plot([middle] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=1.6)
        axes.set_xlim(0, right * 1.06)
        ids = [c.id for c in shown]
        rows_y(axes, ids, ids.index(winner) if winner in ids else None)
        axes.set_xlabel("median latency of each round, ms")

    told = ", ".join(f"{c.id} {_ms(c):.3g} ms" for c in shown)
    caption = (
        "A point is a round, in which each candidate ran in random order; the band holds the "
        "middle half, the stroke is the median. Points far to the right are other work on the "
        "machine; a number at the edge is the median of what lies outside."
    )
    size = (5.6, height(len(shown)))
    return picture(name, f"Spread of the latencies: {told}", caption, draw, size)


def accuracy_picture(
    name: str, candidates: Sequence[Candidate], base: Candidate, winner: str
) -> Picture:
    """Draw the score of each candidate with its interval, the source's as a line."""
    shown = [c for c in candidates if c.metric]
    metric = base.metric.name if base.metric else "metric"

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.grid(True, axis="x")
        low, high = _near(base, shown)
        for row, c in enumerate(shown):
            if c.metric and not low <= c.metric.value <= high:
                _beyond(axes, row, f"{c.metric.value:.3g}", left=c.metric.value < low)
            elif c.metric:
                colour, mark = look(c.runtime)
                axes.plot(c.metric.interval, [row, row], color=colour, linewidth=1.6, alpha=0.7)
                passed = c.verdict == Standing.PASSED
                axes.plot(c.metric.value, row, mark, color=colour, markersize=6,
                          markerfacecolor=colour if passed else PAPER)  # fmt: skip
        if base.metric:
            axes.axvline(base.metric.value, color=SOFT, linewidth=1, linestyle=(0, (5, 3)))
        ids = [c.id for c in shown]
        rows_y(axes, ids, ids.index(winner) if winner in ids else None)
        axes.set_xlabel(metric)
        axes.set_xlim(low, high)

    told = ", ".join(f"{c.id} {words.metric(c)}" for c in shown)
    n = base.metric.n if base.metric else 0
    caption = (
        f"Points with their 95 % intervals on {n} samples; the dashed line is the source; hollow: "
        "did not pass. The gate compares sample by sample, which sees smaller differences than "
        "these intervals do."
    )
    return picture(name, f"{metric}: {told}", caption, draw, (5.6, height(len(shown))))


def size_picture(name: str, candidates: Sequence[Candidate], winner: str = "") -> Picture:
    """Draw size of the files and memory of each candidate."""
    shown = [c for c in candidates if c.size_bytes]
    panels = [("files", [c.size_bytes for c in shown])]
    if any(c.memory_bytes for c in shown):
        panels.append(("peak memory", [c.memory_bytes or 0 for c in shown]))

    def draw(figure: Any) -> None:
        ids = [c.id for c in shown]
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, values) in zip(every, panels, strict=True):
            scale, unit = (1 << 20, "MiB") if max(values) >= 10 << 20 else (1 << 10, "KiB")
            colours = [look(c.runtime)[0] for c in shown]
            sizes = [value / scale for value in values]
            bars = axes.barh(range(len(shown)), sizes, height=0.55, color=colours, alpha=0.75)
            labels = [f"{size:,.1f}" if max(sizes) < 100 else f"{size:,.0f}" for size in sizes]
            axes.bar_label(bars, labels, padding=3, color=SOFT, fontsize=8.5)
            axes.set_xlabel(f"{title}, {unit}")
            axes.margins(x=0.24)
            rows_y(axes, ids, ids.index(winner) if winner in ids else None)
            axes.spines["left"].set_color(LINE)

    told = ", ".join(
        f"{c.id} {words.size(c.size_bytes)}, memory {words.size(c.memory_bytes)}" for c in shown
    )
    caption = (
        "What a device has to fetch and to hold, and what loading and running it adds to that."
    )
    return picture(name, f"Sizes: {told}", caption, draw, (5.6, height(len(shown))))


def gains_picture(name: str, gains: Sequence[tuple[str, Speedup]]) -> Picture:
    """Draw how many times as fast each of several winners is, with its interval."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.grid(True, axis="x")
        axes.axvline(1.0, color=SOFT, linewidth=1, linestyle=(0, (5, 3)))
        for row, (_, gain) in enumerate(gains):
            axes.plot(gain.interval, [row, row], color=GOOD, linewidth=1.8, alpha=0.7)
            axes.plot(gain.value, row, "o", color=GOOD, markersize=6)
            axes.annotate(f"{gain.value:.2f}", (gain.interval[1], row), xytext=(5, -3),
                          textcoords="offset points", color=SOFT, fontsize=8.5)  # fmt: skip
        scale_x(axes, [end for _, gain in gains for end in gain.interval])
        rows_y(axes, [label for label, _ in gains])
        axes.set_xlabel("times as fast as the source")

    told = ", ".join(f"{label} {gain.value:.2f} x" for label, gain in gains)
    caption = "The winner of each, with the 95 % interval. The dashed line is the source."
    size = (5.6, height(len(gains)))
    return picture(name, f"Times as fast as the source: {told}", caption, draw, size)


def layers_picture(name: str, layers: Sequence[Layer]) -> Picture:
    """Draw noise and time of each product of the winner, in the order of the network."""
    shown = [layer for layer in layers if layer.weighted][:_MOST_LAYERS]
    colours = [_WIDTHS.get(layer.precision, SOFT) for layer in shown]
    timed = any(layer.latency_us is not None for layer in shown)

    def draw(figure: Any) -> None:
        from matplotlib.patches import Patch

        every = figure.subplots(1 + timed, 1, sharex=True, squeeze=False)[:, 0]
        upper, last = every[0], every[-1]
        places = range(1, len(shown) + 1)
        for axes in every:
            axes.grid(True, axis="y")
        upper.bar(places, [max(layer.sqnr_db or 0.0, 0.0) for layer in shown], color=colours,
                  width=0.7)  # fmt: skip
        for place, layer in zip(places, shown, strict=True):
            if layer.sqnr_db is None:
                upper.annotate("?", (place, 1), ha="center", color=SOFT, fontsize=8)
        upper.set_ylabel("SQNR, dB")
        if timed:
            last.bar(places, [layer.latency_us or 0.0 for layer in shown], color=colours, width=0.7)
            last.plot(places, [layer.source_us or math.nan for layer in shown], "_", color=INK,
                      markersize=9, markeredgewidth=1.6)  # fmt: skip
            last.set_ylabel("µs in the winner")
        last.set_xlabel("products with stored weights, in the order of the network")
        last.set_xlim(0.3, len(shown) + 0.7)
        last.xaxis.get_major_locator().set_params(integer=True)
        handles = [Patch(color=colour, label=kind) for kind, colour in _WIDTHS.items()]
        upper.legend(handles=handles, frameon=False, labelcolor=SOFT, ncols=2, loc="lower right",
                     bbox_to_anchor=(1, 1), borderaxespad=0.1)  # fmt: skip

    worst = min((x for x in shown if x.sqnr_db is not None), key=lambda x: x.sqnr_db or 0.0,
                default=None)  # fmt: skip
    integer = sum(layer.precision == "int8" for layer in shown)
    told = f"{integer} of {len(shown)} products are computed in 8 bits"
    told += f"; the least exact is {worst.name} at {worst.sqnr_db:.1f} dB" if worst else ""
    caption = (
        "How exact the output of each layer is, with what earlier layers add; ? where the "
        "winner has no tensor that stands for it."
    )
    if timed:
        caption += " Below: its time in the winner (bars) and in the source (strokes)."
    return picture(
        name, f"Layers of the winner: {told}.", caption, draw, (11.4, 2.2 + 1.8 * timed), wide=True
    )


def _ms(c: Candidate) -> float:
    return c.latency_ms.p50 if c.latency_ms else 0.0


def _loss(c: Candidate) -> float:
    return c.drop.value if c.drop else 0.0


def _near(base: Candidate, shown: Sequence[Candidate]) -> tuple[float, float]:
    """Return the range of an accuracy axis: what is near the source, with its interval."""
    ends = [end for c in shown if c.metric for end in c.metric.interval]
    low, high = min(ends), max(ends)
    if base.metric:
        value = base.metric.value
        wide = 2.0 * max(base.metric.interval[1] - base.metric.interval[0], 0.004 * abs(value))
        low, high = max(low, value - wide), min(high, value + wide)
    room = 0.06 * (high - low) or 0.01
    return low - room, high + room


def _floor(losses: Sequence[float], bounds: Sequence[float], limit: float | None) -> float:
    """Return the largest loss that the picture shows: one that fails by far hides the others."""
    most = max([0.0, *losses, *bounds])
    if limit and most > limit / _BEYOND_LOSS:
        return min(max(most, limit), limit * _BEYOND_LOSS)
    return most or limit or 1.0


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values, linear between them."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats in both, from left to right."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def _bubble(
    axes: Any, c: Candidate, number: int, won: bool, biggest: int, edge: tuple[float, float]
) -> None:
    """Draw one candidate of the Pareto picture; beyond an edge, as an arrow there."""
    colour, mark = look(c.runtime)
    x, y = min(_ms(c), edge[0]), min(_loss(c), edge[1])
    slow, bad = _ms(c) > edge[0], _loss(c) > edge[1]
    area = 30 + 260 * c.size_bytes / biggest
    if c.drop and not bad:
        end = min(max(y, c.drop.upper), edge[1] * 1.12)
        axes.plot([x, x], [y, end], color=colour, alpha=0.6, linewidth=1.4)
    if c.speedup and c.speedup.value > 0 and not slow:
        low, high = (x * c.speedup.value / end for end in reversed(c.speedup.interval))
        axes.plot([low, high], [y, y], color=colour, linewidth=1.4, alpha=0.6)
    passed = c.verdict == Standing.PASSED
    axes.scatter([x], [y], s=[70 if slow or bad else area],
                 marker=">" if slow else "v" if bad else mark, edgecolors=colour, zorder=3,
                 facecolors=colour if passed else PAPER, alpha=0.8, linewidths=1.2)  # fmt: skip
    if won:
        axes.scatter([x], [y], s=[area * 1.5 + 130], marker="o", facecolors="none",
                     edgecolors=GOOD, linewidths=2.2, zorder=4)  # fmt: skip
    reach = math.sqrt(area) / 2 + (6 if won else 2)
    axes.annotate(str(number), (x, y), xytext=(reach, reach - 3), textcoords="offset points",
                  fontsize=9, fontweight="bold" if won else "normal", color=GOOD if won else INK,
                  zorder=5)  # fmt: skip


def _right(base: Candidate, values: Sequence[float]) -> float:
    """Return the end of a latency axis."""
    most = max(values, default=1.0)
    return min(most, _ms(base) * _BEYOND_LATENCY) if base.latency_ms else most


def _beyond(axes: Any, row: int, text: str, left: bool = False) -> None:
    """Say what lies beyond the edge of an axis."""
    axes.annotate(f"◂ {text}" if left else f"{text} ▸", (0 if left else 1, row),
                  xycoords=("axes fraction", "data"), xytext=(4 if left else -4, -3),
                  textcoords="offset points", ha="left" if left else "right", color=SOFT,
                  fontsize=8.5)  # fmt: skip
