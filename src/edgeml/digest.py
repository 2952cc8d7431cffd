"""SHA-256 digests; the name of a digest says how it was made.

``sha256:<hex>`` is the digest of bytes as they lie on disk. ``tree-sha256:<hex>`` is the digest
of a folder: of the sorted lines ``<digest of the file>  <path relative to the folder>``.
``array-sha256:<hex>`` is the digest of an array's type, shape and little-endian bytes.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_CHUNK = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Tell whether ``text`` is a well-formed ``sha256:<hex>``."""
    return _DIGEST.fullmatch(text) is not None


def sha256_bytes(data: bytes | memoryview) -> str:
    """Return ``sha256:<hex>`` of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return ``sha256:<hex>`` of a file, read in bounded memory.

    Raises:
        OSError: The file cannot be read.
    """
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            state.update(chunk)
    return "sha256:" + state.hexdigest()


def sha256_tree(folder: Path) -> str:
    """Return ``tree-sha256:<hex>`` of all regular files below a folder.

    Raises:
        OSError: A file cannot be read.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    lines = [f"{sha256_file(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    return "tree-" + sha256_bytes("".join(lines).encode())


def sha256_array(array: npt.NDArray[Any]) -> str:
    """Return ``array-sha256:<hex>`` of an array's type, shape and values."""
    flat = np.ascontiguousarray(array)
    little = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
    head = f"{little.dtype.str} {list(little.shape)}\n".encode()
    state = hashlib.sha256(head)
    state.update(little.reshape(-1).view(np.uint8).data)  # no copy: it may be large
    return "array-sha256:" + state.hexdigest()
