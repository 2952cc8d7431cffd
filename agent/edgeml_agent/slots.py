"""BundleStore: blobs and bundles on the disk of a device.

::

    state/blobs/sha256/<hex>        verified blobs; <hex>.part while one is fetched
    state/bundles/<hex>/            one OCI layout per version; its blobs are hard links

A blob that two versions share is fetched and stored once. A bundle's folder appears complete, by
one rename, or not at all. Nothing that a slot still names is ever removed.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from edgeml.bundle import Bundle, manifest_layer, write_layout
from edgeml.digest import is_digest, sha256_file
from edgeml.errors import BundleError, DeviceError, EdgemlError
from edgeml.manifest import BlobRef
from edgeml.messages.payloads import Ref
from edgeml_agent import durable

logger = logging.getLogger(__name__)

#: Longer manifests are refused unread.
MAX_MANIFEST = 4 << 20
#: Bytes that must stay free beside twice the download.
MARGIN = 32 << 20


class DamagedBlobError(EdgemlError):
    """A blob on the disk is not what its name says; it was removed."""


class BundleStore:
    """Blobs and bundles below the agent's state folder. Used by one thread at a time.

    Args:
        state: The state folder.
        profile: Hardware profile of this device: which variants are fetched.

    Raises:
        DeviceError: The folders cannot be made.
    """

    def __init__(self, state: Path, profile: str) -> None:
        """Make the folders."""
        self._profile = profile
        self._blobs = durable.private_folder(state / "blobs" / "sha256")
        self._bundles = durable.private_folder(state / "bundles")

    def path(self, digest: str) -> Path:
        """Return the folder of a bundle."""
        return self._bundles / _hex(digest)

    def blob_path(self, digest: str) -> Path:
        """Return the path of a blob."""
        return self._blobs / _hex(digest)

    def wanted(self, digest: str, size: int) -> list[tuple[str, int]]:
        """Return (digest, size) of what is to be fetched next; empty when all is here.

        First the OCI manifest, then the bundle's manifest, then what this device needs of it: the
        variants of its profile with their golden samples, and the drift reference.

        Args:
            digest: Digest of the bundle, that is, of its OCI manifest.
            size: Its length, from the trusted metadata.

        Raises:
            BundleError: A manifest is too long, or not one, or no variant fits this device.
        """
        if size > MAX_MANIFEST:
            raise BundleError(f"manifest of {size} bytes, expected at most {MAX_MANIFEST}")
        if not self.blob_path(digest).exists():
            return [(digest, size)]
        first = manifest_layer(self.blob_path(digest).read_bytes())
        if not self.blob_path(first.digest).exists():
            return [(first.digest, first.size)]
        return [
            (ref.digest, ref.size)
            for ref in self._needed(digest)
            if not self.blob_path(ref.digest).exists()
        ]

    def _needed(self, digest: str) -> list[BlobRef]:
        """Return what this device needs of a bundle whose manifests are here."""
        folder = self._begin(digest)
        bundle = Bundle.open(folder)
        fitting = [v.id for v in bundle.manifest.variants if v.profile == self._profile]
        if not fitting:
            made_for = ", ".join(sorted({v.profile for v in bundle.manifest.variants}))
            raise BundleError(
                f"{bundle.manifest.name} {bundle.manifest.version} has no variant for "
                f"'{self._profile}', only for: {made_for}"
            )
        first = manifest_layer(bundle.oci_manifest)
        refs = [first, *bundle.needed(fitting)]
        return list({ref.digest: ref for ref in refs}.values())

    def _begin(self, digest: str) -> Path:
        """Return the bundle's folder, or the one that becomes it, with the two manifests."""
        folder = self.path(digest)
        if not folder.exists():
            folder = self._bundles / f".{folder.name}.new"
        oci_manifest = self.blob_path(digest).read_bytes()
        if not (folder / "index.json").exists():
            write_layout(folder, oci_manifest)
        self._add(digest, folder)
        self._add(manifest_layer(oci_manifest).digest, folder)
        return folder

    def _add(self, digest: str, folder: Path) -> None:
        copy = folder / "blobs" / "sha256" / _hex(digest)
        if not copy.exists():
            _link(self.blob_path(digest), copy)

    def check_space(self, wanted: Collection[tuple[str, int]]) -> None:
        """Check that a download fits.

        Raises:
            DeviceError: Less than twice its size and a margin is free.
        """
        size = sum(length for _blob, length in wanted)
        free = shutil.disk_usage(self._blobs).free
        if wanted and free < 2 * size + MARGIN:
            raise DeviceError(
                f"{free >> 20} MiB free in {self._blobs}, expected {(2 * size + MARGIN) >> 20} MiB "
                f"for a download of {max(size / 2**20, 0.1):.1f} MiB"
            )

    def verify(self, digest: str) -> None:
        """Read every blob of a bundle from the disk and compare its digest.

        Raises:
            DamagedBlobError: One differs or is missing; it was removed, so that it is fetched
                again.
            BundleError: The manifest is not one.
            OSError: The disk failed.
        """
        self._verify_blob(digest, None)
        first = manifest_layer(self.blob_path(digest).read_bytes())
        self._verify_blob(first.digest, first.size)
        for ref in self._needed(digest):
            self._verify_blob(ref.digest, ref.size)

    def _verify_blob(self, digest: str, size: int | None) -> None:
        path = self.blob_path(digest)
        if not path.exists():
            raise DamagedBlobError(f"blob {digest} is missing")
        if (size is not None and path.stat().st_size != size) or sha256_file(path) != digest:
            copies = self._bundles.glob(f"*/blobs/sha256/{path.name}")
            for copy in [copy for copy in copies if copy.samefile(path)]:
                copy.unlink()
            path.unlink()
            raise DamagedBlobError(f"blob {digest} is damaged on the disk")

    def discard(self, digest: str) -> None:
        """Forget a bundle's folder, but not its blobs; ``assemble`` makes it again.

        Raises:
            OSError: It cannot be removed.
        """
        for folder in (self.path(digest), self._bundles / f".{_hex(digest)}.new"):
            if folder.exists():
                shutil.rmtree(folder)

    def assemble(self, ref: Ref) -> None:
        """Make the folder of a bundle from its blobs, and open it.

        Raises:
            BundleError: It is not a bundle of this name and version.
            OSError: It cannot be written.
        """
        target = self.path(ref.digest)
        # An earlier version may be there; what was damaged in it has been fetched again.
        folder = self._begin(ref.digest)
        for blob in self._needed(ref.digest):
            self._add(blob.digest, folder)
        for part in (folder / "blobs" / "sha256", folder / "blobs", folder):
            durable.sync_folder(part)
        if folder != target:
            folder.rename(target)
            durable.sync_folder(self._bundles)
        manifest = Bundle.open(target).manifest
        if (manifest.name, manifest.version) != (ref.model, ref.version):
            raise BundleError(
                f"bundle is {manifest.name} {manifest.version}, expected {ref.model} {ref.version}"
            )

    def collect(self, kept: Collection[str]) -> None:
        """Remove every bundle but ``kept``, and every blob that no bundle holds.

        Raises:
            OSError: Something cannot be removed.
        """
        names = {_hex(digest) for digest in kept}
        for folder in self._bundles.iterdir():
            if folder.name not in names:
                logger.info("removing bundle %s", folder.name)
                shutil.rmtree(folder)
        held = {path.name for path in self._bundles.glob("*/blobs/sha256/*")}
        for path in self._blobs.iterdir():
            if path.name.removesuffix(".part") not in held | names:
                path.unlink()


def _hex(digest: str) -> str:
    if not is_digest(digest):
        raise BundleError(f"'{digest[:80]}' is not a digest, expected sha256:<64 hex digits>")
    return digest.removeprefix("sha256:")


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb+") as stream:
            durable.sync(stream)
