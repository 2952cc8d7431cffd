"""The graph that a runtime really executes, in one form for all runtimes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx

from edgeml.errors import ModelError, UsageError
from edgeml.runtime.base import ProgramOptions
from edgeml.runtime.explain import OpenVinoNode, explain_openvino, optimise_onnx, profile_onnx
from edgeml.tensors import Array

#: Operators of onnxruntime that multiply in 8 bits.
_INT8 = frozenset(
    {
        "ConvInteger",
        "ConvIntegerToFloat",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearConvTranspose",
        "QLinearMatMul",
    }
)
#: Operators of onnxruntime that multiply in float, also those that it makes by fusing.
_FLOAT = frozenset(
    {
        "Attention",
        "Conv",
        "ConvTranspose",
        "FusedConv",
        "FusedConvTranspose",
        "FusedGemm",
        "FusedMatMul",
        "FusedMatMulActivation",
        "GRU",
        "Gemm",
        "LSTM",
        "MatMul",
        "MatMulNBits",
        "NhwcFusedConv",
        "RNN",
    }
)
#: Where the weights of an operator stand among its inputs, when it is not second.
_WEIGHTS = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
#: Kinds of OpenVINO's nodes that multiply by stored weights.
_OV_WEIGHTED = frozenset({"Convolution", "Deconvolution", "FullyConnected", "RNNSeq", "RNNCell"})
_OV_MOVED = frozenset({"Input", "Output"})


class Executed(msgspec.Struct, frozen=True):
    """One node as it is executed.

    Attributes:
        name: Its name; unique.
        kind: Operator, as the runtime calls it.
        weighted: Whether it multiplies by stored weights.
        int8: Whether it multiplies in 8 bits; False for what does not multiply.
        groups: Of a convolution in onnxruntime; 1 for others.
        depthwise: Whether each channel is a group of its own.
        origin: Names of the file's nodes that it is known to hold; often none.
        inputs: Names of the nodes that it reads.
        micros: Time of one run in microseconds; 0 when it was not timed.
    """

    name: str
    kind: str
    weighted: bool
    int8: bool
    groups: int = 1
    depthwise: bool = False
    origin: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    micros: float = 0.0


def executed(
    file: Path,
    runtime: str,
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    feed: Mapping[str, Array] | None = None,
    runs: int = 20,
) -> tuple[Executed, ...]:
    """Return what a runtime executes when it runs a file on the CPU, in order.

    Args:
        file: ``.onnx``; for OpenVINO ``.xml`` too.
        runtime: ``onnxruntime`` or ``openvino``.
        threads: Of every run.
        options: Of the runtime (``Recipe.options``).
        feed: One sample by input name; without it nothing is run, and no time is known.
        runs: How many runs are timed.

    Raises:
        UsageError: Another runtime.
        ModelError: The file does not load.
        DeviceError: A run failed.
    """
    settings = ProgramOptions(threads, extra=dict(options or {}))
    if runtime == "onnxruntime":
        return _onnxruntime(file, settings, feed, runs)
    if runtime == "openvino":
        found = explain_openvino(file, settings, feed, runs)
        return _openvino(found)
    raise UsageError(
        f"layers cannot be told for runtime '{runtime}'", "expected onnxruntime or openvino"
    )


def _onnxruntime(
    file: Path, options: ProgramOptions, feed: Mapping[str, Array] | None, runs: int
) -> tuple[Executed, ...]:
    """Read the graph that onnxruntime writes; time it by running just that graph.

    onnxruntime makes nodes without names, which its profile then cannot be matched with: so the
    nodes get names, and what is profiled is the written graph, without any more optimisation.
    """
    with tempfile.TemporaryDirectory(prefix="edgeml-") as folder:
        out = Path(folder) / "optimised.onnx"
        optimise_onnx(file, out, options)
        try:
            model = onnx.load(out, load_external_data=False)
        except (OSError, ValueError) as error:
            raise ModelError(f"onnxruntime's form of '{file.name}' cannot be read") from error
        _name_nodes(model)
        micros: dict[str, float] = {}
        if feed:
            out.write_bytes(model.SerializeToString())
            plain = ProgramOptions(
                options.threads, extra={**options.extra, "graph_optimization_level": "disable"}
            )
            times = profile_onnx(out, feed, plain, runs)
            micros = {name: float(np.median(values)) for name, values in times.items()}
    graph = model.graph
    constant = {i.name: tuple(i.dims) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constant:
            constant[node.output[0]] = constant[node.input[0]]
    maker = {name: node.name for node in graph.node for name in node.output}
    return tuple(_one(node, constant, maker, micros) for node in graph.node)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own, from its first output where it has none."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{next(iter(node.output), node.op_type)}~{index}"
        seen.add(node.name)


def _one(
    node: onnx.NodeProto,
    constant: Mapping[str, tuple[int, ...]],
    maker: Mapping[str, str],
    micros: Mapping[str, float],
) -> Executed:
    position = _WEIGHTS.get(node.op_type, 1)
    weights = node.input[position] if len(node.input) > position else ""
    dims = constant.get(weights, ())
    product = node.op_type in _INT8 or node.op_type in _FLOAT
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return Executed(
        node.name,
        node.op_type,
        product and len(dims) >= 2,
        node.op_type in _INT8,
        groups,
        groups > 1 and bool(dims) and groups == dims[0],
        inputs=tuple(maker[name] for name in node.input if name in maker),
        micros=micros.get(node.name, 0.0),
    )


def _openvino(nodes: Iterable[OpenVinoNode]) -> tuple[Executed, ...]:
    known = list(nodes)
    names = {node.name for node in known}
    found: list[Executed] = []
    for node in known:
        if node.kind in _OV_MOVED:
            continue
        stored = any(name not in names for name in node.inputs)
        weighted = node.kind in _OV_WEIGHTED or (node.kind == "MatMul" and stored)
        product = weighted or node.kind == "MatMul"
        integer = product and node.kernel.upper().endswith(("_I8", "_U8"))
        found.append(
            Executed(
                node.name,
                _openvino_kind(node),
                weighted,
                integer,
                origin=node.origin,
                inputs=tuple(name for name in node.inputs if name in names),
                micros=node.micros,
            )
        )
    return tuple(found)


def _openvino_kind(node: OpenVinoNode) -> str:
    """Return ONNX's word for a node that only changes the number of bits, else OpenVINO's."""
    if node.kind in ("FakeQuantize", "Quantize"):
        return "QuantizeLinear"
    integer = node.kernel.upper().endswith(("_I8", "_U8"))
    if node.kind == "Convert" and integer and node.output[:1] in (("f32",), ("bf16",), ("f16",)):
        return "DequantizeLinear"
    return node.kind
