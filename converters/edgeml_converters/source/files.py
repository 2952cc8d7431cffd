"""Model files of any size: written, read, and their digests.

A small model is one file. The weights of a large one lie in a second file, with ``.data`` behind
the name of the first, and are copied from file to file without being held in memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import EncodeError
from onnx import TensorProto

from edgeml.digest import sha256_bytes
from edgeml.errors import ModelError
from edgeml_converters.source.stored import (
    CHUNK,
    SMALL,
    Place,
    byte_size,
    chunks,
    inside,
    is_external,
    is_large,
    place_of,
    set_place,
    tensor_digest,
    tensor_digests,
)

#: Where a tensor starts in a data file: a multiple of the largest page size, so it can be mapped.
_ALIGN = 1 << 16
#: A place that is none; the checker of onnx looks for no file behind a name like this.
_ELSEWHERE = "#elsewhere"


def model_bytes(model: onnx.ModelProto) -> bytes:
    """Return a model's bytes; equal models give equal bytes.

    Raises:
        ModelError: It is too large for one message; ``save_model`` writes models of any size.
    """
    if any(is_external(tensor) for tensor in model.graph.initializer):
        raise too_large("the model with its weights")
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise too_large("the model with its weights") from error


def model_digest(model: onnx.ModelProto, whole: bool = True) -> str:
    """Return ``sha256:<hex>`` of a model's bytes; of a large one, of its graph and its tensors.

    Args:
        model: The model.
        whole: Of a small one, that of its file, by way of two copies of its bytes; else as of a
            large one.
    """
    if whole and not is_large(model):
        return sha256_bytes(model_bytes(model))
    return _digest_of_parts(model)


def save_model(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """Write a model of any size.

    Args:
        model: The model.
        path: Its file; a large model's weights go to the same name with ``.data`` behind it.

    Returns:
        The files.

    Raises:
        ModelError: Its data file is gone, or its graph alone is larger than 2 GiB.
        OSError: The files cannot be written.
    """
    if is_large(model):
        return save_outside(model, path)
    path.write_bytes(model_bytes(model))
    return (path,)


def read_model(path: Path) -> onnx.ModelProto:
    """Read what ``save_model`` wrote; the weights of a large model stay in their file."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if is_external(tensor):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            file = path.absolute().parent / entries["location"]
            set_place(tensor, str(file), int(entries["offset"]), int(entries["length"]))
    return model


def check_written(model: onnx.ModelProto, path: Path) -> None:
    """Read a file back, and check that every stored tensor is in it with its values.

    Raises:
        ModelError: One is missing, or has other bytes.
    """
    want, got = tensor_digests(model), tensor_digests(read_model(path))
    for name, digest in want.items():
        if got.get(name) != digest:
            raise ModelError(
                f"'{path.name}' was written with {'other' if name in got else 'no'} bytes for the "
                f"weight '{name}'",
                "check the disk; nothing was kept",
            )


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with all its bytes in memory; the given one when they are.

    Raises:
        ModelError: The data file is no longer there.
    """
    if not any(is_external(t) for t in model.graph.initializer):
        return model
    whole, large = outline(model)
    for index in large:
        whole.graph.initializer[index].CopyFrom(inside(model.graph.initializer[index]))
    return whole


def outline(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[int]]:
    """Return a copy without the bytes of large tensors, and which tensors these are.

    In the copy they only say that they are elsewhere. The bytes are never copied.
    """
    bare = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _copy_field(bare, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _copy_field(bare.graph, field.name, value)
    large: list[int] = []
    for index, tensor in enumerate(model.graph.initializer):
        kept = bare.graph.initializer.add()
        if not is_external(tensor) and (byte_size(tensor) or 0) < SMALL:
            kept.CopyFrom(tensor)
            continue
        kept.name, kept.data_type = tensor.name, tensor.data_type
        kept.dims.extend(tensor.dims)
        set_place(kept, _ELSEWHERE, 0, 0)
        large.append(index)
    return bare, large


def filled(bare: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the large tensors of a model back into what was made of its outline; by their names.

    Args:
        bare: Comes from ``outline``, by way of something that does not look at weights; changed.
        model: Holds the tensors.
    """
    mine = {tensor.name: tensor for tensor in model.graph.initializer}
    for tensor in bare.graph.initializer:
        if is_external(tensor) and place_of(tensor).file == Path(_ELSEWHERE):
            tensor.CopyFrom(mine[tensor.name])
    return bare


