"""Pages: which page is where, and what of the fleet it looks at."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from html import escape
from typing import TypeVar

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from nicegui import app as nicegui_app
from nicegui import ui
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from edgeml.errors import InputError
from edgeml.fleet.dashboard import device, devices, models, overview, rollout, rollouts
from edgeml.fleet.dashboard.actions import Actions
from edgeml.fleet.dashboard.door import STATIC, add_door
from edgeml.fleet.dashboard.frame import Board, viewer_of
from edgeml.fleet.dashboard.live import Live, Snapshot
from edgeml.fleet.services import Services
from edgeml.fleet.views import DeviceDetail, RolloutDetail, VersionDetail

T = TypeVar("T")


def add_pages(app: FastAPI, services: Services) -> None:
    """Add login, pages and what they need to an application."""
    live = Live(services)
    add_door(app, services)
    _lists(live)
    _one_device(live)
    _one_rollout(live)
    nicegui_app.add_exception_handler(404, _nothing)
    nicegui_app.on_shutdown(live.close)
    ui.run_with(
        app,
        title="edgeml",
        favicon=STATIC / "mark.svg",
        dark=None,
        tailwind=False,
        show_welcome_message=False,
        storage_secret=None,
        # Pages are small and the API is not behind it; compressing costs more than it saves.
        gzip_middleware_factory=None,
    )


async def _nothing(_request: Request, error: Exception) -> Response:
    """Say that there is no such page, in one line."""
    said = error.detail if isinstance(error, HTTPException) else ""
    told = escape(said if said and said != "Not Found" else "there is no such page")
    return HTMLResponse(
        '<!doctype html><html lang="en"><title>Not found · edgeml</title>'
        '<link rel="stylesheet" href="/static/dashboard.css"><body class="login">'
        f'<main class="card"><h1>Not found</h1><p>{told}</p><p><a href="/">Overview</a></p></main>',
        404,
    )


def _lists(live: Live) -> None:
    @ui.page("/")
    async def overview_page(request: Request) -> None:
        """Show the fleet at a glance."""
        board = Board(live, viewer_of(request), "Overview")
        overview.build(board)
        await board.refresh()

    @ui.page("/devices")
    async def devices_page(request: Request) -> None:
        """Show all devices."""
        board = Board(live, viewer_of(request), "Devices")
        devices.build(board, await live.snapshot())
        await board.refresh()

    @ui.page("/models")
    async def models_page(request: Request) -> None:
        """Show the registry."""
        board = Board(live, viewer_of(request), "Models")
        details: dict[str, VersionDetail] = {}

        async def more(seen: Snapshot) -> None:
            for row in seen.versions:
                if row.digest not in details:
                    make = partial(live.services.version, row.model, row.version)
                    details[row.digest] = await live.shared(("version", row.digest), make)

        board.before(more)
        board.panel(lambda seen: models.draw(seen, details))
        await board.refresh()

    @ui.page("/rollouts")
    async def rollouts_page(request: Request) -> None:
        """Show all rollouts."""
        board = Board(live, viewer_of(request), "Rollouts")
        board.panel(rollouts.draw)
        await board.refresh()


def _one_device(live: Live) -> None:
    @ui.page("/devices/{name}")
    async def device_page(request: Request, name: str) -> None:
        """Show one device."""
        held: list[DeviceDetail] = []

        async def read(_seen: Snapshot) -> None:
            held[:] = [await _found(live, ("device", name), lambda: live.services.device(name))]

        await read(await live.snapshot())
        board = Board(live, viewer_of(request), "Devices", name)
        board.before(read)
        board.panel(lambda _: device.head(held[0]))
        left = (
            lambda _: device.slots(held[0]),
            lambda _: device.latency(live.history(name)),
            lambda _: device.accuracy(held[0].traffic),
        )
        right = (lambda _: device.machine(held[0]), lambda _: device.history(held[0]))
        board.columns((("wide", left), ("narrow", right)))
        await board.refresh()


def _one_rollout(live: Live) -> None:
    @ui.page("/rollouts/{name}")
    async def rollout_page(request: Request, name: str) -> None:
        """Show one rollout."""
        held: list[RolloutDetail] = []

        async def read(_seen: Snapshot) -> None:
            held[:] = [await _found(live, ("rollout", name), lambda: live.services.rollout(name))]

        await read(await live.snapshot())
        board = Board(live, viewer_of(request), "Rollouts", f"Rollout {name}")
        board.before(read)
        actions = Actions(board, name)
        board.follow(lambda _: actions.follow(held[0]))
        board.panel(lambda _: rollout.head(held[0]))
        board.panel(lambda _: rollout.timeline(held[0]))
        left = (lambda _: rollout.evidence(held[0]),)
        right = (lambda _: rollout.decisions(held[0]),)
        board.columns((("wide", left), ("narrow", right)))
        board.panel(lambda _: rollout.parts(held[0]))
        await board.refresh()


async def _found(live: Live, key: object, make: Callable[[], T]) -> T:
    """Return what a page shows.

    Raises:
        HTTPException: 404, when there is no such thing.
    """
    try:
        return await live.shared(key, make)
    except InputError as error:
        hint = f" ({error.hint})" if error.hint else ""
        raise HTTPException(404, f"{error.message}{hint}") from error
