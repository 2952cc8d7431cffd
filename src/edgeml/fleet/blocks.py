"""Blocks: pieces of blobs and of trust metadata for devices that ask over the link.

On a thread of its own, so that a fleet that downloads does not hold up its own reports. A request
is answered once or not at all: a device that gets no answer asks again.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
from collections.abc import Callable
from typing import Protocol

from edgeml.digest import is_digest
from edgeml.errors import NotTrustedError
from edgeml.link.base import Link, LinkMessage
from edgeml.messages import topics
from edgeml.messages.payloads import BlockReply, BlockRequest, decode, encode

logger = logging.getLogger(__name__)

#: A longer piece is cut to this; the device sees it by the length of the reply.
MAX_BLOCK = 256 << 10
_WAITING = 4096
_METADATA = re.compile(r"[a-z0-9.]{1,64}\.json")


class BlobSource(Protocol):
    """Where blobs come from."""

    def piece(self, digest: str, offset: int, length: int) -> tuple[int, bytes]:
        """Return the length of the whole blob, and a piece of it.

        Raises:
            FileNotFoundError: There is no such blob.
        """
        ...


class BlockServer:
    """Answers requests for pieces.

    Args:
        link: Where answers go.
        blobs: Blobs by digest.
        metadata: Trust metadata by file name; raises FileNotFoundError.
    """

    def __init__(self, link: Link, blobs: BlobSource, metadata: Callable[[str], bytes]) -> None:
        """Keep the sources; ``start`` begins to answer."""
        self._link = link
        self._blobs = blobs
        self._metadata = metadata
        self._queue: queue.Queue[tuple[topics.Address, bytes] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="fleet-blocks", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what waits, then stop."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def ask(self, address: topics.Address, message: LinkMessage) -> None:
        """Queue a request; one too many is dropped, and the device asks again."""
        try:
            self._queue.put_nowait((address, message.payload))
        except queue.Full:
            logger.warning("too many block requests wait: one of %s is dropped", address.device)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            address, payload = item
            try:
                reply = self.answer(decode(payload, BlockRequest))
            except NotTrustedError as error:
                logger.warning("block request of %s: %s", address.device, error)
                continue
            topic = topics.down(address.fleet, address.device, "block")
            self._link.publish(topic, encode(reply), qos=0)

    def answer(self, request: BlockRequest) -> BlockReply:
        """Return the piece that was asked for, or why there is none."""
        reply = BlockReply(request.request, request.kind, request.name, request.offset)
        known = (request.kind == "blob" and is_digest(request.name)) or (
            request.kind == "tuf" and _METADATA.fullmatch(request.name) is not None
        )
        if not known or request.offset < 0 or request.length <= 0:
            return _with_error(reply, "refused")
        length = min(request.length, MAX_BLOCK)
        try:
            if request.kind == "blob":
                total, data = self._blobs.piece(request.name, request.offset, length)
            else:
                whole = self._metadata(request.name)
                total, data = len(whole), whole[request.offset : request.offset + length]
        except FileNotFoundError:
            return _with_error(reply, "not_found")
        except OSError as error:
            logger.error("cannot read %s: %s", request.name, error)
            return _with_error(reply, "refused")
        if request.offset > total:
            return _with_error(reply, "refused")
        return BlockReply(request.request, request.kind, request.name, request.offset, total, data)


def _with_error(reply: BlockReply, error: str) -> BlockReply:
    return BlockReply(reply.request, reply.kind, reply.name, reply.offset, error=error)
