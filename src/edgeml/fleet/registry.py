"""Registry: a folder of blobs by digest. Which versions there are is in ``catalogue``.

::

    folder/blobs/sha256/<hex>     every blob of every bundle, each once
    folder/incoming/              uploads that are not finished; emptied at every start

A bundle is taken in whole and checked before anybody can ask for it: first its blobs, then the
trust target, and last the row in the catalogue. A crash in between leaves blobs that nobody names.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeml.bundle import Bundle
from edgeml.bundle.oci import parse_manifest
from edgeml.digest import is_digest
from edgeml.manifest import BlobRef
from edgeml.messages.payloads import Ref
from edgeml.trust import bundle_target
from edgeml.trust.repository import TrustRepository


class Blobs:
    """Blobs on disk, by digest. Safe from any thread."""

    def __init__(self, folder: Path) -> None:
        """Open a folder, or make it."""
        self._blobs = folder / "blobs" / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)

    def take(self, bundle: Bundle) -> int:
        """Copy the blobs of a bundle that are not here yet, every digest checked.

        Returns:
            Bytes of the whole bundle.

        Raises:
            BundleError: A blob is missing or damaged.
            NotTrustedError: A blob is not what its digest says.
            OSError: The folder cannot be written.
        """
        bundle.check()
        image = parse_manifest(bundle.oci_manifest)
        config = BlobRef(image.config.digest, image.config.size, "the OCI config")
        refs = {ref.digest: ref for ref in (config, *bundle.layers)}
        for ref in refs.values():
            if not self._path(ref.digest).exists():
                self._write(ref.digest, bundle.read(ref))
        if not self._path(bundle.digest).exists():
            self._write(bundle.digest, bundle.oci_manifest)
        return sum(ref.size for ref in refs.values()) + len(bundle.oci_manifest)

    def piece(self, digest: str, offset: int, length: int) -> tuple[int, bytes]:
        """Return the length of a blob, and at most ``length`` bytes from ``offset``.

        Raises:
            FileNotFoundError: There is no such blob.
        """
        with self._path(digest).open("rb") as stream:
            total = os.fstat(stream.fileno()).st_size
            stream.seek(offset)
            return total, stream.read(length)

    def _path(self, digest: str) -> Path:
        if not is_digest(digest):
            raise FileNotFoundError(digest)
        return self._blobs / digest.removeprefix("sha256:")

    def _write(self, digest: str, data: bytes) -> None:
        target = self._path(digest)
        temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.new")
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


class Registry(Blobs):
    """Blobs of every version, and the trust metadata that allows them to run."""

    def __init__(self, folder: Path, trust: TrustRepository) -> None:
        """Open a folder, or make it."""
        super().__init__(folder)
        self._incoming = folder / "incoming"
        self._trust = trust
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir()

    @contextmanager
    def upload(self) -> Iterator[Path]:
        """Give a path for a bundle that is coming in; it is gone after the block."""
        path = self._incoming / f"{secrets.token_hex(8)}.edgeml"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def trust(self, ref: Ref) -> None:
        """List a bundle that was taken in as something that may run.

        Raises:
            UsageError: The version is listed with another digest.
        """
        manifest = self._path(ref.digest).read_bytes()
        self._trust.add_target(bundle_target(ref.model, ref.version), manifest)
