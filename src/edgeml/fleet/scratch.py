"""Scratch: bundles of candidates that devices measure. Nothing here may ever serve.

They are no part of the registry: no catalogue and no trust metadata name them, so that no device
would run one in a slot. A device fetches its pieces by digest, from an order that is signed.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Collection
from pathlib import Path

from edgeml.bundle import Bundle
from edgeml.fleet.blocks import BlobSource
from edgeml.fleet.registry import Blobs


class Scratch:
    """A folder with one store of blobs for each bundle. Safe from any thread.

    Args:
        folder: Made when it is not there.
        registry: Asked first for a piece.
    """

    def __init__(self, folder: Path, registry: BlobSource) -> None:
        """Make the folder."""
        self._folder = folder
        self._registry = registry
        self._lock = threading.Lock()
        self._arriving: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, bundle: Bundle) -> None:
        """Copy a bundle in, every digest checked; it stays until ``settle`` and ``keep``.

        Raises:
            BundleError: A blob is missing or damaged.
            NotTrustedError: A blob is not what its digest says.
            OSError: The folder cannot be written.
        """
        with self._lock:
            self._arriving.add(bundle.digest)
        Blobs(self._folder / _name(bundle.digest)).take(bundle)

    def settle(self, digest: str) -> None:
        """From now on ``keep`` decides about a bundle."""
        with self._lock:
            self._arriving.discard(digest)

    def keep(self, digests: Collection[str]) -> None:
        """Remove every bundle but these and those that are coming in."""
        with self._lock:
            kept = {_name(digest) for digest in {*digests, *self._arriving}}
        for folder in self._folder.iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def piece(self, digest: str, offset: int, length: int) -> tuple[int, bytes]:
        """Return the length of a blob of the registry or of a bundle here, and a piece of it.

        Raises:
            FileNotFoundError: There is no such blob.
        """
        try:
            return self._registry.piece(digest, offset, length)
        except FileNotFoundError:
            for folder in self._folder.iterdir():
                try:
                    return Blobs(folder).piece(digest, offset, length)
                except FileNotFoundError:
                    continue
            raise


def _name(digest: str) -> str:
    return digest.removeprefix("sha256:")
