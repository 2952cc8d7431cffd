"""Tensor data of the Open Inference Protocol to arrays and back, as JSON and as raw bytes.

JSON: numbers in row-major order, flat or nested as the shape says. Raw: little-endian, row-major;
BOOL one byte per element; BYTES a 32-bit length before each element; FP16 exists only raw
(binary tensor data extension of the protocol).
"""

from __future__ import annotations

import math
import struct
import sys
from typing import Any

import msgspec
import numpy as np

from edgeml.errors import RequestError, nearest
from edgeml.tensors import NUMPY_NAMES, Array

MAX_RANK = 16
_RAW = {
    name: np.dtype(numpy_name).newbyteorder("<")
    for name, numpy_name in NUMPY_NAMES.items()
    if name != "BYTES"
}
#: By dtype itself: asking NumPy for the name of a dtype takes microseconds.
_DATATYPE = {np.dtype(NUMPY_NAMES[name]): name for name in _RAW}
_LITTLE = sys.byteorder == "little"
_FLOATS = ("FP32", "FP64")
_LENGTH = struct.Struct("<I")


def _json_type(datatype: str) -> Any:
    if datatype in _FLOATS:
        return list[float]
    if datatype in ("BOOL", "BYTES"):
        return list[bool] if datatype == "BOOL" else list[str]
    return list[int]


_FLAT = {name: msgspec.json.Decoder(_json_type(name)) for name in NUMPY_NAMES if name != "FP16"}
_NESTED = msgspec.json.Decoder(list[Any])


def count(name: str, datatype: str, shape: list[int]) -> int:
    """Return the number of elements that a tensor's head announces.

    Raises:
        RequestError: An unknown datatype, a negative axis, or too many axes.
    """
    if datatype not in NUMPY_NAMES:
        raise RequestError(
            f"input '{name}' has datatype '{datatype}'", nearest(datatype, NUMPY_NAMES)
        )
    if len(shape) > MAX_RANK or min(shape, default=0) < 0:
        raise RequestError(
            f"input '{name}' has shape {shape[:20]}, expected at most {MAX_RANK} axes, none below 0"
        )
    return math.prod(shape)


def from_json(name: str, datatype: str, shape: list[int], data: bytes) -> Array:
    """Return the array in JSON data.

    Raises:
        RequestError: The data is not what datatype and shape say.
    """
    expected = count(name, datatype, shape)
    if datatype == "FP16":
        raise RequestError(
            f"input '{name}' has datatype FP16 in JSON", "send FP16 as binary tensor data"
        )
    try:
        if len(shape) > 1 and data[1:].lstrip()[:1] == b"[":
            flat: list[Any] = []
            _flatten(name, _NESTED.decode(data), shape, flat)
            values = msgspec.convert(flat, _json_type(datatype))
        else:
            values = _FLAT[datatype].decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"data of input '{name}' is not {datatype}: {error}") from error
    if len(values) != expected:
        raise RequestError(
            f"input '{name}' has {len(values)} values, expected {expected} for shape {shape}"
        )
    return _cast(name, datatype, values).reshape(shape)


def _flatten(name: str, values: Any, shape: list[int], out: list[Any]) -> None:
    """Append nested values in row-major order; every level must be as long as its axis."""
    if not isinstance(values, list) or len(values) != shape[0]:
        got = f"a list of {len(values)}" if isinstance(values, list) else type(values).__name__
        raise RequestError(f"data of input '{name}' holds {got}, expected a list of {shape[0]}")
    if len(shape) == 1:
        out += values
        return
    for value in values:
        _flatten(name, value, shape[1:], out)


def _cast(name: str, datatype: str, values: list[Any]) -> Array:
    """Return values in their type; an integer that does not fit is an error, never wrapped."""
    if datatype == "BYTES":
        strings = np.empty(len(values), dtype=object)
        strings[:] = values
        return strings
    dtype = np.dtype(NUMPY_NAMES[datatype])
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        if values and not (bounds.min <= min(values) and max(values) <= bounds.max):
            raise RequestError(
                f"input '{name}' holds a value that does not fit {datatype}",
                f"expected {bounds.min} to {bounds.max}",
            )
    with np.errstate(over="ignore"):  # the check for finite values says it better
        return np.array(values, dtype=dtype)


def from_raw(name: str, datatype: str, shape: list[int], data: memoryview) -> Array:
    """Return the array in raw bytes; it shares their memory where it can.

    Raises:
        RequestError: The length is not what datatype and shape say.
    """
    expected = count(name, datatype, shape)
    if datatype == "BYTES":
        return _strings(name, expected, data).reshape(shape)
    dtype = _RAW[datatype]
    if len(data) != expected * dtype.itemsize:
        raise RequestError(
            f"input '{name}' has {len(data)} bytes of binary data, "
            f"expected {expected * dtype.itemsize} for {datatype} {shape}"
        )
    array = np.frombuffer(data, dtype=dtype)
    if datatype == "BOOL" and len(data) and array.view(np.uint8).max() > 1:
        raise RequestError(f"input '{name}' has datatype BOOL and holds bytes other than 0 and 1")
    if not array.flags.aligned:  # the JSON before it has any length
        array = array.copy()
    return array.reshape(shape)


def _strings(name: str, expected: int, data: memoryview) -> Array:
    """Return length-prefixed strings."""
    if expected * _LENGTH.size > len(data):
        raise RequestError(
            f"input '{name}' has {len(data)} bytes of binary data, expected {expected} strings"
        )
    strings = np.empty(expected, dtype=object)
    offset = 0
    for i in range(expected):
        start = offset + _LENGTH.size
        if start > len(data):
            raise RequestError(f"input '{name}' ends inside string {i}")
        offset = start + _LENGTH.unpack_from(data, offset)[0]
        if offset > len(data):
            raise RequestError(f"input '{name}' ends inside string {i}")
        try:
            strings[i] = str(data[start:offset], "utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(f"string {i} of input '{name}' is not UTF-8") from error
    if offset != len(data):
        raise RequestError(f"input '{name}' has {len(data) - offset} bytes after its last string")
    return strings


def to_raw(array: Array) -> bytes:
    """Return an array's raw bytes."""
    if array.dtype.kind in "OSU":
        encoded = [_encode(value) for value in array.ravel()]
        return b"".join(_LENGTH.pack(len(value)) + value for value in encoded)
    if not _LITTLE:
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.tobytes()


def to_json(name: str, array: Array) -> list[Any]:
    """Return an array's values as a flat list.

    Raises:
        RequestError: JSON cannot carry them: FP16, or values that are not finite (of a model that
            may give them; for any other they were an error before).
    """
    if array.dtype.kind in "OSU":
        return [_encode(value).decode("utf-8", "replace") for value in array.ravel()]
    if array.dtype == np.float16:
        raise RequestError(f"output '{name}' is FP16", "ask for it as binary tensor data")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(
            f"output '{name}' holds values that are not finite, which JSON cannot carry",
            "ask for it as binary tensor data",
        )
    values: list[Any] = array.ravel().tolist()
    return values


def datatype_of(array: Array) -> str:
    """Return the protocol's name of an array's type."""
    return _DATATYPE.get(array.dtype, "BYTES")


def _encode(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
