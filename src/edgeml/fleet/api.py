"""The REST API: ``/api/v1/...`` with OpenAPI at ``/api/openapi.json``.

Who asks is known by a bearer token (the command line) or by a session cookie (a browser). A
cookie is sent by the browser alone to pages of the same site (SameSite=Strict), and what changes
something must be JSON or a bundle, which no foreign form can send. Errors are
``application/problem+json`` and carry the exit code of the command line.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import msgspec
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from edgeml.errors import (
    EdgemlError,
    GateError,
    InputError,
    MissingPackageError,
    NotTrustedError,
    UnreachableError,
    UsageError,
)
from edgeml.fleet import views
from edgeml.fleet.api_measuring import measuring_routes
from edgeml.fleet.api_upload import received
from edgeml.fleet.auth import SESSION_SECONDS, User
from edgeml.fleet.openapi import (
    Alias,
    Control,
    Enrol,
    Login,
    Problem,
    install,
    reply,
    shape,
)
from edgeml.fleet.services import Services

logger = logging.getLogger(__name__)

COOKIE = "edgeml_session"
MAX_BODY = 1 << 20
_STREAM_QUEUE = 1000
_KEEPALIVE = 15.0
_STATUS: tuple[tuple[type[EdgemlError], int], ...] = (
    (GateError, 409),
    (NotTrustedError, 403),
    (InputError, 422),
    (UsageError, 422),
    (MissingPackageError, 501),
    (UnreachableError, 503),
)
_EXIT_BY_STATUS = {401: 4, 403: 4, 429: 4}
_TRIES, _LOCK_SECONDS = 5, 30.0

T = TypeVar("T", bound=msgspec.Struct)


def create_app(services: Services) -> FastAPI:
    """Return the application; a dashboard may be mounted on it."""
    from edgeml import __version__

    app = FastAPI(
        title="edgeml fleet",
        version=__version__,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    install(app)
    _errors(app)
    guard = _Guard(services)
    _session_routes(app, services, guard)
    _read_routes(app, services, guard)
    _rollout_routes(app, services, guard)
    _registry_routes(app, services, guard)
    measuring_routes(app, services, guard.viewer, guard.admin)
    return app


class _Guard:
    """Who asks, and how often somebody failed to say."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._failed: dict[str, tuple[int, float]] = {}

    async def viewer(self, request: Request) -> User:
        """Return who asks.

        Raises:
            HTTPException: 401, without a token that is good.
        """
        token = token_of(request)
        user = await run_in_threadpool(self._services.who, token) if token else None
        if user is None:
            said = "the token is not known, or has ended" if token else "not logged in"
            raise HTTPException(401, said)
        return user

    async def admin(self, request: Request) -> User:
        """Return who asks, when they may change the fleet.

        Raises:
            HTTPException: 401 or 403.
        """
        user = await self.viewer(request)
        if not user.may_change:
            raise HTTPException(403, f"'{user.name}' may look at the fleet, but not change it")
        return user

    def check(self, name: str) -> None:
        """Slow guessing down.

        Raises:
            HTTPException: 429, after some failures in a row.
        """
        tries, last = self._failed.get(name, (0, 0.0))
        if tries >= _TRIES and time.monotonic() - last < _LOCK_SECONDS:
            raise HTTPException(429, f"too many failed logins of '{name}': wait half a minute")

    def failed(self, name: str) -> None:
        """Count a failed login."""
        if len(self._failed) > 10_000:
            self._failed.clear()
        self._failed[name] = (self._failed.get(name, (0, 0.0))[0] + 1, time.monotonic())

    def good(self, name: str) -> None:
        """Forget the failures of a user."""
        self._failed.pop(name, None)


