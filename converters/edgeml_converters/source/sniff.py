"""What kind of file this is, by its first bytes: the name's ending proves nothing."""

from __future__ import annotations

import os
from pathlib import Path

from edgeml.errors import ModelError, nearest

#: No message of the formats here is larger.
_LIMIT = (1 << 31) - 1
#: First bytes -> kind.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "git-lfs"),
    (b"PK\x03\x04", "zip"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"GGUF", "gguf"),
    (b"\x1f\x8b", "gzip"),
    (b"\x80\x02", "pickle"),
    (b"\x80\x03", "pickle"),
    (b"\x80\x04", "pickle"),
    (b"\x80\x05", "pickle"),
    (b"<?xml", "xml"),
    (b"<net", "xml"),
)
#: Kind -> what to say of it, and what to do.
_OTHERS: dict[str, tuple[str, str]] = {
    "empty": ("is empty (0 bytes)", "copy or download it again"),
    "git-lfs": (
        "is a Git LFS pointer, not the model itself",
        "fetch the content with 'git lfs pull'",
    ),
    "zip": (
        "is a zip archive (a PyTorch checkpoint, or a packed model), not an ONNX or TFLite model",
        "unpack it, or export it with torch.onnx.export",
    ),
    "hdf5": ("is an HDF5 file (Keras), not an ONNX or TFLite model", "export it with tf2onnx"),
    "gguf": ("is a GGUF file, not an ONNX or TFLite model", "GGUF models cannot be converted"),
    "gzip": ("is a gzip archive, not an ONNX or TFLite model", "unpack it first"),
    "pickle": (
        "is a Python pickle, which is never loaded because loading it runs code",
        "export the model to ONNX where it was made",
    ),
    "xml": ("is an XML file (OpenVINO IR), not an ONNX or TFLite model", "give the ONNX file"),
    "html": ("is a web page, not a model", "download the file itself (the raw link)"),
    "json": ("is a JSON file, not an ONNX or TFLite model", "give the model file"),
    "safetensors": (
        "holds weights only (safetensors), without the graph of a model",
        "export the model to ONNX where it was made",
    ),
    "ort": ("is already an optimised ORT file", "give the ONNX file that it was made from"),
    "unknown": ("is neither an ONNX nor a TFLite model", "give a file .onnx or .tflite"),
}
#: Field numbers of onnx.ModelProto (onnx.proto).
_MODEL_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})


def sniff(path: Path) -> str:
    """Return what a file is by its content.

    Args:
        path: The file.

    Returns:
        ``onnx``, ``tflite``, ``empty``, ``git-lfs``, ``zip``, ``hdf5``, ``gguf``, ``gzip``,
        ``pickle``, ``xml``, ``html``, ``json``, ``safetensors``, ``ort`` or ``unknown``.

    Raises:
        ModelError: There is no such file, or it cannot be read.
    """
    _check_path(path)
    try:
        with path.open("rb") as stream:
            return kind_of(stream.read(64))
    except OSError as error:
        raise _unreadable(path, error) from error


def kind_of(head: bytes) -> str:
    """Return the kind of a file by its first 64 bytes; see ``sniff``."""
    if not head:
        return "empty"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[4:8] == b"TFL3":
        return "tflite"
    if head[4:8] == b"ORTM":
        return "ort"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return "safetensors"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        return "html"
    if text.startswith(b"{"):
        return "json"
    field, wire = head[0] >> 3, head[0] & 7
    if field in _MODEL_FIELDS and wire == (0 if field in (1, 5) else 2):
        return "onnx"
    return "unknown"


def read_model_file(path: Path, expected: str) -> bytes:
    """Read a model file whole, once it is known to be of the right kind.

    Args:
        path: The file.
        expected: ``onnx`` or ``tflite``.

    Raises:
        ModelError: It is missing, a folder, not readable, empty, or something else.
    """
    _check_path(path)
    try:
        size = path.stat().st_size
        if size > _LIMIT:
            raise ModelError(
                f"'{path}' has {size} bytes, expected less than 2 GiB",
                "export it with external data: the weights in a file beside the model",
            )
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    kind = kind_of(data[:64])
    if kind == expected:
        return data
    if kind in _OTHERS:
        what, hint = _OTHERS[kind]
        raise ModelError(f"'{path}' {what}", hint)
    names = {"onnx": "an ONNX model", "tflite": "a TFLite model"}
    renamed = path.suffix != f".{kind}"
    raise ModelError(
        f"'{path}' is {names[kind]}{' under another name' if renamed else ''}, "
        f"expected {names[expected]}",
        f"rename it to '{path.stem}.{kind}', and give {names[expected]}"
        if renamed
        else f"give {names[expected]}",
    )


def refuse_other(path: Path) -> None:
    """Raise what fits a file that is neither ONNX nor TFLite.

    Raises:
        ModelError: It is missing, not readable, or of another kind.
    """
    kind = sniff(path)
    if kind in _OTHERS:
        what, hint = _OTHERS[kind]
        raise ModelError(f"'{path}' {what}", hint)


def _check_path(path: Path) -> None:
    """Raise when there is no regular file at ``path``, or one that runtimes cannot be told of."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise ModelError(f"'{name}' is not UTF-8", "rename the file or its folder") from error
    try:
        if path.is_dir():
            models = sorted(p.name for p in path.iterdir() if p.suffix in (".onnx", ".tflite"))
            hint = f"it holds: {', '.join(models[:5])}" if models else "give the model file itself"
            raise ModelError(f"'{path}' is a folder, expected a model file", hint)
        if path.is_file():
            return
        if path.exists():
            raise ModelError(f"'{path}' is not a regular file", "give a model file")
        folder = path.parent
        names = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
    except OSError as error:
        raise _unreadable(path, error) from error
    near = nearest(path.name, names) if names else ""
    hint = near if near.startswith("did you mean") else "check the path"
    raise ModelError(f"there is no file '{path}'", hint)


def _unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError(
        f"'{path}' cannot be read: {error.strerror or error}", "check its permissions"
    )


def cut_short(data: bytes) -> int | None:
    """Return how many bytes a protobuf file should have at least, when it has fewer.

    Walks the fields of the outermost message only (protobuf wire format); None when they all lie
    within the file, or when the file is damaged rather than cut.
    """
    at, size = 0, len(data)
    while at < size:
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            _, at = _varint(data, at)
        elif wire == 1:
            at += 8
        elif wire == 2:
            length, at = _varint(data, at)
            at += length
        elif wire == 5:
            at += 4
        else:
            return None
    return at if at > size else None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a variable-length integer and where the next byte is; past the end when cut."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    return value, at + 1
