"""Golden samples: does this device compute what the workstation recorded?

An element is right when ``|got - expected| <= atol + rtol * max|expected|`` of its output; the
largest recorded value and not its own, because the error of a quantised tensor is a share of the
tensor's range. NaN is right only where NaN was recorded, and an infinity only where the same one
was; so a model that fails by giving NaN everywhere never passes.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Mapping

import msgspec
import numpy as np

from edgeml.errors import DataError, EdgemlError
from edgeml.manifest import Tolerance
from edgeml.runtime.base import Session
from edgeml.tensors import DATATYPES, Array

#: What a file of arrays may unpack to, in bytes; far above any golden samples.
MAX_BYTES = 256 * 1024 * 1024
_MAX_ARRAYS = 1024
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip file can hold


class GoldenResult(msgspec.Struct, frozen=True):
    """How a run compares with the recorded one.

    Attributes:
        ok: Whether every output is within the tolerance.
        worst: Largest error of all, as a multiple of the limit; infinite where NaN or infinity
            is wrong.
        share: Smallest share of right elements of any output, in [0, 1].
        output: The output where ``share`` and ``worst`` are worst.
        reason: Why not; empty when ok.
    """

    ok: bool
    worst: float
    share: float
    output: str
    reason: str


def golden_check(
    session: Session,
    inputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    tolerance: Tolerance,
) -> GoldenResult:
    """Run the golden inputs and compare with what was recorded.

    Args:
        session: Speaks the public contract.
        inputs: One array per input, samples on axis 0.
        expected: One array per recorded output.
        tolerance: How far is near enough.

    Returns:
        The outcome. A run that fails is an outcome too, not an exception.
    """
    if not expected:
        return GoldenResult(False, np.inf, 0.0, "", "no outputs were recorded")
    try:
        got = session.run(inputs)
    except EdgemlError as error:
        return GoldenResult(False, np.inf, 0.0, "", f"the run failed: {error.message}")
    results = [_compare(name, got.get(name), want, tolerance) for name, want in expected.items()]
    return min(results, key=lambda result: (result.ok, result.share, -result.worst))


def _compare(name: str, got: Array | None, want: Array, tolerance: Tolerance) -> GoldenResult:
    """Compare one output."""
    if got is None:
        return GoldenResult(False, np.inf, 0.0, name, f"output '{name}' is missing")
    if got.shape != want.shape:
        reason = f"output '{name}' has shape {list(got.shape)}, expected {list(want.shape)}"
        return GoldenResult(False, np.inf, 0.0, name, reason)
    if want.size == 0:
        return GoldenResult(True, 0.0, 1.0, name, "")
    if want.dtype.kind not in "fiu":  # text and truth values are the same or not
        wrong = np.where(got == want, 0.0, np.inf)
    else:
        wrong = _errors(got, want, tolerance)
    share = float(np.mean(wrong <= 1.0))
    worst = float(np.max(wrong))
    ok = share >= tolerance.share
    reason = "" if ok else (
        f"output '{name}': {share:.2%} of the elements are within the tolerance, "
        f"expected {tolerance.share:.2%}; the worst is {worst:.3g} times off"
    )  # fmt: skip
    return GoldenResult(ok, worst, share, name, reason)


def _errors(got: Array, want: Array, tolerance: Tolerance) -> Array:
    """Return every element's error as a multiple of the limit."""
    have, need = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(need)
    top = float(np.max(np.abs(need[finite]), initial=0.0))
    limit = tolerance.atol + tolerance.rtol * top
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        error = np.abs(have - need)
        ratio = np.where(error == 0.0, 0.0, error / limit)
    same = (np.isnan(have) & np.isnan(need)) | (have == need)
    strange = ~finite | ~np.isfinite(have)
    return np.where(strange, np.where(same, 0.0, np.inf), ratio)


def save_arrays(arrays: Mapping[str, Array]) -> bytes:
    """Return arrays as the bytes of an ``.npz`` file; the same arrays give the same bytes.

    Raises:
        DataError: An array holds Python objects.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(arrays):
            if arrays[name].dtype.kind not in "biufSU":
                raise DataError(f"array '{name}' of type {arrays[name].dtype} cannot be stored")
            member = io.BytesIO()
            array = np.ascontiguousarray(arrays[name]).reshape(arrays[name].shape)
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, member.getvalue(), compresslevel=6)
    return buffer.getvalue()


def load_arrays(data: bytes, limit: int = MAX_BYTES) -> dict[str, Array]:
    """Return the arrays of an ``.npz`` file, never unpickling and never beyond a bound.

    Args:
        data: The file's bytes.
        limit: Most bytes that all arrays may take together.

    Raises:
        DataError: It is not such a file, holds something else, or is too large.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _members(archive, limit)
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"not a file of arrays (.npz): {error}") from error
    except (zlib.error, OSError, KeyError, SyntaxError, MemoryError) as error:
        raise DataError(f"a damaged file of arrays (.npz): {error}") from error


def _members(archive: zipfile.ZipFile, limit: int) -> dict[str, Array]:
    """Read every member of an archive, within a bound.

    Raises:
        DataError: A member is not an array, or there is too much.
    """
    members = archive.infolist()
    if len(members) > _MAX_ARRAYS:
        raise DataError(f"{len(members)} arrays, expected at most {_MAX_ARRAYS}")
    arrays: dict[str, Array] = {}
    left = limit
    for info in members:
        if not info.filename.endswith(".npy") or info.filename in arrays:
            raise DataError(f"member '{info.filename[:80]}' is not an array")
        with archive.open(info) as file:
            content = file.read(left + 1)  # the size that the archive states may be a lie
        left -= len(content)
        if left < 0:
            raise DataError(f"the arrays take more than {limit} bytes")
        array = _array(content, info.filename)
        arrays[info.filename.removesuffix(".npy")] = array
    return arrays


def _array(content: bytes, name: str) -> Array:
    """Return one array from the bytes of an ``.npy`` file.

    NumPy's own reader makes room for the shape that the header states before it reads, and a
    header may state any; here both must agree first.

    Raises:
        DataError: Type or length do not hold.
        ValueError: It is no ``.npy`` file.
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if header is None:
        raise DataError(f"array '{name}' has format {version}, expected 1.0 or 2.0")
    shape, by_column, dtype = header(file)
    if dtype.kind not in "SU" and (dtype.name not in DATATYPES or dtype.hasobject):
        raise DataError(f"array '{name}' has type {dtype}, expected plain numbers or text")
    body = content[file.tell() :]
    if math.prod(shape) * dtype.itemsize != len(body):
        raise DataError(f"array '{name}' holds {len(body)} bytes, its header says {list(shape)}")
    if dtype.itemsize == 0:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(body, dtype)
    return flat.reshape(shape, order="F" if by_column else "C").copy()
