"""The server side of the supervisor's socket: one JSON request per line, one reply per line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from edgeml.errors import EdgemlError
from edgeml_agent.control import (
    Clear,
    Observe,
    Probe,
    Quit,
    Reply,
    Request,
    Revert,
    Settle,
    Stage,
    Switch,
)
from edgeml_agent.serve.model import GoldenError
from edgeml_agent.serve.slots import Slots, StateError

logger = logging.getLogger(__name__)

_MAX_LINE = 1 << 20
_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


class ControlServer:
    """Answers the supervisor, in order, whatever the number of connections.

    Args:
        slots: What is asked about.
        stop: Called once by ``quit``, after its reply.
    """

    def __init__(self, slots: Slots, stop: Callable[[], None]) -> None:
        """Start without a socket."""
        self._slots = slots
        self._stop = stop
        self._turn = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, path: str) -> None:
        """Listen on a Unix socket.

        Raises:
            OSError: The path cannot be bound.
        """
        self._server = await asyncio.start_unix_server(self._serve, path, limit=_MAX_LINE)

    def close(self) -> None:
        """Stop listening and hang up."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                reply, quits = await self._line(line)
                writer.write(msgspec.json.encode(reply) + b"\n")
                await writer.drain()
                if quits:
                    self._stop()
        except (ConnectionError, ValueError) as error:  # ValueError: a line without an end
            logger.warning("control connection broken: %s", error)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _line(self, line: bytes) -> tuple[Reply, bool]:
        try:
            request = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Reply(False, f"not a request: {error}", "state", self._slots.status()), False
        async with self._turn:
            return await self.answer(request), isinstance(request, Quit)

    async def answer(self, request: Request) -> Reply:
        """Do what is asked; an error is a reply too."""
        slots = self._slots
        try:
            if isinstance(request, Stage):
                await slots.stage(request)
            elif isinstance(request, Switch):
                slots.switch(request.slot)
            elif isinstance(request, Settle):
                slots.settle(request.slot)
            elif isinstance(request, Revert):
                slots.revert(request.slot)
            elif isinstance(request, Clear):
                slots.clear(request.slot)
            elif isinstance(request, Probe):
                await slots.probe(request.slot)
            elif isinstance(request, Observe):
                return await slots.observe()
        except GoldenError as error:
            return Reply(False, error.message, "golden", slots.status())
        except StateError as error:
            return Reply(False, error.message, "state", slots.status())
        except EdgemlError as error:
            return Reply(False, error.message, "load", slots.status())
        except Exception as error:
            # A boundary: a bundle or a runtime of a third party may fail in any way; the process
            # that serves the other slots must outlive it, and the supervisor must hear of it.
            logger.exception("%s failed", type(request).__name__)
            message = f"{type(error).__name__}: {error}"
            return Reply(False, " ".join(message.split()), "load", slots.status())
        return Reply(True, slots=slots.status())
