"""Holds back chatter that native code writes to stderr, and nothing else."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_STDERR = 2


@contextlib.contextmanager
def without_lines(start: bytes) -> Iterator[None]:
    """Drop the lines of stderr that begin with ``start`` while the body runs.

    Everything else that is written meanwhile, by whichever thread, is written out afterwards. For
    short calls only: a library that says at every load that it has loaded, with no switch for it.
    """
    with _lock, contextlib.ExitStack() as stack:
        try:
            kept = os.dup(_STDERR)
        except OSError:  # a daemon without a stderr has nothing to keep clean
            yield
            return
        stack.callback(os.close, kept)
        held = stack.enter_context(tempfile.TemporaryFile())
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(kept, _STDERR)
            held.seek(0)
            rest = b"".join(line for line in held if not line.startswith(start))
            if rest:
                os.write(_STDERR, rest)
