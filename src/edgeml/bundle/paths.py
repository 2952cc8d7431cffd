"""Which file names a bundle may hold: relative, plain, and never two for one file."""

from __future__ import annotations

from collections.abc import Iterable

from edgeml.errors import BundleError

_MAX_PATH = 240
_MAX_DEPTH = 16


def check_paths(paths: Iterable[str]) -> None:
    """Check that paths are safe to make below a folder, and that no two are in each other's way.

    Names that differ only in case count as one, because some file systems think so.

    Raises:
        BundleError: The first path that is not.
    """
    files: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        check_path(path)
        parts = path.casefold().split("/")
        above = {"/".join(parts[:i]) for i in range(1, len(parts))}
        whole = "/".join(parts)
        if whole in files or whole in folders or above & files:
            raise BundleError(f"path '{path}' is used twice in the bundle")
        files.add(whole)
        folders |= above


def check_path(path: str) -> None:
    """Check that a path is relative and has no ``..``, links, drives or control characters.

    Raises:
        BundleError: It is not safe.
    """
    parts = path.split("/")
    bad = (
        len(path.encode(errors="replace")) > _MAX_PATH
        or len(parts) > _MAX_DEPTH
        or any(part in ("", ".", "..") for part in parts)
        or any(c in '\\:*?"<>|' or not c.isprintable() for c in path)
    )
    if bad:
        raise BundleError(
            f"path {path[:80]!r} is not allowed in a bundle",
            "paths are relative, without '..', and plain",
        )
