"""Bundles on disk, as the data plane needs them: unpacked once per digest."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from edgeml.bundle import Bundle
from edgeml.manifest import Manifest


def unpacked(path: Path, cache: Path) -> tuple[Path, Manifest]:
    """Check a bundle and unpack it.

    Args:
        path: The bundle: a folder or a file.
        cache: Folder that keeps unpacked bundles by digest.

    Returns:
        The folder with the bundle's files, and the manifest.

    Raises:
        BundleError: It is not an intact bundle.
    """
    bundle = Bundle.open(path)
    folder = cache / "bundles" / bundle.digest.removeprefix("sha256:")
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".unpack-", dir=folder.parent))
        try:
            bundle.unpack(scratch)
            scratch.rename(folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    return folder, bundle.manifest
