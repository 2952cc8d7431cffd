"""Charts as SVG, drawn here: no script, no library, colours from the style sheet."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from html import escape

from edgeml.fleet.dashboard.look import number, percent

Points = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT = 800.0, 170.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 8.0, 8.0, 20.0


def lines(series: dict[str, Points], unit: str, label: str) -> str:
    """Return a line chart over time; empty when there are fewer than two points.

    Args:
        series: Name -> (Unix seconds, value), oldest first. The first two get a colour each.
        unit: Unit of the values.
        label: What the chart shows, for those who cannot see it.
    """
    points = [p for values in series.values() for p in values]
    if len({at for at, _ in points}) < 2:
        return ""
    first, last = min(p[0] for p in points), max(p[0] for p in points)
    ticks = _ticks(max(p[1] for p in points))
    top = ticks[-1]

    def place(at: float, value: float) -> tuple[float, float]:
        x = _LEFT + (at - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)
        return x, _TOP + (1 - value / top) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in ticks:
        _, y = place(first, tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for at, anchor in ((first, "start"), ((first + last) / 2, "middle"), (last, "end")):
        x, _ = place(at, 0)
        clock = time.strftime("%H:%M:%S", time.localtime(at))
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 5}" text-anchor="{anchor}">{clock}</text>')
    for index, (name, values) in enumerate(series.items()):
        placed = [place(*p) for p in values]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        if len(series) == 1 and placed:
            floor = _HEIGHT - _BOTTOM
            area = f"{placed[0][0]:.1f},{floor} {path} {placed[-1][0]:.1f},{floor}"
            parts.append(f'<polygon class="area" points="{area}"/>')
        parts.append(f'<polyline class="line s{index}" points="{path}"/>')
        for (x, y), (_, value) in zip(placed, values, strict=True):
            parts.append(
                f'<circle class="dot s{index}" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>'
                f"{escape(name)} {number(value)} {escape(unit)}</title></circle>"
            )
    legend = "".join(
        f'<span class="key"><i class="s{index}"></i>{escape(name)}</span>'
        for index, name in enumerate(series)
    )
    legend += f'<span class="mute">{escape(unit)}</span>'
    return (
        f'<div class="legend">{legend}</div><svg class="chart" viewBox="0 0 {_WIDTH:.0f} '
        f'{_HEIGHT:.0f}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _ticks(highest: float) -> list[float]:
    """Return round values from 0 to at least ``highest``, three to five of them."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / 3
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(base * m for m in (1, 2, 2.5, 5, 10) if base * m >= rough)
    return [step * i for i in range(math.ceil(highest / step - 1e-9) + 1)]


def spark(values: Sequence[float], label: str) -> str:
    """Return a line without axes; empty when there are fewer than two values."""
    if len(values) < 2:
        return ""
    top = max(values) or 1.0
    placed = [(i / (len(values) - 1) * 120, 26 - v / top * 24) for i, v in enumerate(values)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    return (
        f'<svg class="spark" viewBox="0 0 120 28" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}"><polygon class="area" points="0,28 {path} 120,28"/>'
        f'<polyline class="line s0" points="{path}"/></svg>'
    )


def stack(parts: Sequence[tuple[str, int]]) -> str:
    """Return a bar of (class, count) parts, as long as their sum."""
    total = sum(n for _, n in parts)
    if not total:
        return '<div class="stack"></div>'
    cells = "".join(
        f'<i class="{escape(kind)}" style="width:{100 * n / total:.2f}%"></i>'
        for kind, n in parts
        if n
    )
    return f'<div class="stack">{cells}</div>'


def interval(
    value: float, bounds: tuple[float, float] | None, axis: tuple[float, float], kind: str
) -> str:
    """Return a point with its interval on an axis from ``axis[0]`` to ``axis[1]``."""
    low, high = axis
    span = (high - low) or 1.0

    def x(at: float) -> float:
        return 5 + 110 * min(1.0, max(0.0, (at - low) / span))

    zero = ""
    if low < 0 < high:
        zero = f'<line class="grid" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="1" y2="15"/>'
    whisker = told = ""
    if bounds is not None:
        a, b = x(bounds[0]), x(bounds[1])
        whisker = f'<path class="whisker" d="M{a:.1f} 8H{b:.1f}M{a:.1f} 4.5v7M{b:.1f} 4.5v7"/>'
        told = f", 95 % interval {percent(bounds[0])} to {percent(bounds[1])}"
    return (
        f'<svg class="interval {kind}" viewBox="0 0 120 16" role="img" '
        f'aria-label="{percent(value)}{told}"><line class="grid" x1="5" x2="115" y1="8" y2="8"/>'
        f'{zero}{whisker}<circle cx="{x(value):.1f}" cy="8" r="3.4"/></svg>'
    )
