"""The serving process: sockets, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from edgeml.errors import UsageError
from edgeml_agent.serve.control import ControlServer
from edgeml_agent.serve.engine import Engine
from edgeml_agent.serve.http import Connection, Limits, Peers
from edgeml_agent.serve.routes import Routes
from edgeml_agent.serve.settings import Settings, check_settings
from edgeml_agent.serve.slots import Slots

logger = logging.getLogger(__name__)

#: A restarted process waits so long for the port of the one before it.
_BIND_SECONDS = 5.0
#: At the end, replies that take longer than this are cut.
_DRAIN_SECONDS = 20.0


class DataPlane:
    """Everything that one serving process holds. Lives on the loop.

    Args:
        settings: How to listen, and what to bound.

    Attributes:
        slots: The models.
        addresses: What it listens on, once started: ``http://...``, ``unix:...``.
    """

    def __init__(self, settings: Settings) -> None:
        """Check the settings; start nothing.

        Raises:
            UsageError: They do not hold.
        """
        check_settings(settings)
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if not settings.cache:
            self._temporary = tempfile.TemporaryDirectory(prefix="edgeml-serve-")
        cache = Path(self._temporary.name if self._temporary else settings.cache)
        self.slots = Slots(settings, cache, self._loop)
        self.addresses: list[str] = []
        engine = Engine(self.slots, settings.deadline_seconds, settings.allow_nonfinite)
        self._routes = Routes(engine, settings.max_body)
        self._peers = Peers(self._loop, settings.max_connections)
        self._servers: list[asyncio.Server] = []
        self._control: ControlServer | None = None
        self._sockets: list[Path] = []
        self._stopping = asyncio.Event()
        # From the first moment: a signal that comes while a model loads is an orderly end too.
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop)

    def stop(self) -> None:
        """Ask for the end; ``run`` then returns in order."""
        self._stopping.set()

    async def start(self, control: str = "") -> None:
        """Listen.

        Args:
            control: Path of the supervisor's socket; empty for none.

        Raises:
            UsageError: An address cannot be bound.
        """
        settings = self._settings
        address = settings.address()
        if address is not None:
            await self._bind(lambda: self._listen_tcp(*address), settings.http)
        if settings.uds:
            await self._bind(lambda: self._listen_unix(settings.uds), settings.uds)
        if control:
            self._control = ControlServer(self.slots, self.stop)
            server = self._control
            self._make_room(control)
            await self._bind(lambda: server.start(control), control)

    async def run(self) -> None:
        """Serve until ``stop``; then take nothing new, answer what is in flight, and close."""
        await self._stopping.wait()
        logger.info("stopping: answering what is in flight")
        for server in self._servers:
            server.close()
        await self._peers.drain(_DRAIN_SECONDS)
        await self.close()

    async def close(self) -> None:
        """Give everything back. Safe to call twice."""
        await self.slots.close()
        if self._control is not None:
            self._control.close()
        for path in self._sockets:
            path.unlink(missing_ok=True)
        if self._temporary is not None:
            self._temporary.cleanup()

    async def _listen_tcp(self, host: str, port: int) -> None:
        server = await self._loop.create_server(self._connection(self._settings.token), host, port)
        self._servers.append(server)
        bound, number = server.sockets[0].getsockname()[:2]
        shown = f"[{bound}]" if ":" in bound else bound
        self.addresses.append(f"http://{shown}:{number}")

    async def _listen_unix(self, path: str) -> None:
        self._make_room(path)
        # Who may open the socket's folder may ask: the file system is the guard, not the token.
        server = await self._loop.create_unix_server(self._connection(""), path)
        self._servers.append(server)
        self.addresses.append(f"unix:{path}")

    def _connection(self, token: str) -> Callable[[], Connection]:
        settings = self._settings
        limits = Limits(settings.max_body, settings.request_seconds, settings.idle_seconds, token)
        return lambda: Connection(self._routes.handle, limits, self._loop, self._peers)

    def _make_room(self, path: str) -> None:
        """Remove the socket that an earlier process left behind.

        Raises:
            UsageError: Something else stands there.
        """
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(place.stat().st_mode):
                raise UsageError(f"'{path}' exists and is not a socket", "choose another path")
            place.unlink()
        self._sockets.append(place)

    async def _bind(self, listen: Callable[[], Awaitable[None]], what: str) -> None:
        """Listen; wait a moment for a process that is about to leave the address.

        Raises:
            UsageError: It stays taken, is no address of this machine, or may not be used.
        """
        end = self._loop.time() + _BIND_SECONDS
        while True:
            try:
                return await listen()
            except OSError as error:
                taken = error.errno == errno.EADDRINUSE
                if taken and self._loop.time() < end:
                    await asyncio.sleep(0.05)
                    continue
                message = f"cannot listen on '{what}': {error.strerror or error}"
                stop = "stop the process that uses it, or " if taken else ""
                raise UsageError(message, f"{stop}choose another address") from error


def run_loop(main: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine on uvloop where it is installed, else on asyncio's own loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        logger.debug("uvloop is not installed")
    else:
        factory = uvloop.new_event_loop

    async def call() -> None:
        await main()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(call())
