"""A bundle in the body of a request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from edgeml.errors import BundleError, NotTrustedError, UsageError
from edgeml.fleet.services import Services

MAX_BUNDLE = 8 << 30
T = TypeVar("T")


async def received(request: Request, services: Services, use: Callable[[Path], T]) -> T:
    """Write the bundle that a request brings to a file, and use it; the file is gone afterwards.

    Args:
        request: Its body is one tar, as application/octet-stream.
        services: Where uploads may lie.
        use: Called on a thread.

    Raises:
        UsageError: It is of another type, or too long.
        EdgemlError: What ``use`` raised.
    """
    if request.headers.get("content-type") != "application/octet-stream":
        raise UsageError("a bundle is sent as application/octet-stream")
    with services.registry.upload() as path:
        size = 0
        with path.open("xb") as stream:
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BUNDLE:
                    raise UsageError(f"a bundle of more than {MAX_BUNDLE} bytes")
                await run_in_threadpool(stream.write, chunk)
        try:
            return await run_in_threadpool(use, path)
        except (BundleError, NotTrustedError) as error:
            # Where it lay for a moment here tells nothing to the one who sent it.
            said = error.message.replace(str(path), "the file that was sent")
            raise type(error)(said, error.hint) from error
