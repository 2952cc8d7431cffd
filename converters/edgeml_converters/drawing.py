"""How the pictures of the report look, and how they become SVG.

The same figures give the same bytes: ids come from a fixed salt, and no date is written. Colours
are those of ``edgeml.report.style``, which the page changes for the dark; no fact is told by colour
alone: each runtime has a shape of its own, too.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from edgeml.report import Picture
from edgeml.report.style import COLOURS

INK, SOFT, LINE, PAPER = (COLOURS[name] for name in ("ink", "soft", "line", "card"))
GOOD, BAD = COLOURS["good"], COLOURS["bad"]
_RUNTIMES = {
    "onnxruntime": (COLOURS["blue"], "o"),
    "openvino": (COLOURS["purple"], "s"),
    "litert": (COLOURS["orange"], "^"),
}
_OTHER = (COLOURS["grey"], "D")
#: Characters of a row's name; longer ones would leave no room for the rows themselves.
_MOST_LABEL = 35
_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
}


def look(runtime: str) -> tuple[str, str]:
    """Return colour and shape of a runtime's marks."""
    return _RUNTIMES.get(runtime, _OTHER)


def picture(
    name: str,
    alt: str,
    caption: str,
    draw: Callable[[Any], None],
    size: tuple[float, float] = (5.6, 4.2),
    wide: bool = False,
) -> Picture:
    """Draw a picture.

    Args:
        name: Unique in the report.
        alt: What it shows, for somebody who cannot see it.
        caption: How to read it.
        draw: Draws on a figure.
        size: Width and height in inches.
        wide: Whether it takes the whole width of the page.
    """
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return Picture(name, alt, buffer.getvalue(), caption, wide)


def height(rows: int) -> float:
    """Return the height of a picture with a row for each candidate, in inches."""
    return 1.1 + 0.27 * max(rows, 3)


def scale_x(axes: Any, values: list[float], spread: float = 8.0) -> None:
    """Set the axis of positive values: from 0, or logarithmic where they lie far apart."""
    low, high = min(values), max(values)
    if low > 0 and high / low > spread:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.set_xlim(low / 1.35, high * 1.5)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, high * 1.12)


def _short(label: str) -> str:
    """Return a label that leaves room for what stands beside it: both ends tell names apart."""
    half = (_MOST_LABEL - 1) // 2
    return (
        label
        if len(label) <= _MOST_LABEL
        else f"{label[:half]}\N{HORIZONTAL ELLIPSIS}{label[-half:]}"
    )


def rows_y(axes: Any, labels: list[str], bold: int | None = None) -> None:
    """Name the rows of an axis, the first at the top; one of them in bold."""
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    shown = axes.get_yticklabels()  # none on an axis that shares those of its neighbour
    if bold is not None and bold < len(shown):
        shown[bold].set(fontweight="bold", color=GOOD)


def key(
    axes: Any, runtimes: list[str], more: list[tuple[str, dict[str, Any]]], **place: Any
) -> None:
    """Draw a key: a mark for each runtime, then others."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="none", marker=look(name)[1], color=look(name)[0], label=name)
        for name in runtimes
    ]
    handles += [Line2D([], [], linestyle="none", label=label, **how) for label, how in more]
    axes.legend(handles=handles, frameon=False, labelcolor=SOFT, handletextpad=0.3, **place)