def token_of(request: Request) -> str:
    """Return the bearer token or the session of a request; empty when it has none."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    return request.cookies.get(COOKIE, "")


async def _body(request: Request, kind: type[T]) -> T:
    """Return the struct in a JSON body.

    Raises:
        UsageError: It is too long, or not such a struct.
    """
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise UsageError(
            f"body of type '{request.headers.get('content-type', '')}'", "send application/json"
        )
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY:
            raise UsageError(f"a body of more than {MAX_BODY} bytes")
    try:
        return msgspec.json.decode(bytes(data), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the body is no {kind.__name__}: {error}") from error


def _problem(family: str, status: int, detail: str, hint: str = "", code: int = 70) -> Response:
    title = {401: "Not logged in", 403: "Not allowed", 404: "Not found"}.get(status, family)
    body = Problem(family, title, status, detail, hint, code)
    return Response(msgspec.json.encode(body), status, media_type="application/problem+json")


def _errors(app: FastAPI) -> None:
    """Turn every error into a problem."""

    async def ours(_request: Request, error: Exception) -> Response:
        assert isinstance(error, EdgemlError)
        status = next((s for family, s in _STATUS if isinstance(error, family)), 500)
        name = type(error).__name__
        return _problem(name, status, error.message, error.hint, error.exit_code)

    async def http(_request: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        code = _EXIT_BY_STATUS.get(error.status_code, 2)
        family = "NotTrustedError" if code == 4 else "UsageError"
        return _problem(family, error.status_code, str(error.detail), code=code)

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _problem("UsageError", 422, f"{where}: {first['msg']}", code=2)

    async def bug(_request: Request, error: Exception) -> Response:
        return _problem("InternalError", 500, f"internal error: {type(error).__name__}")

    app.add_exception_handler(EdgemlError, ours)
    app.add_exception_handler(StarletteHTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, bug)


def _session_routes(app: FastAPI, services: Services, guard: _Guard) -> None:
    @app.post("/api/v1/login", tags=["session"], **shape(views.Session, takes=Login))
    async def login(request: Request) -> Response:
        """Start a session: a cookie for a browser, the same token for others."""
        asked = await _body(request, Login)
        guard.check(asked.user)
        try:
            session = await run_in_threadpool(services.login, asked.user, asked.password)
        except NotTrustedError as error:
            guard.failed(asked.user)
            raise HTTPException(401, error.message) from error
        guard.good(asked.user)
        answer = reply(session)
        answer.set_cookie(
            COOKIE,
            session.token,
            max_age=int(SESSION_SECONDS),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @app.post("/api/v1/logout", tags=["session"], dependencies=[Depends(guard.viewer)])
    async def logout(request: Request) -> Response:
        """End the session."""
        await run_in_threadpool(services.logout, token_of(request))
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE)
        return answer


def _read_routes(app: FastAPI, services: Services, guard: _Guard) -> None:
    seen: dict[str, Any] = {"dependencies": [Depends(guard.viewer)], "tags": ["fleet"]}

    @app.get("/api/v1/devices", **seen, **shape(views.DeviceRow, many=True))
    def devices() -> Response:
        """All devices."""
        return reply(services.devices())

    @app.get("/api/v1/devices/{device}", **seen, **shape(views.DeviceDetail))
    def device(device: str) -> Response:
        """One device."""
        return reply(services.device(device))

    @app.get("/api/v1/events", **seen, **shape(views.EventRow, many=True))
    def events(after: int = 0, limit: int = 100, device: str = "") -> Response:
        """The newest events, newest first."""
        return reply(services.events(after, max(1, min(limit, 1000)), device))

    @app.get("/api/v1/health", **seen, **shape(views.FleetHealth))
    def health() -> Response:
        """The fleet at a glance."""
        return reply(services.health())

    @app.get("/api/v1/stream", **seen)
    async def stream(request: Request) -> StreamingResponse:
        """Changes as they happen (server-sent events; each is a Change)."""
        return StreamingResponse(_changes(services, request), media_type="text/event-stream")


async def _changes(services: Services, request: Request) -> AsyncIterator[bytes]:
    """Yield changes until the client or the server goes away."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[views.Change] = asyncio.Queue(_STREAM_QUEUE)

    def put(change: views.Change) -> None:
        # A client that does not read loses changes, not the server its memory.
        if not waiting.full():
            waiting.put_nowait(change)

    end = services.subscribe(lambda change: _soon(loop, put, change))
    try:
        yield b": connected\n\n"
        said = loop.time()
        while not services.closing.is_set() and not await request.is_disconnected():
            try:
                change = await asyncio.wait_for(waiting.get(), 0.5)
            except TimeoutError:
                if loop.time() - said > _KEEPALIVE:
                    said = loop.time()
                    yield b": still here\n\n"
                continue
            yield b"event: change\ndata: " + msgspec.json.encode(change) + b"\n\n"
    finally:
        end()


