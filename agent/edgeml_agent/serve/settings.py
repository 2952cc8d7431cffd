"""Settings of the data plane: decoded strictly, checked whole before anything starts."""

from __future__ import annotations

import ipaddress

import msgspec

from edgeml.errors import UsageError

#: Names that mean this machine only.
_LOCAL_NAMES = ("localhost",)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the data plane listens, and what it bounds.

    Attributes:
        http: ``HOST:PORT`` of the HTTP server; port 0 takes a free one; empty for none.
        uds: Path of the Unix socket of the HTTP server; empty for none.
        token: Secret that a request over TCP must bring (``Authorization: Bearer``); needed for
            any address that is not loopback.
        cache: Folder of this process alone, for unpacked and compiled models; empty for a
            temporary one.
        max_queue: Requests of one model that may wait.
        max_batch: Most rows of one run; the calibrated size may be smaller.
        max_body: Most bytes of one request.
        max_connections: Connections at the same time.
        deadline_seconds: A request that waited longer is dropped; a request may ask for less.
        request_seconds: A client has this long to send one whole request.
        idle_seconds: A connection that does nothing for so long is closed.
        allow_nonfinite: Whether NaN and infinity are let into a model, and out of it.
        remember: Predictions that are remembered for labels that come late.
    """

    http: str = "127.0.0.1:8500"
    uds: str = ""
    token: str = ""
    cache: str = ""
    max_queue: int = 256
    max_batch: int = 64
    max_body: int = 64 << 20
    max_connections: int = 512
    deadline_seconds: float = 30.0
    request_seconds: float = 30.0
    idle_seconds: float = 75.0
    allow_nonfinite: bool = False
    remember: int = 10_000

    def address(self) -> tuple[str, int] | None:
        """Return host and port of the HTTP server; None when there is none.

        Raises:
            UsageError: It is not ``HOST:PORT``.
        """
        if not self.http:
            return None
        host, colon, port = self.http.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            raise UsageError(
                f"http address '{self.http}' is not HOST:PORT", "for example 127.0.0.1:8500"
            )
        return host.strip("[]"), int(port)


def parse_settings(text: str | bytes) -> Settings:
    """Decode and check settings.

    Raises:
        UsageError: Not JSON, an unknown key, a wrong type, or a value out of its range.
    """
    try:
        settings = msgspec.json.decode(text, type=Settings)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"settings of the data plane: {error}") from error
    check_settings(settings)
    return settings


def check_settings(settings: Settings) -> None:
    """Check what the types alone cannot say.

    Raises:
        UsageError: A value is out of range, or the address is open to others without a token.
    """
    for name in ("max_queue", "max_batch", "max_body", "max_connections", "remember"):
        if getattr(settings, name) < 1:
            raise UsageError(f"{name} is {getattr(settings, name)}, expected at least 1")
    for name in ("deadline_seconds", "request_seconds", "idle_seconds"):
        if not 0 < getattr(settings, name) < float("inf"):
            raise UsageError(f"{name} is {getattr(settings, name)}, expected more than 0")
    if settings.token and not (settings.token.isascii() and settings.token.isprintable()):
        raise UsageError("the token holds characters that a header cannot carry")
    address = settings.address()
    if address is None and not settings.uds:
        raise UsageError("neither an http address nor a Unix socket to serve on")
    if address is not None and not settings.token and not is_loopback(address[0]):
        raise UsageError(
            f"http address '{settings.http}' is open to other machines, and there is no token",
            "set a token (EDGEML_AGENT_TOKEN or [serve] token), or listen on 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach an address."""
    if host in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
