"""HTTP/1.1 as an ``asyncio.Protocol`` over httptools: no framework between socket and engine.

One ``Connection`` per client. Requests may be pipelined; replies leave in the order of the
requests. Everything that a client controls is bounded: the sizes of the target, the headers and
the body, the time to send a request, the time to read a reply, the requests in flight.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import httptools
import msgspec

logger = logging.getLogger(__name__)

MAX_TARGET = 8 << 10
MAX_HEADERS = 32 << 10
#: Reading stops while so many replies of one connection are outstanding.
MAX_PIPELINED = 64

#: How long a client that was refused may go on sending what nobody reads.
_LINGER_SECONDS = 1.0

JSON = b"application/json"
_STATUS = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Limits(msgspec.Struct, frozen=True):
    """What one connection may use.

    Attributes:
        max_body: Most bytes of a body.
        request_seconds: Time to send one whole request.
        idle_seconds: Time without a request, or without reading a reply.
        token: Secret that every request must bring; empty for none.
    """

    max_body: int
    request_seconds: float
    idle_seconds: float
    token: str = ""


class Exchange:
    """One request and the place of its reply in the order of its connection.

    Attributes:
        method: For example ``GET``; ``HEAD`` is answered as ``GET`` without the body.
        path: Target without the query, as it was sent (percent-encoded).
        headers: Names in lower case.
        body: The whole body.
        on_gone: Called when the client goes away before the reply; set by the handler.
    """

    __slots__ = (
        "_connection", "body", "head_only", "headers", "keep_alive", "method", "on_gone",
        "path", "reply",
    )  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        """Start empty; the connection fills it while the request comes in."""
        self._connection = connection
        self.method = ""
        self.path = ""
        self.headers: dict[bytes, bytes] = {}
        self.body: bytes = b""
        self.keep_alive = True
        self.head_only = False
        self.on_gone: Callable[[], None] | None = None
        self.reply: bytes | None = None

    def send(
        self,
        status: int,
        body: bytes,
        content_type: bytes = JSON,
        headers: tuple[bytes, ...] = (),
    ) -> None:
        """Answer; once per exchange. A client that went away is no error.

        Args:
            status: HTTP status.
            body: The body.
            content_type: Its type.
            headers: More header lines, without line ends.
        """
        lines = [_STATUS[status], b"Content-Type: ", content_type]
        lines.append(b"\r\nContent-Length: %d\r\n" % len(body))
        for line in headers:
            lines += (line, b"\r\n")
        if not self.keep_alive:
            lines.append(b"Connection: close\r\n")
        lines.append(b"\r\n")
        if not self.head_only:
            lines.append(body)
        self.reply = b"".join(lines)
        self.on_gone = None
        self._connection.flush()

    def fail(self, status: int, message: str, headers: tuple[bytes, ...] = ()) -> None:
        """Answer with the protocol's error object."""
        self.send(status, error_body(message), JSON, headers)


def error_body(message: str) -> bytes:
    """Return ``{"error": message}``."""
    return msgspec.json.encode({"error": message})


Handler = Callable[[Exchange], None]


