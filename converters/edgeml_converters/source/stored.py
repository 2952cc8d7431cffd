"""Stored tensors, inside a model or beside it: their places, bytes and digests.

One protobuf message holds less than 2 GiB, so the weights of a large model lie in a file of their
own (*external data*). Such a model is kept in memory as its graph alone: each large tensor says
where its bytes are, by an absolute path, and only one tensor at a time is read, by mapping its
part of the file. ``files`` reads and writes such models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgeml.errors import ModelError
from edgeml.tensors import Array

#: Protobuf serialises no message of 2 GiB or more.
LIMIT = (1 << 31) - 1
#: Models with more bytes of weights than this are written with external data.
INLINE = 1 << 30
#: Tensors below this many bytes stay inside the message: shape inference reads small ones.
SMALL = 1 << 10
#: Bytes that are held in memory at a time.
CHUNK = 1 << 24


class Place(msgspec.Struct, frozen=True):
    """Where the bytes of an external tensor are."""

    file: Path
    offset: int
    length: int


#: Digests of tensors in files that were not written since: gigabytes are hashed once.
_digests: dict[tuple[bytes, Place, int], str] = {}
_MOST_DIGESTS = 4096

_PACKED = frozenset(
    getattr(TensorProto, name)
    for name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2")
    if hasattr(TensorProto, name)
)


def is_external(tensor: TensorProto) -> bool:
    """Tell whether a tensor's bytes lie in a file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def byte_size(tensor: TensorProto) -> int | None:
    """Return how many bytes a tensor's values take; None for text, packed and unknown types."""
    try:
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, ValueError, TypeError):
        return None
    if tensor.data_type in _PACKED or tensor.data_type == TensorProto.STRING:
        return None
    count = 1
    for n in tensor.dims:
        count *= int(n)
    return count * int(np.dtype(kind).itemsize)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Return how many bytes the stored tensors of the outermost graph take, wherever they lie."""
    return sum(byte_size(t) or len(t.raw_data) for t in model.graph.initializer)


def is_large(model: onnx.ModelProto) -> bool:
    """Tell whether a model must be written with external data."""
    if any(is_external(t) for t in model.graph.initializer):
        return True
    return weight_bytes(model) > INLINE


def place_of(tensor: TensorProto) -> Place:
    """Return where an external tensor's bytes are; its path is absolute once it was opened."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return Place(Path(entries["location"]), int(entries.get("offset", "0")), int(entries["length"]))


def set_place(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Make a tensor external: its bytes are ``length`` bytes of ``location`` from ``offset``."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data",
                  "uint64_data"):  # fmt: skip
        tensor.ClearField(field)
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def values(tensor: TensorProto) -> Array:
    """Return a tensor's values, mapped from its file when they lie in one.

    Raises:
        ModelError: The file is no longer what it was.
        ValueError: The bytes do not fit the shape.
    """
    if not is_external(tensor):
        return numpy_helper.to_array(tensor)
    if tensor.data_type in _PACKED:
        return numpy_helper.to_array(inside(tensor))
    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return _mapped(tensor).view(kind).reshape(tuple(tensor.dims))


def _mapped(tensor: TensorProto) -> Array:
    """Return an external tensor's bytes without reading them yet."""
    place = place_of(tensor)
    if not place.length:
        return np.zeros(0, np.uint8)
    try:
        return np.memmap(place.file, np.uint8, "r", place.offset, (place.length,))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the weights of '{tensor.name}' cannot be read from '{place.file}': {error}",
            "the file was changed or removed while it was needed: start again",
        ) from error


def chunks(tensor: TensorProto) -> Iterator[memoryview]:
    """Yield a tensor's bytes as ``raw_data`` would hold them, a bounded number at a time."""
    if is_external(tensor):
        data = _mapped(tensor).data
    elif tensor.HasField("raw_data"):
        data = memoryview(tensor.raw_data)
    else:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind in "OSU" or tensor.data_type in _PACKED:
            data = memoryview(tensor.SerializeToString(deterministic=True))
        else:
            data = memoryview(np.ascontiguousarray(array).tobytes())
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]


def tensor_digest(tensor: TensorProto) -> str:
    """Return ``sha256:<hex>`` of a tensor's type, shape and bytes, wherever they lie."""
    head = f"{tensor.data_type} {list(tensor.dims)}\n".encode()
    if is_external(tensor):
        place = place_of(tensor)
        try:
            stamp = place.file.stat().st_mtime_ns
        except OSError:
            stamp = 0  # reading it says what is wrong
        known = (head, place, stamp)
        if known not in _digests:
            if len(_digests) >= _MOST_DIGESTS:
                _digests.clear()
            _digests[known] = _hashed(head, tensor)
        return _digests[known]
    return _hashed(head, tensor)


def _hashed(head: bytes, tensor: TensorProto) -> str:
    state = hashlib.sha256(head)
    for chunk in chunks(tensor):
        state.update(chunk)
    return "sha256:" + state.hexdigest()


def tensor_digests(model: onnx.ModelProto) -> dict[str, str]:
    """Return name -> digest of every stored tensor of the outermost graph."""
    return {tensor.name: tensor_digest(tensor) for tensor in model.graph.initializer}


def inside(tensor: TensorProto) -> TensorProto:
    """Return a copy of a tensor with its bytes inside."""
    copy = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=list(tensor.dims))
    copy.raw_data = b"".join(bytes(chunk) for chunk in chunks(tensor))
    return copy
