"""BlockFetcher: blobs and trust metadata, piece by piece, over the link.

The device asks, the fleet answers: at most ``window`` requests are open at a time, each with an id
that nobody can guess, and a reply that fits no open request is dropped. A reply that does not come
is asked for again. A blob grows in order in ``<hex>.part``, so that the next try goes on where
this one stopped; its digest decides at the end.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from edgeml.digest import sha256_file
from edgeml.errors import DeviceError, EdgemlError, NotTrustedError, UnreachableError
from edgeml.link.base import Link, LinkMessage
from edgeml.messages import topics
from edgeml.messages.payloads import BlockReply, BlockRequest, decode, encode
from edgeml_agent import durable

logger = logging.getLogger(__name__)

BLOCK = 128 << 10
WINDOW = 8
#: The longest metadata file that is accepted.
MAX_METADATA = 1 << 20

Progress = Callable[[int], None]


class FetchStopped(EdgemlError):
    """A fetch was asked to stop; what has come stays for the next try."""


class BlockFetcher:
    """Asks for pieces and puts them together. One transfer at a time; safe from any thread.

    Args:
        link: The way to the fleet.
        fleet: Name of the fleet.
        device: Id of this device.
        timeout: Seconds to wait for any reply before everything open is asked for again.
        attempts: How often that may happen in a row.
    """

    def __init__(
        self, link: Link, fleet: str, device: str, *, timeout: float = 3.0, attempts: int = 4
    ) -> None:
        """Subscribe to the replies."""
        self._link = link
        self._topic = topics.up(fleet, device, "block")
        self._timeout = timeout
        self._attempts = attempts
        self._open: dict[int, BlockRequest] = {}
        self._replies: queue.SimpleQueue[BlockReply] = queue.SimpleQueue()
        self._transfer = threading.Lock()
        self._stop = threading.Event()
        link.subscribe(topics.down(fleet, device, "block"), self._on_reply)

    def stop(self) -> None:
        """Let the transfer that runs, and every later one, end with FetchStopped."""
        self._stop.set()

    def metadata(self, name: str) -> bytes:
        """Return a metadata file of the trust repository.

        Raises:
            FileNotFoundError: The repository has no such file.
            UnreachableError: The fleet does not answer.
        """
        return b"".join(self._pieces("tuf", name, 0, None, lambda: False))

    def blob(
        self,
        digest: str,
        size: int,
        path: Path,
        *,
        progress: Progress = lambda _bytes: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Bring a blob to ``path``; go on with what an earlier try left in ``<path>.part``.

        Args:
            digest: ``sha256:<hex>``.
            size: Its exact length, from a source that is trusted.
            path: Where it goes, complete and durable, or not at all.
            progress: Called with the number of bytes that each piece adds.
            stopped: Asked between pieces; True ends the transfer with FetchStopped.

        Raises:
            FileNotFoundError: The fleet has no such blob.
            UnreachableError: No answer, or what came is damaged (and was removed): try again.
            DeviceError: It cannot be written.
        """
        part = path.with_name(path.name + ".part")
        try:
            have = part.stat().st_size if part.exists() else 0
            if have > size:
                part.unlink()
                have = 0
            progress(have)
            with part.open("ab") as stream:
                if have < size:
                    for piece in self._pieces("blob", digest, have, size, stopped):
                        stream.write(piece)
                        progress(len(piece))
                durable.sync(stream)
            if sha256_file(part) != digest:
                part.unlink()
                raise UnreachableError(f"blob {digest} came damaged", "it is fetched again")
            part.rename(path)
            durable.sync_folder(path.parent)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DeviceError(f"cannot write {path}: {error.strerror}") from error

    def _on_reply(self, message: LinkMessage) -> None:
        try:
            reply = decode(message.payload, BlockReply)
        except NotTrustedError as error:
            logger.warning("dropped a block reply: %s", error)
            return
        asked = self._open.get(reply.request)
        if asked is None or (reply.kind, reply.name, reply.offset) != (
            asked.kind,
            asked.name,
            asked.offset,
        ):
            logger.info("dropped a block reply that nobody asked for")
            return
        if self._open.pop(reply.request, None) is not None:
            self._replies.put(reply)

    def _pieces(
        self, kind: str, name: str, start: int, size: int | None, stopped: Callable[[], bool]
    ) -> Iterator[bytes]:
        """Yield the pieces in order, from ``start`` to the end."""
        with self._transfer:
            try:
                yield from self._transferred(kind, name, start, size, stopped)
            finally:
                self._open.clear()
                while not self._replies.empty():
                    self._replies.get()

    def _transferred(
        self, kind: str, name: str, start: int, size: int | None, stopped: Callable[[], bool]
    ) -> Iterator[bytes]:
        total = size
        wanted = deque([start] if size is None else range(start, size, BLOCK))
        early: dict[int, bytes] = {}
        position, silent = start, 0
        while total is None or position < total:
            if self._stop.is_set() or stopped():
                raise FetchStopped(f"fetch of {name} stopped at byte {position}")
            while wanted and len(self._open) < WINDOW:
                self._ask(kind, name, wanted.popleft())
            reply = self._wait(stopped)
            if reply is None:
                silent += 1
                if silent >= self._attempts:
                    raise UnreachableError(f"the fleet does not answer for {kind} '{name}'")
                wanted = deque(sorted({r.offset for r in self._open.values()} | set(wanted)))
                self._open.clear()
                continue
            silent = 0
            if total is None:
                total = _metadata_total(reply, name)
                wanted.extend(range(BLOCK, total, BLOCK))
            early[reply.offset] = _checked(reply, total)
            while position in early:
                piece = early.pop(position)
                position += len(piece)
                yield piece

    def _ask(self, kind: str, name: str, offset: int) -> None:
        request = BlockRequest(
            request=secrets.randbits(62), kind=kind, name=name, offset=offset, length=BLOCK
        )
        self._open[request.request] = request
        self._link.publish(self._topic, encode(request), qos=0)

    def _wait(self, stopped: Callable[[], bool]) -> BlockReply | None:
        """Wait for a reply; None when none comes, or when somebody wants to stop."""
        waited = 0.0
        while waited < self._timeout and not (self._stop.is_set() or stopped()):
            step = min(0.25, self._timeout - waited)
            try:
                return self._replies.get(timeout=step)
            except queue.Empty:
                waited += step
        return None


def _metadata_total(reply: BlockReply, name: str) -> int:
    """Return the length of a metadata file, from its first reply."""
    if reply.error:
        _raise(reply)
    if not 0 < reply.total <= MAX_METADATA:
        raise UnreachableError(
            f"metadata '{name}' of {reply.total} bytes, expected 1 to {MAX_METADATA}"
        )
    return reply.total


def _checked(reply: BlockReply, total: int) -> bytes:
    """Return a reply's bytes when it is exactly the piece that was asked for."""
    if reply.error:
        _raise(reply)
    want = min(BLOCK, total - reply.offset)
    if reply.total != total or len(reply.data) != want:
        raise UnreachableError(
            f"piece of {reply.name} at {reply.offset}: {len(reply.data)} of {reply.total} bytes, "
            f"expected {want} of {total}"
        )
    return reply.data


def _raise(reply: BlockReply) -> None:
    if reply.error == "not_found":
        raise FileNotFoundError(f"the fleet has no {reply.kind} '{reply.name}'")
    raise UnreachableError(f"the fleet refused {reply.kind} '{reply.name}': {reply.error}")
