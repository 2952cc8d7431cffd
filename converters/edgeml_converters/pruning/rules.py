"""The table of rules, and the walk through a graph."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from edgeml_converters.pruning import rules_elementwise as elementwise
from edgeml_converters.pruning import rules_layers as layers
from edgeml_converters.pruning import rules_shape as shape
from edgeml_converters.pruning.trace import Layer, Trace
from edgeml_converters.pruning.view import View

Rule = Callable[[Trace, int, onnx.NodeProto], None]

_UNARY = (
    "Relu Clip Sigmoid Tanh LeakyRelu Elu Selu Celu HardSigmoid HardSwish Softplus Softsign Gelu "
    "Mish ThresholdedRelu Erf Exp Log Sqrt Reciprocal Neg Abs Ceil Floor Round Sign Identity Cast "
    "Dropout Not Sin Cos Swish"
)
_BROADCAST = "Add Sub Mul Div Pow Max Min PRelu Where Sum Mean Greater Less Equal And Or"
_POOLS = "MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool GlobalLpPool"
_REDUCE = "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceProd ReduceSumSquare"

RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY.split(), elementwise.unary),
    **dict.fromkeys(_BROADCAST.split(), elementwise.broadcast),
    **dict.fromkeys(_POOLS.split(), elementwise.pool),
    **dict.fromkeys(_REDUCE.split(), elementwise.reduce),
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Gemm": layers.gemm,
    "MatMul": layers.matmul,
    "BatchNormalization": layers.per_channel,
    "InstanceNormalization": layers.per_channel,
    "LayerNormalization": layers.last_axes,
    "Softmax": layers.last_axes,
    "LogSoftmax": layers.last_axes,
    "Flatten": shape.flatten,
    "Reshape": shape.reshape,
    "Transpose": shape.transpose,
    "Squeeze": shape.squeeze,
    "Unsqueeze": shape.unsqueeze,
    "Concat": shape.concat,
    "Split": shape.split,
    "Slice": shape.slice_,
    "Gather": shape.gather,
    "Pad": shape.pad,
    "Resize": shape.resize,
    "Shape": shape.shape,
}


def follow(view: View) -> Trace:
    """Follow all channels of a model."""
    trace = Trace(view)
    for index, node in enumerate(view.nodes):
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None or any(a.HasField("g") or a.graphs for a in node.attribute):
            trace.stop(node)
        else:
            rule(trace, index, node)
    for name in view.outputs | view.captured:
        trace.pin(name)
    trace.layers = [_with_bias(view, layer) for layer in trace.layers]
    return trace


def _with_bias(view: View, layer: Layer) -> Layer:
    """Take the Add of a stored vector that follows a MatMul for its bias."""
    users = view.users.get(layer.y, ())
    if layer.op != "MatMul" or len(users) != 1 or layer.y in view.outputs | view.captured:
        return layer
    index, position = users[0]
    node = view.model.graph.node[index]
    if node.op_type != "Add":
        return layer
    name = node.input[1 - position]
    values = view.own(name)
    if values is None or values.shape != (len(layer.ids_out),):
        return layer
    return Layer(
        layer.node, layer.name, layer.op, layer.weight, name, layer.x, node.output[0],
        layer.ids_in, layer.ids_out, layer.group, layer.macs, layer.block,
    )  # fmt: skip
