"""Samples: the inputs that every candidate is run with, one run after the other.

A sample is the feed of one run. The samples of a search are kept stacked, input -> array
``[runs, *shape of one run]``, because then one file of arrays holds them whatever the shapes are.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np

from edgeml.errors import DataError
from edgeml.tensors import Array, TensorSpec
from edgeml_converters.rows import Rows

Stacked = dict[str, Rows]


def stack(data: Mapping[str, Rows], inputs: Sequence[TensorSpec]) -> Stacked:
    """Cut evaluation data into runs: one row each, or the batch that the model fixes.

    Args:
        data: Input name -> array, samples on axis 0.
        inputs: The public contract.

    Raises:
        DataError: There is not even one run in it.
    """
    stacked: Stacked = {}
    for spec in inputs:
        rows, batch = data[spec.name], per_run(spec)
        runs = len(rows) // batch
        if runs == 0:
            raise DataError(
                f"the data holds {len(rows)} samples of '{spec.name}', "
                f"but the model takes {batch} in one run",
                "give more data, or a model with a variable batch",
            )
        stacked[spec.name] = rows.grouped(batch) if spec.shape else rows
    runs = min(len(rows) for rows in stacked.values())
    return {name: rows.first(runs) for name, rows in stacked.items()}


def per_run(spec: TensorSpec) -> int:
    """Return how many rows of data one run takes."""
    return spec.shape[0] if spec.shape and spec.shape[0] > 0 else 1


def feeds(samples: Mapping[str, Rows]) -> Iterator[dict[str, Array]]:
    """Yield the feed of each run."""
    for index in range(count(samples)):
        yield {name: np.asarray(array[index]) for name, array in samples.items()}


def count(samples: Mapping[str, Rows]) -> int:
    """Return the number of runs."""
    return len(next(iter(samples.values())))


def join(runs: Sequence[Mapping[str, Array]], batch: int) -> dict[str, Array]:
    """Put the tensors of all runs together, samples on axis 0.

    One that has no batch on axis 0 counts as one sample per run. One whose shape changes
    from run to run is laid flat: two candidates can still be compared when they agree on it.

    Args:
        runs: Name -> array, for each run.
        batch: Samples in one run.
    """
    joined: dict[str, Array] = {}
    for name in runs[0]:
        parts = [run[name] for run in runs]
        if any(part.shape != parts[0].shape for part in parts):
            joined[name] = np.concatenate([part.ravel() for part in parts])
        elif parts[0].ndim and parts[0].shape[0] == batch:
            joined[name] = np.concatenate(parts)
        else:
            joined[name] = np.stack(parts)
    return joined


def flat(stacked: Mapping[str, Rows]) -> dict[str, Rows]:
    """Return what ``join`` makes of all feeds, still to be read."""
    batch = batch_of({name: rows[0] for name, rows in stacked.items()})
    return {
        name: rows.apart() if rows.ndim > 1 and rows.shape[1] == batch else rows
        for name, rows in stacked.items()
    }


def batch_of(feed: Mapping[str, Array]) -> int:
    """Return how many samples a feed holds: the fewest rows of any input."""
    return min((array.shape[0] for array in feed.values() if array.ndim), default=1)


def save(path: Path, arrays: Mapping[str, Array | Rows]) -> None:
    """Write arrays for another process of this run; not meant to be kept."""
    # Not numpy.savez: there an input called "file" would be taken for its own argument.
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                if not isinstance(array, Rows):
                    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
                    continue
                kind = np.lib.format.dtype_to_descr(array.dtype)
                head = {"descr": kind, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(stream, head)
                for part in array.parts():
                    stream.write(np.ascontiguousarray(part).data)


class Kept:
    """Samples in a file for other processes, which is written when the first of them needs it."""

    def __init__(self, path: Path, samples: Stacked, digest: str) -> None:
        """Take the samples.

        Args:
            path: Of the file.
            samples: What it will hold.
            digest: Of what they were chosen from, and how.
        """
        self.path, self.digest = path, digest
        self._samples, self._lock = samples, Lock()

    def write(self) -> Path:
        """Write the file, if it is not there yet; return its path."""
        with self._lock:
            if not self.path.exists():
                new = self.path.with_suffix(".new")
                save(new, self._samples)
                new.rename(self.path)
        return self.path


def stream(path: Path) -> Iterator[dict[str, Array]]:
    """Yield the feed of each run of what ``save`` wrote, one at a time in memory."""
    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(path))
        opened: dict[str, tuple[IO[bytes], np.dtype[Any], tuple[int, ...]]] = {}
        for name in archive.namelist():
            file = stack.enter_context(archive.open(name))
            np.lib.format.read_magic(file)
            shape, _, kind = np.lib.format.read_array_header_1_0(file)
            opened[name.removesuffix(".npy")] = (file, kind, shape)
        for _ in range(min(shape[0] for _, _, shape in opened.values())):
            yield {
                name: _next(file, kind, shape[1:]) for name, (file, kind, shape) in opened.items()
            }


def count_of(path: Path) -> int:
    """Return the number of runs of what ``save`` wrote."""
    least = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                np.lib.format.read_magic(file)
                least.append(np.lib.format.read_array_header_1_0(file)[0][0])
    return min(least)


def _next(file: IO[bytes], kind: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Read the next array of a type and shape."""
    array: Array = np.empty(shape, kind)
    data = file.read(array.nbytes)
    array.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8) if data else 0
    return array


def load(path: Path) -> dict[str, Array]:
    """Read what ``save`` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
