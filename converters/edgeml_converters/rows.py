"""Arrays of samples that need not be in memory: read, and converted, some rows at a time.

Test samples may be a gigabyte. The process that asks never needs more than a few of them at once:
it looks at them, writes the chosen ones down for its children, and tells them by their digest.
"""

from __future__ import annotations

import hashlib
import os
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeml.tensors import Array

#: So many values are looked at in one piece: a copy of all samples in float64 would be large.
_PART_VALUES = 1 << 20
#: A local header of a zip file (APPNOTE.TXT 4.3.7): its size without name and extra field, and
#: where the lengths of these two stand in it.
_LOCAL, _LENGTHS = 30, 26


class Rows:
    """An array, samples on axis 0, of which rows are read when they are asked for."""

    def __init__(
        self, read: Callable[[int, int], Array], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        """Take what gives the rows.

        Args:
            read: Start and stop -> these rows.
            shape: Of the whole array.
            dtype: Of the values.
        """
        self._read = read
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)

    @classmethod
    def of(cls, array: Array) -> Rows:
        """Return the rows of an array in memory."""
        return cls(lambda start, stop: array[start:stop] if array.ndim else array,
                   array.shape, array.dtype)  # fmt: skip

    @property
    def size(self) -> int:
        """How many values there are."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, key: int | slice) -> Array:
        """Return a row, or some in a row, in memory."""
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self._read(start, max(start, stop))[::step]
        index = range(len(self))[int(key)]
        row: Array = self._read(index, index + 1)[0]
        return row

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Return all of it, in memory."""
        whole = self._read(0, len(self)) if self.ndim else self._read(0, 0)
        return np.asarray(whole, dtype)

    def parts(self) -> Iterator[Array]:
        """Yield the rows in parts: what is reckoned with them is small then."""
        step = max(1, _PART_VALUES // max(1, self.size // max(1, len(self))))
        for start in range(0, len(self), step):
            yield self._read(start, min(start + step, len(self)))

    def first(self, count: int) -> Rows:
        """Return so many rows from the first on."""
        return Rows(self._read, (count, *self.shape[1:]), self.dtype)

    def apart(self) -> Rows:
        """Return the rows of groups again, one by one: what ``grouped`` was made of."""
        batch, inner = self.shape[1], self.shape[2:]

        def read(start: int, stop: int) -> Array:
            begin = start // batch
            groups = self._read(begin, -(-stop // batch)).reshape(-1, *inner)
            return groups[start - begin * batch : stop - begin * batch]

        return Rows(read, (len(self) * batch, *inner), self.dtype)

    def since(self, first: int) -> Rows:
        """Return the rows from a position on."""
        return Rows(lambda start, stop: self._read(first + start, first + stop),
                    (len(self) - first, *self.shape[1:]), self.dtype)  # fmt: skip

    def grouped(self, batch: int) -> Rows:
        """Return the rows in groups of so many; those left over are not in it."""
        count, inner = len(self) // batch, self.shape[1:]
        return Rows(
            lambda start, stop: self._read(start * batch, stop * batch).reshape(-1, batch, *inner),
            (count, batch, *inner),
            self.dtype,
        )

    def picked(self, chosen: Array) -> Rows:
        """Return only the rows at these positions."""

        def read(start: int, stop: int) -> Array:
            rows: Array = np.empty((stop - start, *self.shape[1:]), self.dtype)
            for place, index in zip(rows, chosen[start:stop].tolist(), strict=True):
                place[...] = self[index]
            return rows

        return Rows(read, (len(chosen), *self.shape[1:]), self.dtype)

    def mapped(self, change: Callable[[Array], Array], dtype: np.dtype[Any]) -> Rows:
        """Return the rows with their values changed, one by one, whenever they are read."""
        return Rows(lambda start, stop: change(self._read(start, stop)), self.shape, dtype)

    def digest(self) -> str:
        """Return ``edgeml.digest.sha256_array`` of all of it, without having all in memory."""
        little = self.dtype.newbyteorder("<")
        state = hashlib.sha256(f"{little.str} {list(self.shape)}\n".encode())
        for part in self.parts():
            plain = np.ascontiguousarray(part).astype(little, copy=False)
            state.update(plain.reshape(-1).view(np.uint8).data)
        return "array-sha256:" + state.hexdigest()


def stored_rows(path: Path, archive: zipfile.ZipFile, key: str) -> Rows | None:
    """Return an array of an ``.npz`` file, left in the file; None when it has to be read whole.

    Args:
        path: The file.
        archive: The same, opened.
        key: Name of the array.

    Raises:
        zipfile.BadZipFile: Its bytes are not those that were written.
    """
    info = archive.getinfo(f"{key}.npy")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return None
    with archive.open(info) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            return None
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        head = stream.tell()
    if fortran or dtype.hasobject or dtype.kind not in "iufb" or not shape or 0 in shape:
        return None
    member = _Member(path, info)
    row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    if head + shape[0] * row > info.file_size:
        return None

    def read(start: int, stop: int) -> Array:
        rows: Array = np.empty((stop - start, *shape[1:]), dtype)
        member.into(rows.reshape(-1).view(np.uint8), head + start * row)
        return rows

    return Rows(read, shape, dtype)


class _Member:
    """The bytes of one member of a zip file that is not compressed."""

    def __init__(self, path: Path, info: zipfile.ZipInfo) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        head = os.pread(self._file, _LOCAL, info.header_offset)
        name, extra = np.frombuffer(head, "<u2", 2, _LENGTHS).tolist()
        self._begin = info.header_offset + _LOCAL + name + extra
        self._name = info.filename
        found, part = 0, np.empty(1 << 20, np.uint8)
        for offset in range(0, info.file_size, part.size):
            piece = part[: min(part.size, info.file_size - offset)]
            self.into(piece, offset)
            found = zlib.crc32(piece.data, found)
        if found != info.CRC:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file '{self._name}'")

    def into(self, place: Array, offset: int) -> None:
        """Read bytes from an offset on until a place is full.

        Raises:
            EOFError: The file is shorter than it says.
        """
        view, at = place.data, self._begin + offset
        while view:
            got = os.preadv(self._file, [view], at)
            if not got:
                raise EOFError(f"'{self._name}' is cut off")
            view, at = view[got:], at + got