def _soon(
    loop: asyncio.AbstractEventLoop, put: Callable[[views.Change], None], change: views.Change
) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(put, change)


def _rollout_routes(app: FastAPI, services: Services, guard: _Guard) -> None:
    seen: dict[str, Any] = {"dependencies": [Depends(guard.viewer)], "tags": ["rollouts"]}
    admin: User = Depends(guard.admin)

    @app.get("/api/v1/rollouts", **seen, **shape(views.RolloutRow, many=True))
    def rollouts(limit: int = 100) -> Response:
        """Rollouts, newest first."""
        return reply(services.rollouts(max(1, min(limit, 1000))))

    @app.get("/api/v1/rollouts/{rollout}", **seen, **shape(views.RolloutDetail))
    def rollout(rollout: str) -> Response:
        """One rollout with its devices, verdicts and decisions."""
        return reply(services.rollout(rollout))

    asks = shape(views.Plan, takes=views.RolloutRequest)

    @app.post("/api/v1/rollouts/preview", **seen, **asks)
    async def preview(request: Request) -> Response:
        """What a rollout would do."""
        asked = await _body(request, views.RolloutRequest)
        return reply(await run_in_threadpool(services.preview, asked))

    asks = shape(views.RolloutRow, takes=views.RolloutRequest)

    @app.post("/api/v1/rollouts", tags=["rollouts"], **asks)
    async def create(request: Request, user: User = admin) -> Response:
        """Make a rollout and start it."""
        asked = await _body(request, views.RolloutRequest)
        return reply(await run_in_threadpool(services.create_rollout, asked, user.name))

    asks = shape(views.RolloutRow, takes=Control)

    @app.post("/api/v1/rollouts/{rollout}/{action}", tags=["rollouts"], **asks)
    async def control(rollout: str, action: str, request: Request, user: User = admin) -> Response:
        """Ask a rollout to pause, resume, abort or rollback."""
        why = (await _body(request, Control)).reason
        reason = f"{why} ({user.name})" if why else f"{action} by {user.name}"
        return reply(await run_in_threadpool(services.control, rollout, action, reason))


def _registry_routes(app: FastAPI, services: Services, guard: _Guard) -> None:
    seen: dict[str, Any] = {"dependencies": [Depends(guard.viewer)], "tags": ["registry"]}
    admin: User = Depends(guard.admin)

    @app.get("/api/v1/models", **seen, **shape(views.VersionRow, many=True))
    def models(model: str = "") -> Response:
        """Versions in the registry, newest first."""
        return reply(services.versions(model))

    @app.get("/api/v1/models/{model}/{version}", **seen, **shape(views.VersionDetail))
    def version(model: str, version: str) -> Response:
        """One version (SemVer or @alias) with its variants and its lineage."""
        return reply(services.version(model, version))

    @app.post("/api/v1/models", tags=["registry"], **shape(views.VersionRow))
    async def push(request: Request, user: User = admin) -> Response:
        """Take a bundle in: one tar, as application/octet-stream."""
        return reply(await received(request, services, lambda p: services.push(p, user.name)))

    asks = shape(views.VersionRow, takes=Alias)

    @app.put("/api/v1/models/{model}/aliases/{alias}", tags=["registry"], **asks)
    async def set_alias(model: str, alias: str, request: Request, user: User = admin) -> Response:
        """Point an alias at a version."""
        asked = await _body(request, Alias)
        del user
        return reply(await run_in_threadpool(services.set_alias, model, alias, asked.version))

    asks = shape(views.Released, takes=Control)

    @app.post("/api/v1/models/{model}/{version}/release", tags=["registry"], **asks)
    async def release(model: str, version: str, request: Request, user: User = admin) -> Response:
        """Lift a version's quarantine; the reason must be given."""
        why = (await _body(request, Control)).reason
        return reply(await run_in_threadpool(services.release, model, version, why, user.name))

    @app.post("/api/v1/devices/{device}/enrol", tags=["fleet"])
    async def enrol(device: str, request: Request, user: User = admin) -> Response:
        """Make a device known; the reply is its enrolment file (201; 200 when it was known)."""
        asked = await _body(request, Enrol)
        del user
        made = await run_in_threadpool(services.enrol, device, asked.profile, asked.tags)
        return Response(made.file, 200 if made.known else 201, media_type="application/json")
