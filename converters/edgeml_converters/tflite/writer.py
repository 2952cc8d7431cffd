"""QDQ ONNX in, full-int8 TFLite out.

The scales are those of the QDQ model, to the bit: one quantisation, and the same int8 network in
onnxruntime, OpenVINO and LiteRT, a unit in the last place or two apart.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import onnx

from edgeml.errors import ModelError, nearest
from edgeml.manifest import Binding
from edgeml_converters.tflite.builder import Builder
from edgeml_converters.tflite.context import Context, Value
from edgeml_converters.tflite.graph import QdqGraph, Quantised
from edgeml_converters.tflite.ops import conv, dense, elementwise, pool, shape

Handler = Callable[[Context, onnx.NodeProto], None]

#: ONNX operator -> what writes it.
HANDLERS: dict[str, Handler] = {
    "Add": elementwise.binary,
    "AveragePool": pool.pool,
    "Clip": elementwise.clip,
    "Concat": shape.concat,
    "Conv": conv.conv,
    "Dropout": shape.identity,
    "Flatten": shape.reshape,
    "Gemm": dense.dense,
    "GlobalAveragePool": pool.mean,
    "Identity": shape.identity,
    "MatMul": dense.dense,
    "MaxPool": pool.pool,
    "Mul": elementwise.binary,
    "Pad": shape.pad,
    "ReduceMean": pool.mean,
    "Relu": elementwise.unary,
    "Reshape": shape.reshape,
    "Sigmoid": elementwise.unary,
    "Softmax": elementwise.softmax,
    "Squeeze": shape.reshape,
    "Sub": elementwise.binary,
    "Tanh": elementwise.unary,
    "Transpose": shape.transpose,
    "Unsqueeze": shape.reshape,
}


class TfliteFile(msgspec.Struct, frozen=True):
    """A TFLite file, and how its tensors follow from the model's.

    Attributes:
        data: The file.
        inputs: One binding per input of the model, in its order.
        outputs: One binding per output of the model, in its order.
        notes: What a reader of the lineage should know.
    """

    data: bytes
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    notes: tuple[str, ...] = ()


def write(model: onnx.ModelProto, float_io: bool = False) -> TfliteFile:
    """Turn a QDQ model into a TFLite file.

    Args:
        model: int8 QDQ ONNX with a static batch of 1, as ``QuantizePortable`` makes it.
        float_io: Write for a processor: take and give float32 (QUANTIZE first, DEQUANTIZE last),
            and fold strides into channels where that pays. Accelerators want int8 at the edges
            too, and plain operators.

    Raises:
        ModelError: An operator has no int8 TFLite form here; the message names node and reason.
        MissingPackageError: LiteRT, which carries the schema, is not installed.
    """
    graph = QdqGraph(model)
    context = Context(graph, _builder(), for_cpu=float_io)
    inputs = {info.name: _input(context, info.name) for info in _real_inputs(graph)}
    edges: dict[str, int] = {}
    for name, value in inputs.items() if float_io else ():
        edges[name] = context.builder.tensor(f"{name}_float", value.stored, "float32")
        context.builder.operator("QUANTIZE", [edges[name]], [value.index])
    for node in graph.operators():
        handler = HANDLERS.get(node.op_type)
        if handler is None:
            raise ModelError(
                f"operator {node.op_type} (node '{node.name or node.output[0]}') has no int8 "
                "TFLite form here",
                nearest(node.op_type, HANDLERS),
            )
        handler(context, node)
    outputs = {info.name: _output(context, info.name) for info in graph.graph.output}
    first = {name: value.index for name, value in inputs.items()}
    last = {name: value.index for name, value in outputs.items()}
    if float_io:
        first = {name: edges[name] for name in inputs}
        for name, value in outputs.items():
            last[name] = context.builder.tensor(f"{name}_float", value.stored, "float32")
            context.builder.operator("DEQUANTIZE", [value.index], [last[name]])
    return TfliteFile(
        context.builder.pack(first, last),
        tuple(_binding(name, value, float_io) for name, value in inputs.items()),
        tuple(_binding(name, value, float_io) for name, value in outputs.items()),
    )


def _builder() -> Builder:
    """Return a builder, or say which package it needs."""
    try:
        return Builder()
    except ModuleNotFoundError as error:
        from edgeml.plugins import missing

        raise missing("ai_edge_litert") from error


def _real_inputs(graph: QdqGraph) -> list[onnx.ValueInfoProto]:
    """Return the inputs that are not initializers."""
    return [info for info in graph.graph.input if info.name not in graph.constants]


def _input(context: Context, name: str) -> Value:
    """Add an input; it is stored as the first operator that uses it wants it."""
    quantised = [
        node for node in context.graph.consumers.get(name, []) if node.op_type == "QuantizeLinear"
    ]
    if not quantised:
        raise ModelError(f"input '{name}' is not quantised, expected QuantizeLinear behind it")
    stored = quantised[0].output[0]
    back = context.graph.consumers[stored][0].output[0]
    parameters: Quantised | None = context.graph.before(back)
    assert parameters is not None
    dims = context.graph.shape(name)
    users = {node.op_type for node in context.graph.consumers.get(back, [])}
    image = len(dims) == 4 and "Transpose" not in users
    layout = (0, 2, 3, 1) if image else tuple(range(len(dims)))
    return context.add(parameters, dims, layout)


def _output(context: Context, name: str) -> Value:
    """Return the value behind an output of the model."""
    parameters = context.graph.before(name)
    if parameters is None or parameters.name not in context.values:
        raise ModelError(f"output '{name}' is not quantised, expected DequantizeLinear before it")
    value = context.values[parameters.name]
    if value.order is not None:
        raise ModelError(f"output '{name}' is a flattened image in another order")
    return value


def _binding(name: str, value: Value, float_io: bool) -> Binding:
    """Return how a public tensor becomes the stored one."""
    straight = tuple(range(len(value.shape)))
    return Binding(
        name=name,
        tensor=name,
        dtype="float32" if float_io else "int8",
        shape=value.stored,
        perm=() if value.layout == straight else value.layout,
        scale=0.0 if float_io else value.scale,
        zero_point=0 if float_io else value.zero_point,
    )
