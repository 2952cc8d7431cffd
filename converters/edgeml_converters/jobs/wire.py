"""What goes between the process that asks and its children: frames over a socket."""

from __future__ import annotations

import socket
import struct
import time
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

#: Exit code of a child that found no room for its files (EX_CANTCREAT of sysexits.h).
NO_SPACE = 73

_HEAD = struct.Struct(">Q")
_CHUNK = 1 << 20


class Order(msgspec.Struct, frozen=True, tag="order"):
    """What a child gets first.

    Attributes:
        folder: For its temporary files and its log; it exists.
        job: A tagged struct that ``edgeml_converters.worker`` knows, as msgpack.
    """

    folder: str
    job: bytes


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The first word of a child: its process id."""

    pid: int


class Reply(msgspec.Struct, frozen=True, tag="reply"):
    """The outcome of a job, or the answer to a question.

    Attributes:
        result: As msgpack; empty when it failed.
        error: Why it failed, in one line.
    """

    result: bytes = b""
    error: str = ""


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The last word, which the server says for its child.

    Attributes:
        code: Exit code; the negative number of a signal.
    """

    code: int


Word = Started | Reply | Ended


class Channel:
    """Frames over one end of a socket: a length, then msgpack."""

    def __init__(self, end: socket.socket) -> None:
        """Take the end of a connected stream."""
        self._end = end
        self._read = bytearray()

    def send(self, value: msgspec.Struct) -> None:
        """Send one value.

        Raises:
            OSError: The other end is gone.
        """
        data = msgspec.msgpack.encode(value)
        self._end.settimeout(None)
        self._end.sendall(_HEAD.pack(len(data)) + data)

    def receive(self, kind: Any, timeout_s: float | None = None) -> Any:
        """Return the next value; None at the end of the stream.

        Args:
            kind: Type to decode to.
            timeout_s: Wait at most this long; None for ever. What came in until then is kept.

        Raises:
            TimeoutError: Nothing whole came in time.
            OSError: The stream broke.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while (frame := self._whole()) is None:
            self._end.settimeout(None if end is None else max(end - time.monotonic(), 1e-4))
            data = self._end.recv(_CHUNK)
            if not data:
                return None
            self._read += data
        return msgspec.msgpack.decode(frame, type=kind)

    def _whole(self) -> bytes | None:
        """Take a whole frame out of what was read; None when there is none yet."""
        if len(self._read) < _HEAD.size:
            return None
        (size,) = _HEAD.unpack_from(self._read)
        if len(self._read) < _HEAD.size + size:
            return None
        frame = bytes(self._read[_HEAD.size : _HEAD.size + size])
        del self._read[: _HEAD.size + size]
        return frame

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._end.fileno()

    def close(self) -> None:
        """Close this end."""
        self._end.close()
