"""External data: weights in files beside the model, read only from inside its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from edgeml.errors import ModelError
from edgeml_converters.source import stored
from edgeml_converters.source.stored import LIMIT, Place, byte_size, is_external, set_place


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
    """Check external data, and move it into the model unless there is much of it.

    Of more than ``stored.INLINE`` bytes, the tensors of the outermost graph stay in their files,
    and say by an absolute path where (see ``stored``).

    Args:
        model: The model; changed in place.
        path: Its file; external data is only read from the folder of that file.

    Returns:
        The files that hold data, sorted.

    Raises:
        ModelError: A file is missing, lies outside the folder, or is too short; or what must be
            in memory is too large for one message.
    """
    places = [(t, _place(t, path)) for t in all_tensors(model) if is_external(t)]
    much = sum(place.length for _, place in places) > stored.INLINE
    outer = {id(tensor) for tensor in model.graph.initializer} if much else set()
    inside = sum(place.length for tensor, place in places if id(tensor) not in outer)
    if inside > LIMIT:
        raise ModelError(
            f"'{path}' has more than 2 GiB of constants inside its nodes, expected less",
            "store them as initializers of the graph",
        )
    for tensor, place in places:
        if id(tensor) in outer:
            set_place(tensor, str(place.file), place.offset, place.length)
            continue
        tensor.raw_data = _read(tensor, place)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return tuple(sorted({place.file for _, place in places}))


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


def _place(tensor: onnx.TensorProto, path: Path) -> Place:
    """Return where a tensor's bytes are, once they are surely there."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    file = _locate(path, tensor.name, entries.get("location", ""))
    where = f"external data '{file.name}' of '{tensor.name}'"
    try:
        offset = int(entries.get("offset", "0") or 0)
        length = int(entries.get("length", "-1") or -1)
    except ValueError as error:
        raise ModelError(f"{where} has an offset or a length that is no number") from error
    want = byte_size(tensor)
    try:
        available = file.stat().st_size - offset
    except OSError as error:
        raise ModelError(f"{where} cannot be read: {error.strerror or error}") from error
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
    return Place(file.resolve(), offset, length)


def _read(tensor: onnx.TensorProto, place: Place) -> bytes:
    """Return a tensor's bytes."""
    try:
        with place.file.open("rb") as stream:
            stream.seek(place.offset)
            return stream.read(place.length)
    except OSError as error:
        where = f"external data '{place.file.name}' of '{tensor.name}'"
        raise ModelError(f"{where} cannot be read: {error.strerror or error}") from error
