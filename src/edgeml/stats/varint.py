"""Counts as variable-length integers (LEB128), all at once with NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GROUPS = 9  # 9 groups of 7 bits hold every number below 2**63


def encode(values: npt.NDArray[np.int64]) -> bytes:
    """Return one to nine bytes per number, the lowest 7 bits first.

    Args:
        values: [n], not negative.
    """
    flat = values.astype(np.uint64).ravel()
    shifts = np.arange(_GROUPS, dtype=np.uint64) * np.uint64(7)
    groups = (flat[:, None] >> shifts) & np.uint64(0x7F)
    used = np.maximum(1, _GROUPS - np.argmax(groups[:, ::-1] > 0, axis=1))
    used[flat == 0] = 1
    place = np.arange(_GROUPS)
    more = place < (used - 1)[:, None]
    marked: npt.NDArray[np.uint8] = (groups | (more * np.uint64(0x80))).astype(np.uint8)
    kept: npt.NDArray[np.uint8] = marked[place < used[:, None]]
    return bytes(kept.tobytes())


def decode(data: bytes, count: int) -> npt.NDArray[np.int64]:
    """Return the numbers that ``encode`` wrote.

    Args:
        data: The bytes.
        count: How many numbers there must be.

    Raises:
        ValueError: There are more or fewer, or one is too long.
    """
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    if len(ends) != count or (len(raw) and (not count or ends[-1] != len(raw) - 1)):
        raise ValueError(f"{len(ends)} numbers in {len(raw)} bytes, expected {count}")
    if not count:
        return np.zeros(0, np.int64)
    starts = np.concatenate(([0], ends[:-1] + 1))
    if int((ends - starts).max()) >= _GROUPS:
        raise ValueError("a number is longer than 63 bits")
    place = np.arange(len(raw)) - np.repeat(starts, ends - starts + 1)
    parts = (raw.astype(np.uint64) & np.uint64(0x7F)) << (place.astype(np.uint64) * np.uint64(7))
    return np.add.reduceat(parts, starts).astype(np.int64)
