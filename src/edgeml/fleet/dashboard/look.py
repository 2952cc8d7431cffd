"""Look: small pieces of HTML. Everything that comes from outside is escaped here."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from html import escape

NONE = "\N{EN DASH}"
#: State of a rollout, a device or a gate -> (colour, icon, word).
STATES: dict[str, tuple[str, str, str]] = {
    "online": ("ok", "ok", "online"),
    "offline": ("off", "off", "offline"),
    "ok": ("ok", "ok", "ok"),
    "degraded": ("warn", "warn", "degraded"),
    "failing": ("bad", "bad", "failing"),
    "unknown": ("off", "off", "unknown"),
    "draft": ("off", "off", "draft"),
    "running": ("busy", "busy", "installing"),
    "holding": ("busy", "wait", "watching"),
    "paused": ("warn", "pause", "paused"),
    "rolling_back": ("bad", "back", "rolling back"),
    "rolled_back": ("bad", "back", "rolled back"),
    "done": ("ok", "ok", "done"),
    "aborted": ("off", "bad", "aborted"),
    "waiting": ("off", "off", "waiting"),
    "sent": ("busy", "wait", "told"),
    "trying": ("busy", "busy", "installing"),
    "committed": ("ok", "ok", "committed"),
    "failed": ("bad", "bad", "failed"),
    "restored": ("warn", "back", "restored"),
    "pass": ("ok", "ok", "pass"),
    "fail": ("bad", "bad", "fail"),
    "wait": ("busy", "wait", "wait"),
    "undecided": ("warn", "warn", "undecided"),
    "info": ("off", "info", "info"),
    "warning": ("warn", "warn", "warning"),
    "critical": ("bad", "bad", "critical"),
    "quarantined": ("bad", "bad", "quarantined"),
}

_PATHS = {
    "ok": '<path d="M8 1.5a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13Zm3.2 4.9L7.4 10.6 4.9 8.2" '
    'fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" '
    'stroke-linejoin="round"/>',
    "warn": '<path d="M8 2 1.6 13.4h12.8L8 2Zm0 4.4v3.4m0 2v.1" fill="none" '
    'stroke="currentColor" stroke-width="1.6" stroke-linejoin="round" stroke-linecap="round"/>',
    "bad": '<path d="M5.3 1.6h5.4l3.7 3.7v5.4l-3.7 3.7H5.3l-3.7-3.7V5.3zM5.8 5.8l4.4 4.4m0-4.4'
    '-4.4 4.4" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" '
    'stroke-linejoin="round"/>',
    "off": '<circle cx="8" cy="8" r="6" fill="none" stroke="currentColor" stroke-width="1.6" '
    'stroke-dasharray="2.6 2.1"/>',
    "busy": '<path d="M8 1.9A6.1 6.1 0 1 1 2.7 5" fill="none" stroke="currentColor" '
    'stroke-width="1.8" stroke-linecap="round"/><circle cx="8" cy="8" r="2" '
    'fill="currentColor"/>',
    "wait": '<circle cx="8" cy="8" r="6.2" fill="none" stroke="currentColor" '
    'stroke-width="1.6"/><path d="M8 4.6V8l2.4 1.6" fill="none" stroke="currentColor" '
    'stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round"/>',
    "pause": '<circle cx="8" cy="8" r="6.2" fill="none" stroke="currentColor" '
    'stroke-width="1.6"/><path d="M6.5 5.6v4.8m3-4.8v4.8" stroke="currentColor" '
    'stroke-width="1.6" stroke-linecap="round"/>',
    "back": '<path d="M5.6 2.6 2.4 5.8l3.2 3.2M2.8 5.8h6.4a4 4 0 1 1 0 8H6" fill="none" '
    'stroke="currentColor" stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round"/>',
    "info": '<circle cx="8" cy="8" r="6.2" fill="none" stroke="currentColor" '
    'stroke-width="1.6"/><path d="M8 7.4v3.4M8 5v.1" stroke="currentColor" '
    'stroke-width="1.7" stroke-linecap="round"/>',
    "theme": '<path d="M8 1.8a6.2 6.2 0 1 0 0 12.4z" fill="currentColor"/><circle cx="8" '
    'cy="8" r="6.2" fill="none" stroke="currentColor" stroke-width="1.6"/>',
}

#: Every icon once; ``icon`` refers to it.
SPRITE = (
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true">'
    + "".join(
        f'<symbol id="i-{name}" viewBox="0 0 16 16">{path}</symbol>'
        for name, path in _PATHS.items()
    )
    + "</svg>"
)


def icon(name: str) -> str:
    """Return an icon; it says nothing to a screen reader, the word beside it does."""
    return f'<svg class="i" aria-hidden="true"><use href="#i-{name}"/></svg>'


def state(name: str, word: str = "") -> str:
    """Return a state as icon, colour and word."""
    colour, shape, usual = STATES.get(name, ("off", "info", name))
    return f'<span class="st {colour}">{icon(shape)}{escape(word or usual)}</span>'


def ago(moment: float, suffix: str = " ago") -> str:
    """Return a moment that the browser shows as the time since, and keeps current."""
    if not moment:
        return '<span class="mute">never</span>'
    full = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    return (
        f'<time data-at="{moment:.2f}" data-suffix="{escape(suffix)}" title="{full}">{full}</time>'
    )


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("not reached")


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits; a dash for None."""
    if value is None:
        return NONE
    if value and abs(value) < 10 ** (digits - 1):
        return f"{value:.{digits}g}" if abs(value) >= 0.01 else f"{value:.2g}"
    return f"{value:,.0f}".replace(",", "\N{THIN SPACE}")


def percent(value: float | None) -> str:
    """Return a share as a percentage; a dash for None."""
    if value is None:
        return NONE
    text = f"{100 * value:.1f}" if abs(value) >= 5e-4 or not value else f"{100 * value:.2f}"
    return f"{text.removesuffix('.0') if value in (0, 1) else text} %"


def count(number_of: int, singular: str, plural: str = "") -> str:
    """Return ``1 device``, ``2 devices``."""
    return f"{number_of} {singular if number_of == 1 else plural or singular + 's'}"


def link(href: str, text: str, kind: str = "") -> str:
    """Return a link."""
    return f'<a class="{kind}" href="{escape(href)}">{escape(text)}</a>'


def version(model: str, number_: str) -> str:
    """Return a model and its version."""
    if not number_:
        return '<span class="mute">nothing</span>'
    return f'<span class="ver">{escape(model)} <b>{escape(number_)}</b></span>'


def card(title: str, body: str, aside: str = "", kind: str = "") -> str:
    """Return a card with a heading."""
    head = f"<header><h2>{escape(title)}</h2><span>{aside}</span></header>" if title else ""
    return f'<section class="card {kind}">{head}{body}</section>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return a table of cells that are HTML already; ``right`` are columns of numbers."""
    marks = ["num" if i in right else "" for i in range(len(heads))]
    top = "".join(f'<th class="{m}">{escape(h)}</th>' for h, m in zip(heads, marks, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{m}">{cell}</td>' for cell, m in zip(row, marks, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and values, which are HTML already, as a list."""
    return (
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in pairs)
    ) + "</dl>"


def empty(what: str, command: str = "") -> str:
    """Return what is said when there is nothing yet, and what to type next."""
    typed = f"<pre><code>{escape(command)}</code></pre>" if command else ""
    return f'<div class="empty"><p>{escape(what)}</p>{typed}</div>'
