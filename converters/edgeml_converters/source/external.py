"""External data: weights in files beside the model, read only from inside its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx

from edgeml.errors import ModelError

#: Protobuf serialises no message of 2 GiB or more.
LIMIT = (1 << 31) - 1


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and every graph inside its nodes (If, Loop, Scan)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_graphs(attribute.g)
            for inner in attribute.graphs:
                yield from all_graphs(inner)


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every stored tensor: initializers and constants, of all graphs and functions."""
    for graph in all_graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
        for node in graph.node:
            yield from _attribute_tensors(node)
    for function in model.functions:
        for node in function.node:
            yield from _attribute_tensors(node)


def _attribute_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            if not attribute.t.name and node.output:
                attribute.t.name = node.output[0]
            yield attribute.t
        yield from attribute.tensors


def load_external(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """Move external data into the model.

    Args:
        model: The model; changed in place.
        path: Its file; external data is only read from the folder of that file.

    Returns:
        The files that were read, sorted.

    Raises:
        ModelError: A file is missing, lies outside the folder, or is too short; or the whole is
            too large for one message.
    """
    used: set[Path] = set()
    total = 0
    for tensor in all_tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file = _locate(path, tensor.name, entries.get("location", ""))
        data = _read(file, tensor, entries)
        total += len(data)
        if total > LIMIT:
            raise ModelError(
                f"'{path}' has more than 2 GiB of weights, expected less",
                "models of 2 GiB and more cannot be converted",
            )
        tensor.raw_data = data
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
        used.add(file)
    return tuple(sorted(used))


def _locate(path: Path, name: str, location: str) -> Path:
    """Return the file of a tensor's data, once it is surely inside the model's folder."""
    parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
    absolute = PurePosixPath(location).is_absolute() or bool(PureWindowsPath(location).anchor)
    folder = path.parent
    file = folder / location
    try:
        inside = not absolute and ".." not in parts and "\0" not in location
        inside = inside and file.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of links
        inside = False
    if not inside or not location:
        raise ModelError(
            f"'{path}' keeps the weights of '{name}' in '{location}', which is outside its folder",
            "external data must lie beside the model; do not use a model that you do not trust",
        )
    if not file.is_file():
        raise ModelError(
            f"'{path}' needs the external data file '{location}' (weights of '{name}'), "
            f"which is not in '{folder}'",
            "copy the file beside the model",
        )
    return file


def _read(file: Path, tensor: onnx.TensorProto, entries: dict[str, str]) -> bytes:
    """Return a tensor's bytes."""
    where = f"external data '{file.name}' of '{tensor.name}'"
    try:
        offset = int(entries.get("offset", "0") or 0)
        length = int(entries.get("length", "-1") or -1)
    except ValueError as error:
        raise ModelError(f"{where} has an offset or a length that is no number") from error
    want = _size(tensor)
    try:
        available = file.stat().st_size - offset
        if length < 0:
            length = want if want is not None else available
        if offset < 0 or length > available:
            raise ModelError(
                f"{where} has {max(available, 0)} bytes from offset {offset}, expected {length}",
                "the file is truncated or of another model: copy it again",
            )
        if want is not None and length != want:
            raise ModelError(
                f"{where} has {length} bytes, expected {want} for shape {list(tensor.dims)}"
            )
        with file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)
    except OSError as error:
        raise ModelError(f"{where} cannot be read: {error.strerror or error}") from error


def _size(tensor: onnx.TensorProto) -> int | None:
    """Return how many bytes a tensor's values take; None for packed or unknown types."""
    sub_byte = {
        getattr(onnx.TensorProto, name)
        for name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2")
        if hasattr(onnx.TensorProto, name)
    }
    try:
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, ValueError, TypeError):
        return None
    if tensor.data_type in sub_byte:
        return None
    count = 1
    for n in tensor.dims:
        count *= int(n)
    return count * int(np.dtype(kind).itemsize)