def _copy_field(message: object, name: str, value: object) -> None:
    """Set a field of a protobuf message to a copy of a value."""
    field = getattr(message, name)
    if hasattr(field, "CopyFrom"):
        field.CopyFrom(value)
    elif hasattr(field, "extend"):
        field.extend(value)
    else:
        setattr(message, name, value)


def _digest_of_parts(model: onnx.ModelProto) -> str:
    """Return a digest of graph and tensors; the same whether its bytes are inside or beside it."""
    bare, large = outline(model)
    for index in large:
        digest = tensor_digest(model.graph.initializer[index])
        set_place(bare.graph.initializer[index], digest, 0, 0)
    return sha256_bytes(bytes(bare.SerializeToString(deterministic=True)))


def save_outside(model: onnx.ModelProto, path: Path) -> tuple[Path, Path]:
    """Write a model as ``path`` and its large tensors as ``path`` with ``.data`` behind it.

    The bytes go from file to file without being held in memory. When all of them lie in one file
    already, that file is linked instead of copied where the file system allows it. Runtimes load
    a linked file; the library onnx takes one for an attack, so ``read_model`` reads it here, and
    what leaves the machine in a bundle is a copy.

    Raises:
        ModelError: The graph alone is too large for one message.
        OSError: The files cannot be written.
    """
    bare, large = outline(model)
    beside = path.with_name(path.name + ".data")
    tensors = [model.graph.initializer[index] for index in large]
    places = _link(tensors, beside) or _write(tensors, beside)
    for index, place in zip(large, places, strict=True):
        set_place(bare.graph.initializer[index], beside.name, place.offset, place.length)
    bare.ir_version = max(bare.ir_version, 3)
    try:
        path.write_bytes(bare.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise too_large("the graph without its weights") from error
    return path, beside


def too_large(what: str) -> ModelError:
    """Return the error for what does not fit one message."""
    return ModelError(
        f"{what} takes more than the 2 GiB that one protobuf message can hold",
        "this step handles smaller models only; others are not concerned",
    )


def _link(tensors: list[TensorProto], target: Path) -> list[Place]:
    """Link the one file that holds all tensors; nothing when there is no such file or link."""
    if not tensors or not all(is_external(t) for t in tensors):
        return []
    places = [place_of(tensor) for tensor in tensors]
    files = {place.file for place in places}
    # A file that holds much else (of another model) is not taken along.
    if len(files) > 1 or _waste(places):
        return []
    try:
        os.link(files.pop().resolve(), target)
    except OSError:  # another file system, or one without links
        return []
    return places


def _waste(places: list[Place]) -> bool:
    """Tell whether much of the file is used by none of the tensors."""
    size = places[0].file.stat().st_size
    used = sum(length for _, length in {(p.offset, p.length) for p in places})
    return size > used + used // 8 + len(places) * _ALIGN


def _write(tensors: list[TensorProto], target: Path) -> list[Place]:
    """Write the bytes of tensors, one behind the other, each at a whole page."""
    places: list[Place] = []
    with target.open("wb") as stream:
        for tensor in tensors:
            start = -(-stream.tell() // _ALIGN) * _ALIGN
            stream.seek(start)
            if is_external(tensor):
                _copy_part(place_of(tensor), stream)
            else:
                for chunk in chunks(tensor):
                    stream.write(chunk)
            places.append(Place(target, start, stream.tell() - start))
    return places


def _copy_part(place: Place, out: BinaryIO) -> None:
    """Append a part of a file to an open file."""
    with place.file.open("rb") as source:
        source.seek(place.offset)
        left = place.length
        while left:
            block = source.read(min(left, CHUNK))
            if not block:
                raise ModelError(f"'{place.file}' is shorter than it was", "start again")
            left -= len(block)
            out.write(block)
