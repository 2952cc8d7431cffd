"""Add, Sub, Mul, and the functions of one value."""

from __future__ import annotations

import numpy as np
import onnx

from edgeml_converters.tflite.context import Context, Value, unsupported

_BINARY = {"Add": ("ADD", "AddOptions"), "Sub": ("SUB", "SubOptions"), "Mul": ("MUL", "MulOptions")}
_UNARY = {"Sigmoid": "LOGISTIC", "Tanh": "TANH", "Relu": "RELU"}


def binary(context: Context, node: onnx.NodeProto) -> None:
    """Write ADD, SUB or MUL of two activations, or of one and a constant."""
    constants = [context.constant(node, 0), context.constant(node, 1)]
    values: list[Value | None] = [
        None if constants[i] is not None else context.value(node, i) for i in range(2)
    ]
    present = [value for value in values if value is not None]
    if not present:
        raise unsupported(node, "both sides are constant")
    leader = max(present, key=lambda value: len(value.shape))
    indices = []
    for side in range(2):
        value = values[side]
        if value is None:
            indices.append(_constant_side(context, node, side, leader))
        elif len(value.shape) != len(leader.shape):
            raise unsupported(node, f"shapes {list(value.shape)} and {list(leader.shape)}")
        else:
            indices.append(context.stored_as(value, leader.layout).index)
    output = context.emit(node, leader.layout)
    builtin, options = _BINARY[node.op_type]
    context.builder.operator(
        builtin,
        indices,
        [output.index],
        options,
        fusedActivationFunction=context.activation(node),
    )


def _constant_side(context: Context, node: onnx.NodeProto, side: int, leader: Value) -> int:
    """Add a constant operand, its axes in the order of the other side."""
    found = context.constant(node, side)
    assert found is not None
    data, parameters = found
    rank = len(leader.shape)
    if data.ndim > rank:
        raise unsupported(node, f"a constant with {data.ndim} axes, expected at most {rank}")
    full = data.reshape((1,) * (rank - data.ndim) + data.shape).transpose(leader.layout)
    return context.builder.tensor(
        f"{parameters.name}_{node.output[0]}",
        full.shape,
        "int8",
        scale=parameters.scale,
        zero_point=parameters.zero_point,
        data=full,
    )


def unary(context: Context, node: onnx.NodeProto) -> None:
    """Write LOGISTIC, TANH or RELU."""
    value = context.value(node, 0)
    output = context.emit(node, value.layout)
    context.builder.operator(_UNARY[node.op_type], [value.index], [output.index])


def clip(context: Context, node: onnx.NodeProto) -> None:
    """Write RELU6 or RELU for a Clip that no operator before it does for free."""
    bounds = [context.static(node, 1), context.static(node, 2)]
    low = None if bounds[0] is None else float(np.asarray(bounds[0]))
    high = None if bounds[1] is None else float(np.asarray(bounds[1]))
    known: dict[tuple[float | None, float | None], str] = {
        (0.0, 6.0): "RELU6",
        (0.0, None): "RELU",
    }
    builtin = known.get((low, high))
    if builtin is None:
        raise unsupported(node, f"clip to [{low}, {high}], expected [0, 6] or [0, any]")
    value = context.value(node, 0)
    output = context.emit(node, value.layout)
    context.builder.operator(builtin, [value.index], [output.index])


def softmax(context: Context, node: onnx.NodeProto) -> None:
    """Write SOFTMAX; TFLite's works over the last stored axis."""
    value = context.value(node, 0)
    rank = len(value.shape)
    axis = int(context.graph_attributes(node).get("axis", -1)) % rank
    if value.layout[-1] != axis:
        layout = (*(a for a in value.layout if a != axis), axis)
        value = context.stored_as(value, layout)
    output = context.emit(node, value.layout)
    context.builder.operator("SOFTMAX", [value.index], [output.index], "SoftmaxOptions", beta=1.0)