class Connection(asyncio.Protocol):
    """One client. Methods named ``on_*`` are called by the parser."""

    def __init__(
        self, handler: Handler, limits: Limits, loop: asyncio.AbstractEventLoop, peers: Peers
    ) -> None:
        """Wait for a client.

        Args:
            handler: Called with each whole request; it answers now or later.
            limits: What this client may use.
            loop: The loop.
            peers: The connections of the server.
        """
        self._handler = handler
        self._limits = limits
        self._loop = loop
        self._peers = peers
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Exchange] = deque()
        self._complete: list[Exchange] = []
        self._current: Exchange | None = None
        self._target = b""
        self._header_bytes = 0
        self._chunks: list[bytes] = []
        self._body_bytes = 0
        self._refused: tuple[int, str] | None = None
        self._closing = False
        self._reading = True
        self._began = 0.0
        self._blocked = 0.0
        self._last = loop.time()

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a client, or refuse it when there are too many."""
        # uvloop's transports have the methods of asyncio.Transport without being one.
        self._transport = cast("asyncio.Transport", transport)
        if not self._peers.admit(self):
            self._refuse(503, "too many connections")
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the handlers of unanswered requests that nobody waits any more."""
        self._peers.forget(self)
        self._transport = None
        self._closing = True
        for exchange in self._waiting:
            if exchange.on_gone is not None:
                exchange.on_gone()
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        """Parse what came, then answer every request that is whole."""
        if self._closing:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Nobody has to upgrade: the request is answered as HTTP/1.1, and is the last one.
            for exchange in self._complete[-1:]:
                exchange.keep_alive = False
        except httptools.HttpParserError as error:
            self._refuse(400, f"not a HTTP/1.1 request: {error}")
        complete, self._complete = self._complete, []
        for exchange in complete:
            if self._transport is None or self._closing:
                return
            self._handler(exchange)
        if self._refused is not None:
            self._end()
        elif len(self._waiting) > MAX_PIPELINED and self._reading and self._transport:
            self._reading = False
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """Stop reading from a client that does not read its replies."""
        self._blocked = self._loop.time()
        if self._transport is not None and self._reading:
            self._reading = False
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._blocked = 0.0
        self._resume()

    # From the parser.

    def on_message_begin(self) -> None:
        """A request starts."""
        self._current = Exchange(self)
        self._target = b""
        self._header_bytes = 0
        self._chunks = []
        self._body_bytes = 0
        self._began = self._loop.time()

    def on_url(self, url: bytes) -> None:
        """Take (a part of) the target."""
        self._target += url
        if len(self._target) > MAX_TARGET:
            self._refuse(414, f"the target is longer than {MAX_TARGET} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > MAX_HEADERS:
            self._refuse(431, f"the headers are longer than {MAX_HEADERS} bytes")
        elif self._current is not None:
            self._current.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Refuse early what will be refused anyway; tell a careful client to go on."""
        exchange = self._current
        if exchange is None or self._refused is not None:
            return
        exchange.method = self._parser.get_method().decode("latin-1")
        exchange.path = self._target.partition(b"?")[0].decode("latin-1")
        exchange.keep_alive = self._parser.should_keep_alive()
        if exchange.method == "HEAD":
            exchange.head_only, exchange.method = True, "GET"
        length = exchange.headers.get(b"content-length", b"0")
        if not self._allowed(exchange):
            self._refuse(401, "this address needs 'Authorization: Bearer TOKEN'")
        elif not length.isdigit() or len(length) > 18:
            self._refuse(400, "Content-Length is not a number")
        elif int(length) > self._limits.max_body:
            self._refuse(413, f"{int(length)} bytes, expected at most {self._limits.max_body}")
        elif exchange.headers.get(b"expect", b"").lower() == b"100-continue" and self._transport:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.max_body:
            self._refuse(413, f"the body is longer than {self._limits.max_body} bytes")
        elif self._refused is None:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        exchange, self._current = self._current, None
        self._began = 0.0
        self._last = self._loop.time()
        if exchange is None or self._refused is not None:
            return
        exchange.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        self._waiting.append(exchange)
        self._complete.append(exchange)

    # Our own.

    def flush(self) -> None:
        """Write every reply whose turn it is."""
        if self._transport is None:
            return
        while self._waiting and self._waiting[0].reply is not None:
            exchange = self._waiting.popleft()
            self._transport.write(exchange.reply or b"")
            if not exchange.keep_alive:
                self._closing = True
                self._waiting.clear()
                self._hang_up()
                return
        if not self._waiting:
            self._last = self._loop.time()
            if self._closing:
                self._transport.close()
                return
        self._resume()

    def sweep(self, now: float) -> None:
        """Close a connection whose client is too slow; called about once a second."""
        if self._transport is None:
            return
        limits = self._limits
        if self._blocked and now - self._blocked > limits.idle_seconds:
            self._transport.abort()
        elif self._began and now - self._began > limits.request_seconds and not self._closing:
            self._refuse(408, f"no whole request within {limits.request_seconds:g} s")
            self._end()
        elif not self._waiting and not self._began and now - self._last > limits.idle_seconds:
            self._transport.close()

    def drain(self) -> None:
        """Take no further request; close when the last reply is out."""
        self._closing = True
        if self._waiting:
            self._waiting[-1].keep_alive = False
        elif self._transport is not None:
            self._transport.close()

    def _resume(self) -> None:
        if self._reading or self._blocked or self._transport is None or self._closing:
            return
        if len(self._waiting) <= MAX_PIPELINED // 2:
            self._reading = True
            self._transport.resume_reading()

    def _allowed(self, exchange: Exchange) -> bool:
        if not self._limits.token:
            return True
        scheme, _, given = exchange.headers.get(b"authorization", b"").partition(b" ")
        same = hmac.compare_digest(given.strip(), self._limits.token.encode())
        return same and scheme.lower() == b"bearer"

    def _refuse(self, status: int, message: str) -> None:
        """Remember the first reason to end this connection."""
        if self._refused is None:
            self._refused = (status, message)

    def _end(self) -> None:
        """Answer with the reason, after the replies that are still due, and close."""
        if self._refused is None or self._closing or self._transport is None:
            return
        status, message = self._refused
        exchange = Exchange(self)
        exchange.keep_alive = False
        self._waiting.append(exchange)
        self._closing = True
        exchange.fail(status, message)

    def _hang_up(self) -> None:
        """Close; after a refusal only when the client could read why.

        Closing while a client still sends resets the connection and can throw the reply away,
        so the rest is read and dropped for a moment.
        """
        transport = self._transport
        if transport is None:
            return
        if self._refused is None:
            transport.close()
            return
        if transport.can_write_eof():
            transport.write_eof()
        self._loop.call_later(_LINGER_SECONDS, transport.close)


class Peers:
    """The connections of one server: bounded, swept, and drained at the end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        """Start without connections; at most ``most`` at once."""
        self._loop = loop
        self._most = most
        self._all: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._timer = loop.call_later(1.0, self._sweep)

    def admit(self, connection: Connection) -> bool:
        """Take a connection in; False when there are too many."""
        fits = len(self._all) < self._most
        self._all.add(connection)
        self._empty.clear()
        return fits

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is gone."""
        self._all.discard(connection)
        if not self._all:
            self._empty.set()

    async def drain(self, seconds: float) -> None:
        """End every connection after its last reply; those that take longer are cut."""
        for connection in list(self._all):
            connection.drain()
        try:
            await asyncio.wait_for(self._empty.wait(), seconds)
        except TimeoutError:
            logger.warning("%d connections cut at the end", len(self._all))
        self._timer.cancel()

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in list(self._all):
            connection.sweep(now)
        self._timer = self._loop.call_later(1.0, self._sweep)
