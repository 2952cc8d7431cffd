"""Door: who may see the pages. Login, logout, and what stands before every page.

A browser is known by the session cookie of the API, which goes along with requests of the same
site only. Without one, a page sends to the login, and a live connection is refused. Pages may load
from this server only, and may not be framed: the browser itself holds that, by a policy.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI, HTTPException
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeml.fleet.api import COOKIE
from edgeml.fleet.services import Services

STATIC = Path(__file__).parent / "static"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = ("dashboard.css", "dashboard.js", "mark.svg")
#: Pages and files for everybody.
_OPEN = frozenset({"/login", "/logout", *(f"/static/{name}" for name in _FILES)})
#: NiceGUI needs code in the page; nothing may come from elsewhere.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


class Door:
    """Middleware before all pages; the API looks after itself."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        """Stand before ``app``."""
        self._app, self._services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let in who is known."""
        if scope["type"] == "lifespan" or scope["path"].startswith("/api/"):
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        assets = path.startswith("/_nicegui/")
        if path not in _OPEN and not assets:
            token = HTTPConnection(scope).cookies.get(COOKIE, "")
            user = await run_in_threadpool(self._services.who, token) if token else None
            if user is None:
                await _refuse(scope, receive, send)
                return
            scope.setdefault("state", {})["user"] = user

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                if not assets and not path.startswith("/static/"):
                    headers["cache-control"] = "no-store"
            await send(message)

        await self._app(scope, receive, with_headers)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Send a browser to the login; close anything else."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 4401, "reason": "log in first"})
        return
    response: Response
    if scope["path"].startswith("/_nicegui") or scope["method"] not in {"GET", "HEAD"}:
        response = Response("log in first\n", 401, media_type="text/plain")
    else:
        response = RedirectResponse(f"/login?next={quote(scope['path'], safe='/')}", 303)
    await response(scope, receive, send)


def add_door(app: FastAPI, services: Services) -> None:
    """Add login, logout and static files, and guard everything else but the API."""
    page = (STATIC / "login.html").read_text()

    @app.get("/login", include_in_schema=False)
    def login() -> HTMLResponse:
        """Ask for name and password; the page itself talks to the API."""
        return HTMLResponse(page)

    @app.post("/logout", include_in_schema=False)
    async def logout(request: Request) -> RedirectResponse:
        """End the session."""
        token = request.cookies.get(COOKIE, "")
        if token:
            await run_in_threadpool(services.logout, token)
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE)
        return answer

    @app.get("/static/{name}", include_in_schema=False)
    def static(name: str) -> FileResponse:
        """Style, script and mark."""
        if name not in _FILES:
            raise HTTPException(404, f"no file '{name}'")
        path = STATIC / name
        return FileResponse(path, media_type=_TYPES[path.suffix])

    @app.api_route(
        "/api/{rest:path}",
        methods=["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"],
        include_in_schema=False,
    )
    def unknown(rest: str) -> Response:
        """Say in the API's way that there is nothing, instead of showing a page."""
        raise HTTPException(404, f"nothing at /api/{rest}")

    app.add_middleware(Door, services=services)
