"""A bundle's files on disk, as the data plane needs them: unpacked once per variant, checked."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from edgeml.bundle import Bundle
from edgeml.digest import sha256_file
from edgeml.manifest import Variant

logger = logging.getLogger(__name__)


def unpacked(bundle: Bundle, variant: Variant, cache: Path) -> Path:
    """Return a folder with the files of one variant, byte for byte what the manifest says.

    What an earlier process unpacked is used again when its digests hold.

    Args:
        bundle: The bundle; it may hold only some variants.
        variant: One of its variants.
        cache: Folder of this process alone.

    Raises:
        BundleError: A file is missing in the bundle, or the disk is full.
        NotTrustedError: A file is not what the manifest says.
    """
    folder = _home(cache) / _name(bundle.digest) / variant.id
    if folder.exists() and not _intact(folder, variant):
        logger.warning("%s was damaged on disk: unpacked again", folder)
        shutil.rmtree(folder)
    if not folder.exists():
        bundle.unpack(folder, variant.id)
    return folder


def purge(cache: Path, digests: Collection[str]) -> None:
    """Remove what was unpacked for other bundles than these."""
    kept = {_name(digest) for digest in digests}
    home = _home(cache)
    for folder in home.iterdir() if home.is_dir() else ():
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def _home(cache: Path) -> Path:
    return cache / "bundles"


def _name(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _intact(folder: Path, variant: Variant) -> bool:
    try:
        return all(sha256_file(folder / ref.path) == ref.digest for ref in variant.files)
    except OSError:
        return False
