"""Frame: what every page has (head, navigation, live panels), and who looks at it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape

import msgspec
from nicegui import ui
from starlette.requests import Request

from edgeml.fleet.api import COOKIE
from edgeml.fleet.auth import User
from edgeml.fleet.dashboard.live import Live, Snapshot
from edgeml.fleet.dashboard.look import SPRITE, icon, link, state
from edgeml.fleet.rollout import ACTIVE

_SECTIONS = (
    ("Overview", "/"),
    ("Devices", "/devices"),
    ("Models", "/models"),
    ("Rollouts", "/rollouts"),
)
Draw = Callable[[Snapshot], str]
#: Ticks of a second between two looks whether the session still holds.
_SESSION_TICKS = 5


class Viewer(msgspec.Struct, frozen=True):
    """Who looks at a page.

    Attributes:
        token: Their session, to ask again before anything is changed.
        theme: ``light``, ``dark``, or empty for what the system says.
    """

    user: User
    token: str
    theme: str


def viewer_of(request: Request) -> Viewer:
    """Return who asked for a page; the door has let them in."""
    theme = request.cookies.get("edgeml_theme", "")
    return Viewer(
        user=request.state.user,
        token=request.cookies.get(COOKIE, ""),
        theme=theme if theme in {"light", "dark"} else "",
    )


class Board:
    """A page with panels that follow the fleet.

    Args:
        live: The fleet.
        viewer: Who looks.
        section: Which part of the navigation it belongs to.
        title: Title of the window.
    """

    def __init__(self, live: Live, viewer: Viewer, section: str, title: str = "") -> None:
        """Draw the frame; panels that are added now go into the page's body."""
        self.live, self.viewer = live, viewer
        self._section = section
        self._panels: list[tuple[ui.html, Draw]] = []
        self._followers: list[Callable[[Snapshot], None]] = []
        self._readers: list[Callable[[Snapshot], Awaitable[None]]] = []
        self._ticks = 0
        ui.page_title(f"{title or section} · edgeml")
        ui.dark_mode({"light": False, "dark": True}.get(viewer.theme))
        skew = f"<script>window.edgemlNow = {time.time():.3f} - Date.now() / 1000;</script>"
        ui.add_head_html(
            f'{skew}<link rel="stylesheet" href="/static/dashboard.css">'
            '<script src="/static/dashboard.js"></script>'
        )
        ui.add_body_html(SPRITE)
        self.body = ui.element("div").classes("shell")
        self.panel(self._head, "top", tag="header")
        with self.body:
            self.body = ui.element("div").classes("page")
        self.panel(broker_lost)
        ui.timer(1.0, self.refresh)

    def panel(self, draw: Draw, classes: str = "panel", tag: str = "div") -> None:
        """Add HTML that is drawn anew from every snapshot, and sent when it has changed."""
        with self.body:
            element = ui.html("", sanitize=False, tag=tag).classes(classes)
        self._panels.append((element, draw))

    def fixed(self, content: str, classes: str = "panel") -> None:
        """Add HTML that stays as it is."""
        with self.body:
            ui.html(content, sanitize=False).classes(classes)

    @contextmanager
    def row(self, classes: str) -> Iterator[None]:
        """Put what is added meanwhile into a box of its own."""
        page = self.body
        with page:
            self.body = ui.element("div").classes(classes)
        yield
        self.body = page

    def columns(self, columns: Sequence[tuple[str, Sequence[Draw]]]) -> None:
        """Add columns of panels, each with its class."""
        with self.row("columns"):
            for classes, draws in columns:
                with self.row(classes):
                    for draw in draws:
                        self.panel(draw)

    def before(self, read: Callable[[Snapshot], Awaitable[None]]) -> None:
        """Call something before the panels are drawn, to read what they need."""
        self._readers.append(read)

    def follow(self, follower: Callable[[Snapshot], None]) -> None:
        """Call something with every snapshot."""
        self._followers.append(follower)

    async def refresh(self) -> None:
        """Show the fleet as it is now; go to the login when the session has ended."""
        self._ticks += 1
        if self._ticks % _SESSION_TICKS == 0 and not await self.user():
            ui.navigate.to("/login")
            return
        seen = await self.live.snapshot()
        for read in self._readers:
            await read(seen)
        for element, draw in self._panels:
            # NiceGUI sends a content only when it differs from what the browser has.
            element.set_content(draw(seen))
        for follower in self._followers:
            follower(seen)

    async def user(self) -> User | None:
        """Return who looks, asked anew; None when the session has ended."""
        return await asyncio.to_thread(self.live.services.who, self.viewer.token)

    def _head(self, seen: Snapshot) -> str:
        links = []
        for name, href in _SECTIONS:
            mark = ' aria-current="page"' if name == self._section else ""
            badge = ""
            going = sum(r.state in ACTIVE for r in seen.rollouts)
            if name == "Rollouts" and going:
                badge = f'<b class="pill">{going}</b>'
            links.append(f'<a href="{href}"{mark}>{name}{badge}</a>')
        broker = state("online", "broker") if seen.connected else state("failing", "broker lost")
        who = escape(self.viewer.user.name)
        return (
            f'<a class="brand" href="/"><img src="/static/mark.svg" alt="" width="22" '
            f'height="22"><b>edgeml</b><span>{escape(seen.fleet)}</span></a>'
            f'<nav aria-label="Pages">{"".join(links)}</nav><div class="tools">{broker}'
            f'<button type="button" class="quiet" onclick="edgeml.theme()" '
            f'title="Light or dark" aria-label="Light or dark">{icon("theme")}</button>'
            f'<form method="post" action="/logout"><span class="who" '
            f'title="{escape(self.viewer.user.role)}">{who}</span>'
            '<button class="quiet">Log out</button></form></div>'
        )


def broker_lost(seen: Snapshot) -> str:
    """Return the banner that says that nobody knows which devices are online; empty else."""
    if seen.connected:
        return ""
    return (
        f'<p class="callout bad" role="alert">{icon("warn")}Broker lost '
        f"{seen.lost_for:.0f} s ago: nobody knows which devices are online. They go on serving, "
        "and are reached again with the broker.</p>"
    )


def heading(title: str, aside: str = "", above: tuple[str, str] | None = None) -> str:
    """Return a page's heading (text), with HTML beside it and a link to the page above."""
    up = f"{link(above[0], above[1])}<span>/</span>" if above else ""
    return f'<div class="heading"><h1>{up}{escape(title)}</h1><div>{aside}</div></div>'
