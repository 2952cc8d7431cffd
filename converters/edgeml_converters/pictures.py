"""The pictures of the report, drawn with matplotlib as SVG.

The same figures give the same bytes: ids come from a fixed salt, and no date is written.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from edgeml.report import Picture
from edgeml_converters.results import Candidate, Standing

_INK, _SOFT, _LINE = "#1d232b", "#5b6673", "#e3e1dc"
_COLOURS = {
    "onnxruntime": "#3366aa",
    "openvino": "#7b4fa3",
    "litert": "#c9741a",
}
_OTHER = "#607080"
_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _SOFT,
    "ytick.color": _INK,
    "grid.color": _LINE,
    "svg.fonttype": "path",
}


def pareto_picture(
    name: str, candidates: Sequence[Candidate], winner: str, limit: float | None
) -> Picture:
    """Draw accuracy lost against latency; the front is joined by a line.

    Args:
        name: Of the picture.
        candidates: Those with a latency are drawn.
        winner: Id of the winner, drawn with a ring.
        limit: Largest drop that is allowed; None without data.
    """
    shown = [c for c in candidates if c.latency_ms]

    shown.sort(key=lambda c: (_xy(c), c.id))

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.grid(True, linewidth=0.7)
        axes.set_axisbelow(True)
        for number, c in enumerate(shown, 1):
            _point(axes, c, number, c.id == winner)
        front = _front([_xy(c) for c in shown if c.verdict == Standing.PASSED])
        if len(front) > 1:
            axes.step(*zip(*front, strict=True), where="post", color=_SOFT, linewidth=1, zorder=1)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False)
        if limit is not None:
            axes.axhline(limit, color="#a63d2f", linewidth=1, linestyle=(0, (5, 3)))
            axes.annotate(
                f"allowed: {limit:g}",
                (1, limit),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 3),
                textcoords="offset points",
                ha="right",
                color="#a63d2f",
                fontsize=8.5,
            )
        axes.set_xlabel("latency p50, ms")
        axes.set_ylabel("accuracy lost against the source")
        axes.set_xlim(left=0, right=max((_xy(c)[0] for c in shown), default=1.0) * 1.08)
        axes.margins(y=0.18)

    told = ", ".join(f"{c.id} {_xy(c)[0]:.3g} ms, drop {_xy(c)[1]:.3g}" for c in shown)
    caption = (
        "Left and low is better. The bar goes to the 95 % upper bound of the drop, which is what "
        "the gate looks at; the ring is the winner; hollow points did not pass; the line joins "
        "what nothing beats in both."
    )
    return _picture(name, f"Accuracy lost against latency: {told}", draw, caption)


def latency_picture(
    name: str, candidates: Sequence[Candidate], rounds_ms: Mapping[str, Sequence[float]]
) -> Picture:
    """Draw how the rounds of the measurement spread, fastest at the top."""
    shown = sorted(
        (c for c in candidates if c.latency_ms and c.id in rounds_ms),
        key=lambda c: -(c.latency_ms.p50 if c.latency_ms else 0.0),
    )

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.grid(True, axis="x", linewidth=0.7)
        axes.set_axisbelow(True)
        boxes = axes.boxplot(
            [list(rounds_ms[c.id]) for c in shown],
            orientation="horizontal",
            patch_artist=True,
            widths=0.55,
            showfliers=True,
            flierprops={"marker": ".", "markersize": 3, "markeredgecolor": _SOFT},
            medianprops={"color": _INK},
        )
        for box, c in zip(boxes["boxes"], shown, strict=True):
            box.set(facecolor=_colour(c), alpha=0.45, edgecolor=_colour(c))
        axes.set_yticks(range(1, len(shown) + 1), [c.id for c in shown])
        axes.set_xlim(left=0)
        axes.set_xlabel("latency of the rounds, ms")

    told = ", ".join(f"{c.id} {c.latency_ms.p50:.3g} ms" for c in shown if c.latency_ms)
    caption = (
        "Every round ran each candidate once, in random order; a box holds the middle half of "
        "the rounds. Other work on the machine shows as points on the right."
    )
    return _picture(name, f"Spread of the latencies: {told}", draw, caption)


def size_picture(name: str, candidates: Sequence[Candidate]) -> Picture:
    """Draw the sizes of the files, smallest at the top."""
    shown = sorted((c for c in candidates if c.size_bytes), key=lambda c: (-c.size_bytes, c.id))

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        sizes = [c.size_bytes / 1024 for c in shown]
        bars = axes.barh(range(len(shown)), sizes, height=0.6, color=[_colour(c) for c in shown])
        for bar in bars:
            bar.set_alpha(0.75)
        axes.bar_label(bars, [f"{size:,.0f}" for size in sizes], padding=4, color=_SOFT)
        axes.set_yticks(range(len(shown)), [c.id for c in shown])
        axes.set_xlabel("size of the files, KiB")
        axes.margins(x=0.14)

    told = ", ".join(f"{c.id} {c.size_bytes} bytes" for c in shown)
    return _picture(name, f"Sizes: {told}", draw, "What a device has to fetch and to hold.")


def _xy(c: Candidate) -> tuple[float, float]:
    return (c.latency_ms.p50 if c.latency_ms else 0.0, c.drop.value if c.drop else 0.0)


def _colour(c: Candidate) -> str:
    return _COLOURS.get(c.runtime, _OTHER)


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats in both, from left to right."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def _point(axes: Any, c: Candidate, number: int, winner: bool) -> None:
    x, y = _xy(c)
    filled = c.verdict == Standing.PASSED
    if c.drop:
        axes.plot([x, x], [y, max(y, c.drop.upper)], color=_colour(c), linewidth=1.2, alpha=0.6)
    axes.plot(
        x,
        y,
        marker="o",
        markersize=8,
        linestyle="none",
        color=_colour(c),
        markerfacecolor=_colour(c) if filled else "white",
        label=f"{number}  {c.id}",
        zorder=3,
    )
    if winner:
        axes.plot(x, y, marker="o", markersize=15, color="#0b7a5b", markerfacecolor="none", mew=1.8)
    axes.annotate(
        str(number),
        (x, y),
        xytext=(8, -11),
        textcoords="offset points",
        fontsize=8.5,
        fontweight="bold" if winner else "normal",
    )


def _picture(name: str, alt: str, draw: Any, caption: str) -> Picture:
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.4, 4.2), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return Picture(name, alt, buffer.getvalue(), caption)
