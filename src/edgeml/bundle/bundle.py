"""Bundle: opened, checked, read and unpacked; accepts or raises."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgeml.bundle import oci
from edgeml.bundle.check import check_manifest
from edgeml.bundle.store import Store, blob_name, open_store
from edgeml.errors import BundleError, NotTrustedError, nearest
from edgeml.manifest import BlobRef, Manifest

_MAX_READ = 4 << 30


class Bundle:
    """A bundle on this machine. Some blobs may be missing; that is told when they are read.

    Attributes:
        path: The folder or tar.
        manifest: What the bundle says of itself.
        digest: ``sha256:<hex>`` of the OCI manifest: the identity of the bundle.
        oci_manifest: Bytes of the OCI manifest.
    """

    def __init__(self, path: Path, store: Store) -> None:
        """Read and check the manifests; use ``Bundle.open``."""
        self.path = path
        self._store = store
        found = oci.parse_index(self._small("index.json", oci.MAX_INDEX))
        self.digest = found.digest
        self.oci_manifest = self.read(BlobRef(found.digest, found.size, "the OCI manifest"))
        image = oci.parse_manifest(self.oci_manifest)
        self.layers: tuple[BlobRef, ...] = oci.layer_refs(image)
        self._config = BlobRef(image.config.digest, image.config.size, "the OCI config")
        self._manifest_ref = oci.find_manifest(image)
        data = self.read(self._manifest_ref)
        self.manifest: Manifest = oci.decode_json(data, Manifest, "the bundle's manifest")
        check_manifest(self.manifest)
        there = set(self.layers)
        for ref in self.manifest.blobs():
            if ref not in there:
                raise BundleError(f"the manifest names '{ref.path}', which is no layer of {path}")

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Open a folder or a tar, without extracting anything.

        Raises:
            BundleError: It is no bundle, or is broken.
            NotTrustedError: A manifest is not what its digest says.
        """
        return cls(path, open_store(path))

    def has(self, ref: BlobRef) -> bool:
        """Tell whether a blob of this size is here; its bytes are checked when it is read."""
        return self._store.size(blob_name(ref.digest)) == ref.size

    def read(self, ref: BlobRef) -> bytes:
        """Return a blob, its size and digest checked.

        Raises:
            BundleError: It is not here, or larger than can be held in memory.
            NotTrustedError: Its bytes are not what the digest says.
        """
        if ref.size > _MAX_READ:
            raise BundleError(f"'{ref.path}' has {ref.size} bytes: too large to read at once")
        return b"".join(self._checked(ref))

    def _checked(self, ref: BlobRef) -> Iterator[bytes]:
        """Yield a blob in pieces; raises after the last one when its digest is wrong."""
        size = self._store.size(blob_name(ref.digest))
        if size is None:
            raise BundleError(
                f"'{ref.path}' ({ref.digest}) is not in {self.path}", "fetch it first"
            )
        if size != ref.size:
            raise NotTrustedError(f"'{ref.path}' has {size} bytes in {self.path}, not {ref.size}")
        state = hashlib.sha256()
        for piece in self._store.stream(blob_name(ref.digest)):
            state.update(piece)
            yield piece
        got = "sha256:" + state.hexdigest()
        if got != ref.digest:
            raise NotTrustedError(
                f"'{ref.path}' in {self.path} has digest {got}, expected {ref.digest}",
                "the file is damaged or was changed; fetch it again",
            )

    def _small(self, name: str, limit: int) -> bytes:
        size = self._store.size(name)
        if size is None:
            raise BundleError(f"{self.path} has no {name}", "a bundle is an OCI image layout")
        if size > limit:
            raise BundleError(f"{name} in {self.path} has {size} bytes, expected {limit} at most")
        return b"".join(self._store.stream(name))

    def check(self) -> None:
        """Read every blob, and check its size and digest.

        Raises:
            BundleError: One is missing, or the layout file is not there.
            NotTrustedError: One is not what its digest says.
        """
        layout = oci.decode_json(self._small("oci-layout", 4096), dict, "oci-layout")
        if layout.get("imageLayoutVersion") != "1.0.0":
            raise BundleError(f"{self.path} has a layout of another version: {layout}")
        for ref in {ref.digest: ref for ref in (self._config, *self.layers)}.values():
            for _piece in self._checked(ref):
                pass

    def needed(self, variant_ids: Iterable[str]) -> tuple[BlobRef, ...]:
        """Return what a device needs to run these variants: their files, goldens, drift reference.

        Raises:
            BundleError: There is no such variant.
        """
        refs: list[BlobRef] = []
        known = {variant.id: variant for variant in self.manifest.variants}
        for variant_id in variant_ids:
            if variant_id not in known:
                raise BundleError(
                    f"{self.path} has no variant '{variant_id}'", nearest(variant_id, known)
                )
            refs += known[variant_id].files
            refs += [ref for ref in (known[variant_id].golden,) if ref]
        refs += [ref for ref in (self.manifest.golden, self.manifest.drift) if ref]
        return tuple(dict.fromkeys(refs))

    def unpack(self, folder: Path, variant: str | None = None) -> Path:
        """Write the blobs below a folder under their paths, and ``manifest.json``.

        Args:
            folder: Made by this; it must not exist, or be empty.
            variant: Only what this variant needs; everything when None.

        Returns:
            The folder.

        Raises:
            BundleError: The folder is in use, a blob is missing, or there is no such variant.
            NotTrustedError: A blob is not what its digest says. Nothing is left behind.
        """
        refs = self.manifest.blobs() if variant is None else self.needed([variant])
        if folder.is_symlink() or (
            folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
        ):
            raise BundleError(f"{folder} exists already", "give a new folder, or empty this one")
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.new")
        try:
            temporary.mkdir(parents=True)
            for ref in (self._manifest_ref, *refs):
                target = temporary / (oci.MANIFEST_PATH if ref is self._manifest_ref else ref.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as stream:
                    for piece in self._checked(ref):
                        stream.write(piece)
                    stream.flush()
                    os.fsync(stream.fileno())
            temporary.rename(folder)
        except OSError as error:
            raise BundleError(f"cannot unpack to {folder}: {error.strerror}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder
