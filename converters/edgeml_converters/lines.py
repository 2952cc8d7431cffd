"""Progress on a terminal: lines that stay, and below them one that is written over."""

from __future__ import annotations

import shutil
import time
from threading import Lock
from typing import TextIO

#: Where nobody watches a line change, one is written at most this often.
_SELDOM_S = 10.0
_BACK = "\r\x1b[K"


class Lines:
    """Writes both kinds of lines; safe to use from many threads."""

    def __init__(self, stream: TextIO) -> None:
        """Take the stream; on one that is no terminal every line is a plain one."""
        self._stream = stream
        self._terminal = stream.isatty()
        self._lock = Lock()
        self._shown = False
        self._last = time.monotonic()

    def say(self, line: str) -> None:
        """Write a line that stays."""
        with self._lock:
            self._write(f"{_BACK if self._shown else ''}{line}\n")
            self._shown = False
            self._last = time.monotonic()

    def show(self, line: str) -> None:
        """Write a line that the next one replaces; a plain one now and then without a terminal."""
        with self._lock:
            if self._terminal:
                width = shutil.get_terminal_size().columns
                self._write(f"{_BACK}{line[: max(width - 1, 1)]}")
                self._shown = True
            elif time.monotonic() - self._last > _SELDOM_S:
                self._write(f"{line}\n")
                self._last = time.monotonic()

    def close(self) -> None:
        """Take the last line away."""
        with self._lock:
            if self._shown:
                self._write(_BACK)
            self._shown = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
