"""What a model file says of itself, as JSON values: for ``edgeml inspect``."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from edgeml.errors import EdgemlError, ModelError
from edgeml.plugins import missing
from edgeml.runtime import get_runtime
from edgeml.runtime.base import ProgramOptions
from edgeml_converters.source import Source, read_model_file, sniff
from edgeml_converters.source.external import all_graphs
from edgeml_converters.source.sniff import refuse_other
from edgeml_converters.source.stored import is_external, place_of


def inspect_model(path: Path) -> dict[str, object]:
    """Check a model and describe it.

    Args:
        path: A file ``.onnx`` or ``.tflite``; its content decides.

    Returns:
        ``format``, ``path``, ``size_bytes``, ``opset``, ``ir_version``, ``producer``, ``digest``,
        ``inputs``, ``outputs``, ``ops``, ``parameters``, ``quantised``, ``scheme``, ``warnings``;
        of a quantised ONNX model also ``coverage``: runtime -> products with stored weights, how
        many of them are computed in 8 bits, which are not, and conversions that are left.

    Raises:
        ModelError: The file cannot be used; the message says why.
        MissingPackageError: A package that it needs is not installed.
    """
    if sniff(path) == "tflite":
        return _tflite(path)
    refuse_other(path)
    return _onnx(path)


def _onnx(path: Path) -> dict[str, object]:
    source = Source.open(path)
    model = source.model
    files = {place_of(t).file for t in model.graph.initializer if is_external(t)}
    external = sum(file.stat().st_size for file in files)
    tensors = [t for g in all_graphs(model.graph) for t in g.initializer]
    return {
        "format": "onnx",
        "path": str(path),
        "size_bytes": path.stat().st_size + external,
        "digest": source.digest,
        "opset": source.opset,
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "inputs": [_spec(s.name, s.dtype, s.shape) for s in source.inputs],
        "outputs": [_spec(s.name, s.dtype, s.shape) for s in source.outputs],
        "ops": source.ops,
        "parameters": sum(int(np.prod(t.dims, dtype=np.int64)) for t in tensors),
        "quantised": bool(source.quantised),
        "scheme": source.quantised,
        "coverage": _coverage(path) if source.quantised else {},
        "warnings": list(source.warnings),
    }


def _coverage(path: Path) -> dict[str, dict[str, object]]:
    """Return runtime -> how much of a quantised model it computes in 8 bits, without running it."""
    from edgeml_converters.layers.coverage import coverage

    found: dict[str, dict[str, object]] = {}
    for runtime in ("onnxruntime", "openvino"):
        if not get_runtime(runtime).check().usable:
            continue
        try:
            seen = coverage(path, runtime)
        except EdgemlError as error:
            found[runtime] = {"error": error.message}
            continue
        found[runtime] = {
            "products": seen.weighted,
            "in_int8": seen.int8,
            "in_float": list(seen.float_layers),
            "conversions": seen.quantize + seen.dequantize,
        }
    return found


def _spec(name: str, dtype: str, shape: tuple[int, ...]) -> dict[str, object]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def tflite_ops(data: bytes) -> dict[str, int]:
    """Return operator -> how often of a TFLite file that was just written."""
    from ai_edge_litert import schema_py_generated as schema

    return _tflite_ops(schema.ModelT.InitFromPackedBuf(data, 0), schema)


def _tflite(path: Path) -> dict[str, object]:
    """Describe a TFLite model by its schema, once LiteRT could prepare it."""
    data = read_model_file(path, "tflite")
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise missing("ai_edge_litert") from error
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        graph = model.subgraphs[0]
        ops = _tflite_ops(model, schema)
        described = _tflite_parts(model, graph, schema)
    except (struct.error, IndexError, TypeError, AttributeError, ValueError, MemoryError) as error:
        raise ModelError(
            f"'{path}' is truncated or damaged: its {len(data)} bytes are not a whole TFLite model",
            "copy or download it again",
        ) from error
    _prepare(path, ops)
    return {
        "format": "tflite",
        "path": str(path),
        "size_bytes": len(data),
        "opset": None,
        "ir_version": model.version,
        "producer": _text(model.description),
        **described,
        "ops": ops,
        "warnings": [] if len(model.subgraphs) == 1 else [f"{len(model.subgraphs)} subgraphs"],
    }


def _prepare(path: Path, ops: dict[str, int]) -> None:
    """Let LiteRT build a real interpreter.

    Raises:
        ModelError: It cannot; the message names custom operators, the usual cause.
    """
    from edgeml.runtime.litert import LiteRtRuntime

    try:
        LiteRtRuntime().prepare(path, ProgramOptions()).close()
    except ModelError as error:
        custom = [name for name in ops if name.startswith("custom:")]
        if not custom:
            raise ModelError(
                f"'{path}' does not load: {error.message}",
                "convert it again with a current exporter; this file is for another interpreter",
            ) from error
        names = ", ".join(name.removeprefix("custom:") for name in custom)
        raise ModelError(
            f"'{path}' needs the custom operator '{names}', which LiteRT does not have: "
            f"{error.message}",
            "only models of built-in operators can be used",
        ) from error


def _tflite_ops(model: Any, schema: Any) -> dict[str, int]:
    """Return operator -> how often; ``custom:NAME`` for those that are not built in."""
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    counts: Counter[str] = Counter()
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            code = model.operatorCodes[operator.opcodeIndex]
            # Old files keep the code in a field of 8 bits (schema.fbs, OperatorCode).
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            custom = number == schema.BuiltinOperator.CUSTOM
            counts[f"custom:{_text(code.customCode)}" if custom else names[number]] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _tflite_parts(model: Any, graph: Any, schema: Any) -> dict[str, object]:
    """Return inputs, outputs, parameters and the scheme."""
    types = {v: k.lower() for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
    made = {o for op in graph.operators for o in op.outputs}
    outer = {*graph.inputs, *graph.outputs}
    stored, inner = [], []
    for index, tensor in enumerate(graph.tensors):
        known = tensor.buffer < len(model.buffers or ())  # old files name buffers they lack
        held = model.buffers[tensor.buffer].data if known else None
        if held is not None and len(held):
            stored.append(tensor)
        elif index in made or index in outer:
            inner.append(tensor)
    weights = any(types[t.type] in ("int8", "uint8", "int4") and _scale(t) for t in stored)
    activations = any(types[t.type] in ("int8", "uint8", "int16") and _scale(t) for t in inner)
    scheme = "full integer" if activations else "dynamic range" if weights else ""
    if activations and any(types[t.type] == "float32" for t in inner):
        scheme = "mixed"
    return {
        "inputs": [_tensor(graph.tensors[i], types) for i in graph.inputs],
        "outputs": [_tensor(graph.tensors[i], types) for i in graph.outputs],
        "parameters": sum(_count(t) for t in stored),
        "quantised": bool(scheme),
        "scheme": scheme,
    }


def _scale(tensor: Any) -> list[float]:
    """Return a tensor's scales; empty when it is not quantised."""
    found = tensor.quantization.scale if tensor.quantization is not None else None
    return [float(v) for v in found] if found is not None else []


def _count(tensor: Any) -> int:
    """Return the number of values of a tensor."""
    shape = tensor.shape if tensor.shape is not None else ()
    return int(np.prod(np.asarray(shape, np.int64))) if len(shape) else 1


def _tensor(tensor: Any, types: dict[int, str]) -> dict[str, object]:
    """Describe an input or output."""
    shape = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    dims = tuple(int(n) for n in shape) if shape is not None else ()
    described = _spec(_text(tensor.name), types[tensor.type], dims)
    scale = _scale(tensor)
    if scale:
        points = tensor.quantization.zeroPoint
        zero = [int(v) for v in points] if points is not None else [0] * len(scale)
        described["quantisation"] = {"scale": scale, "zero_point": zero}
    return described


def _text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""
