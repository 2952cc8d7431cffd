"""Making a bundle: the same manifest and files give the same bytes, and never half a bundle."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgeml.bundle import oci
from edgeml.bundle.bundle import Bundle
from edgeml.bundle.check import check_manifest
from edgeml.bundle.paths import check_path
from edgeml.bundle.store import blob_name
from edgeml.digest import sha256_bytes, sha256_file
from edgeml.errors import BundleError, nearest
from edgeml.manifest import BlobRef, Manifest

SUFFIX = ".edgeml"


def blob_ref(path_in_bundle: str, data: Path | bytes) -> BlobRef:
    """Return the reference of a file that is to go into a bundle.

    Args:
        path_in_bundle: Its path, relative to the folder that ``edgeml unpack`` makes.
        data: The file, or its bytes.

    Raises:
        BundleError: The path is not safe, or the file cannot be read.
    """
    check_path(path_in_bundle)
    if isinstance(data, bytes):
        return BlobRef(sha256_bytes(data), len(data), path_in_bundle)
    try:
        return BlobRef(sha256_file(data), data.stat().st_size, path_in_bundle)
    except OSError as error:
        raise BundleError(f"cannot read {data}: {error.strerror}") from error


def pack(manifest: Manifest, files: Mapping[str, Path | bytes], out: Path) -> Bundle:
    """Make a bundle.

    Args:
        manifest: What the bundle says of itself.
        files: Path in the bundle -> the file or its bytes, for every blob of the manifest.
        out: A file ending in ``.edgeml`` (replaced when it exists), or a folder that is new.

    Raises:
        BundleError: The manifest does not hold together, a file is missing, unknown or not what
            the manifest says, or ``out`` cannot be written. Nothing is left behind.
    """
    check_manifest(manifest)
    refs = {ref.path: ref for ref in manifest.blobs()}
    for path in files:
        if path not in refs:
            raise BundleError(f"the manifest does not name '{path}'", nearest(path, refs))
    content: dict[str, Path | bytes] = {}
    for path, ref in refs.items():
        if path not in files:
            raise BundleError(f"the manifest names '{path}', but there is no such file")
        got = blob_ref(path, files[path])
        if got != ref:
            raise BundleError(
                f"'{path}' has digest {got.digest} and {got.size} bytes, "
                f"the manifest says {ref.digest} and {ref.size}"
            )
        content[blob_name(ref.digest)] = files[path]
    encoded = msgspec.json.encode(manifest, order="deterministic")
    image, config = oci.build(manifest, encoded)
    for data in (encoded, config, image):
        content[blob_name(sha256_bytes(data))] = data
    content["index.json"] = oci.index(image, {oci.VERSION: manifest.version})
    _write(content, out)
    return Bundle.open(out)


def write_layout(folder: Path, oci_manifest: bytes) -> None:
    """Start a layout whose blobs are fetched one by one into ``blobs/sha256/<hex>``.

    Args:
        folder: Made when it is not there; blobs that are there stay.
        oci_manifest: The OCI manifest, from a source that is trusted.

    Raises:
        BundleError: It is not the manifest of a bundle, or the folder cannot be written.
    """
    image = oci.parse_manifest(oci_manifest)
    oci.find_manifest(image)
    try:
        (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        for name, data in (
            (blob_name(sha256_bytes(oci_manifest)), oci_manifest),
            ("oci-layout", oci.LAYOUT_FILE),
            ("index.json", oci.index(oci_manifest, image.annotations)),
        ):
            temporary = folder / f"{name}.new"
            _write_file(temporary, data)
            temporary.replace(folder / name)
    except OSError as error:
        raise BundleError(f"cannot write {folder}: {error.strerror}") from error


def _write(content: Mapping[str, Path | bytes], out: Path) -> None:
    """Write all files of a layout to a temporary name, then rename."""
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.new")
    if out.suffix != SUFFIX and out.exists():
        raise BundleError(f"{out} exists already", "give a new folder, or a file ending in .edgeml")
    ordered = {"oci-layout": oci.LAYOUT_FILE, **dict(sorted(content.items()))}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == SUFFIX:
            _write_tar(temporary, ordered)
        else:
            (temporary / "blobs" / "sha256").mkdir(parents=True)
            for name, data in ordered.items():
                _write_file(temporary / name, data)
        temporary.replace(out)
    except OSError as error:
        raise BundleError(f"cannot write {out}: {error.strerror}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _write_file(path: Path, data: Path | bytes) -> None:
    with path.open("wb") as stream:
        if isinstance(data, bytes):
            stream.write(data)
        else:
            with data.open("rb") as source:
                shutil.copyfileobj(source, stream, 1 << 20)
        stream.flush()
        os.fsync(stream.fileno())


def _write_tar(path: Path, content: Mapping[str, Path | bytes]) -> None:
    with path.open("wb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for name, data in content.items():
                info = tarfile.TarInfo(name)  # its defaults: time 0, user 0, no names
                info.mode = 0o644
                if isinstance(data, bytes):
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                else:
                    info.size = data.stat().st_size
                    with data.open("rb") as source:
                        tar.addfile(info, source)
        stream.flush()
        os.fsync(stream.fileno())
