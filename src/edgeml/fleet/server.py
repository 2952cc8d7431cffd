"""The fleet's server: broker, database, controller, API and pages in one process.

::

    data/fleet.db         the database
    data/registry/        blobs of the bundles
    data/scratch/         bundles of candidates while devices measure them
    data/trust/           keys and trust metadata
    data/broker/          what the embedded broker keeps
    data/admin-token      token for the command line (0600), written at the first start
    data/lock             held while a server runs on this folder
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TextIO

import msgspec
import uvicorn
from fastapi import FastAPI

from edgeml.errors import EdgemlError, InputError, UsageError
from edgeml.fleet import auth, inventory, telemetry
from edgeml.fleet.api import create_app
from edgeml.fleet.blocks import BlockServer
from edgeml.fleet.broker import EmbeddedBroker, is_loopback
from edgeml.fleet.controller import KEEP_DAYS, Controller
from edgeml.fleet.dashboard import mount
from edgeml.fleet.registry import Registry
from edgeml.fleet.scratch import Scratch
from edgeml.fleet.services import Services
from edgeml.fleet.store import Store
from edgeml.link.mqtt import MqttLink
from edgeml.messages.topics import check_name
from edgeml.trust.repository import TrustRepository

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 12 * 3600.0
_LOOK_SECONDS = 1.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to serve.

    Attributes:
        data: Folder for everything that is kept; made when it is not there.
        fleet: Name of the fleet.
        http: Host and port of API and pages; port 0 for a free one.
        mqtt: Host and port of the embedded broker; port 0 for a free one.
        broker: Host and port of a broker that is there already; then none is started.
        seen_as: Host and port of the broker as devices see it; the same when None.
        tick: Seconds between two looks at the gates.
        keep_days: How long telemetry and events are kept.
        after_restore: Whether the folder is an older copy: then all numbers begin anew above
            whatever was published since it was made.
    """

    data: Path
    fleet: str = "default"
    http: tuple[str, int] = ("127.0.0.1", 8080)
    mqtt: tuple[str, int] = ("127.0.0.1", 1883)
    broker: tuple[str, int] | None = None
    seen_as: tuple[str, int] | None = None
    tick: float = 1.0
    keep_days: float = KEEP_DAYS
    after_restore: bool = False


class Ready(msgspec.Struct, frozen=True):
    """What people need to know once it runs.

    Attributes:
        url: Address of API and pages.
        mqtt: Address of the broker.
        user: Name of the first admin.
        password: Its password, only at the first start; empty later.
        token_file: Where the token for the command line is.
        broker: Which broker was started; empty when it was there already.
    """

    url: str
    mqtt: str
    user: str
    password: str
    token_file: str
    broker: str = ""


class Fleet:
    """All parts of a server but HTTP. Start and stop it on the same, long-lived thread.

    Args:
        settings: How to serve.

    Raises:
        UsageError: Another server runs on the folder, or a setting cannot be used.
        InputError: The folder or its database cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        """Open what is kept, and make it at the first start."""
        check_name(settings.fleet, "fleet")
        data = settings.data
        self._lock = _lock(data)
        self.store = Store.at(data / "fleet.db")
        self.trust = _open_trust(data / "trust")
        if settings.after_restore:
            outnumber(self.store, self.trust, int(time.time()))
        self._broker = None
        if settings.broker is None:
            self._broker = EmbeddedBroker(*settings.mqtt, data / "broker")
            address = (self._broker.host, self._broker.port)
        else:
            address = settings.broker
        self.mqtt = address
        # A client id of its own: a second server on the same broker must not steal the session.
        name = f"fleet-{settings.fleet}-{secrets.token_hex(4)}"
        link = MqttLink(*address, name, session_expiry=0, backoff=(0.2, 10.0))
        registry = Registry(data / "registry", self.trust)
        scratch = Scratch(data / "scratch", registry)
        blocks = BlockServer(link, scratch, self.trust.metadata)
        self.controller = Controller(
            settings.fleet,
            self.store,
            link,
            self.trust.director_signer,
            blocks,
            scratch=scratch,
            tick=settings.tick,
            keep_days=settings.keep_days,
        )
        self.services = Services(
            self.store,
            self.controller,
            registry,
            lambda: self.trust.root_bytes,
            settings.seen_as or address,
            scratch,
        )
        self._token_file = data / auth.TOKEN_FILE
        #: Of the first admin, when ``start`` has just made one; kept nowhere.
        self.password = ""
        self._stopping = threading.Event()
        self._over = threading.Event()
        self._refresher = threading.Thread(target=self._refresh, name="fleet-trust", daemon=True)
        self._keeper = threading.Thread(target=self._keep_broker, name="fleet-broker", daemon=True)

    @property
    def broker(self) -> str:
        """Kind of the embedded broker; empty without one."""
        return self._broker.kind if self._broker is not None else ""

    def start(self) -> None:
        """Start the broker, connect and work.

        Raises:
            UsageError: The broker's port is taken.
            UnreachableError: The broker does not start.
        """
        if self._broker is not None:
            self._broker.start()
        # Not before: a password that was made by a start that failed would never be shown.
        with self.store.write() as db:
            self.password = auth.first_admin(db, self._token_file, self.controller.clock())
        self.controller.start()
        self._refresher.start()
        self._keeper.start()

    def stop(self) -> None:
        """Stop in the order in which nothing is lost."""
        self.services.closing.set()
        self._stopping.set()
        if self._refresher.is_alive():
            self._refresher.join()
        self.controller.stop()
        if self._broker is not None:
            self._broker.stop()
        self._over.set()
        if self._keeper.is_alive():
            self._keeper.join()
        self.store.close()
        self._lock.close()

    def _keep_broker(self) -> None:
        """Start the embedded broker again when it ends; the controller refills it."""
        while not self._stopping.wait(_LOOK_SECONDS):
            if self._broker is None or self._broker.running:
                continue
            logger.error("the broker has ended, and is started again")
            try:
                self._broker.start()
            except EdgemlError as error:
                logger.error("%s", error)
        # The kernel ends a broker with the thread that started it: not before its turn.
        self._over.wait()

    def _refresh(self) -> None:
        """Sign the trust metadata anew, long before it ends."""
        while not self._stopping.wait(_REFRESH_SECONDS):
            self.trust.refresh()


def outnumber(store: Store, trust: TrustRepository, number: int) -> None:
    """Raise the versions of trust metadata and the generations of orders to ``number`` and above.

    Devices refuse lower numbers than they have seen, and an older copy has lower ones. Numbers rise
    by one per push or order, so the seconds since 1970 are above all of them, also above those that
    an earlier call gave.

    Raises:
        NotTrustedError: A key that must sign is not here.
    """
    trust.outnumber(number)
    with store.write() as db:
        inventory.outnumber(db, number)
        told = f"an older copy was restored: versions and generations begin at {number}"
        telemetry.add_event(db, "restore", "warning", told, time.time())
    logger.warning("%s", told)


def build_app(fleet: Fleet) -> FastAPI:
    """Return the web application of a fleet: API and pages."""
    return create_app(fleet.services)


def serve(settings: Settings, ready: Callable[[Ready], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: How to serve.
        ready: Called once connections are taken.

    Raises:
        UsageError: An address is in use, or see ``Fleet``.
        InputError: See ``Fleet``.
        UnreachableError: The broker does not start.
    """
    listener = _listen(*settings.http)
    host, port = settings.http[0], listener.getsockname()[1]
    if not is_loopback(host):
        logger.warning("%s can be reached from outside, without TLS: put a proxy before it", host)
    fleet = Fleet(settings)
    try:
        fleet.start()
        app = build_app(fleet)
        mount(app, fleet.services, settings.data)
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=3)
        named = f"[{host}]" if ":" in host else host
        found = Ready(
            url=f"http://{named}:{port}",
            mqtt="{}:{}".format(*fleet.mqtt),
            user=auth.ADMIN,
            password=fleet.password,
            token_file=str(settings.data / auth.TOKEN_FILE),
            broker=fleet.broker,
        )
        server = _Server(config, fleet.services, lambda: ready(found))
        # uvicorn puts its own handlers into place a little later, and raises a signal again when
        # it has stopped: both times it must end gracefully.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, server.handle_exit)
        server.run(sockets=[listener])
    finally:
        fleet.stop()
        listener.close()


class _Server(uvicorn.Server):
    """A server that says when it is ready, and tells those who wait for changes that it ends."""

    def __init__(
        self, config: uvicorn.Config, services: Services, ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._services, self._ready = services, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer; from now on a signal ends it gracefully."""
        await super().startup(sockets=sockets)
        if not self.should_exit:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        self._services.closing.set()
        super().handle_exit(sig, frame)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}",
            "choose another port with --http HOST:PORT",
        ) from error


def _lock(folder: Path) -> TextIO:
    """Hold a folder for this process; it is made when it is not there.

    Raises:
        UsageError: Another process holds it.
        InputError: It cannot be written.
    """
    path = folder / "lock"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stream = path.open("a")
    except OSError as error:
        raise InputError(
            f"cannot write in {folder}: {error.strerror}", "choose another --data"
        ) from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        raise UsageError(
            f"another server runs on {folder}", "stop it, or choose another --data"
        ) from error
    os.truncate(path, 0)
    stream.write(f"{os.getpid()}\n")
    stream.flush()
    return stream


def _open_trust(folder: Path) -> TrustRepository:
    if (folder / "metadata" / "timestamp.json").is_file():
        trust = TrustRepository(folder)
        trust.refresh()
        return trust
    return TrustRepository.create(folder)
