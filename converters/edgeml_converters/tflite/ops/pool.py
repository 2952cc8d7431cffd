"""Pools and means."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx

from edgeml_converters.tflite.context import CHANNELS_LAST, Context, Value, unsupported
from edgeml_converters.tflite.ops.windows import Window, is_same, padded, same_pads, window

_LOWEST = -128


def pool(context: Context, node: onnx.NodeProto) -> None:
    """Write MAX_POOL_2D or AVERAGE_POOL_2D (input and output share one scale)."""
    found = context.graph_attributes(node)
    value = context.value(node, 0)
    shape = window(context, node, value, list(found["kernel_shape"]))
    if shape.dilations != (1, 1):
        raise unsupported(node, "dilations")
    average = node.op_type == "AveragePool"
    counted = bool(found.get("count_include_pad", 0))
    if found.get("ceil_mode", 0):
        reached = _reaching(shape, value, context.graph.shape(node.output[0]))
        if average and counted and reached != shape:
            raise unsupported(node, "ceil_mode beside padding that counts in the mean")
        shape = reached
    thin = None
    if average and any(shape.pads) and not counted:
        # TFLite's SAME leaves the padding out of the mean too; an explicit PAD would count it.
        if not is_same(value, shape):
            shape, thin = _dense(context, node, value, shape)
        value, padding = padded(context, node, value, shape)
    elif average and any(shape.pads):
        value = context.stored_as(value, CHANNELS_LAST)
        top, left, bottom, right = shape.pads
        pads = [(0, 0), (top, bottom), (left, right), (0, 0)]
        value = context.pad(value, pads, None, f"{node.output[0]}_pad")
        padding = context.builder.schema.Padding.VALID
    else:
        value, padding = padded(context, node, value, shape, fill=_LOWEST)
    output = context.emit(node, CHANNELS_LAST)
    builtin = "AVERAGE_POOL_2D" if average else "MAX_POOL_2D"
    if thin is None:
        _write(context, builtin, value.index, output.index, shape, padding)
        return
    between = context.like(f"{node.output[0]}_dense", value.stored, output)
    _write(context, builtin, value.index, between, shape, padding)
    valid = context.builder.schema.Padding.VALID
    _write(context, "MAX_POOL_2D", between, output.index, thin, valid)


def _write(
    context: Context, builtin: str, source: int, target: int, shape: Window, padding: int
) -> None:
    """Write one pool."""
    context.builder.operator(
        builtin,
        [source],
        [target],
        "Pool2DOptions",
        padding=padding,
        strideH=shape.strides[0],
        strideW=shape.strides[1],
        filterHeight=shape.kernel[0],
        filterWidth=shape.kernel[1],
    )


def _reaching(shape: Window, value: Value, out: tuple[int, ...]) -> Window:
    """Return a window with the padding behind the image that its output needs (``ceil_mode``)."""
    needs = [
        (out[2 + i] - 1) * shape.strides[i] + shape.kernel[i] - value.shape[2 + i] - shape.pads[i]
        for i in range(2)
    ]
    top, left, bottom, right = shape.pads
    return msgspec.structs.replace(
        shape, pads=(top, left, max(bottom, needs[0]), max(right, needs[1]))
    )


def _dense(
    context: Context, node: onnx.NodeProto, value: Value, shape: Window
) -> tuple[Window, Window]:
    """Return two windows: every mean, with a stride of 1 and SAME, and those that are wanted.

    With a stride SAME pads an even size on another side than ONNX does. With a stride of 1 it
    pads (kernel - 1) // 2 before the image: the means are the same, and a pool of one value with
    the stride takes those at the positions of ONNX.

    Raises:
        ModelError: The windows are not at these positions.
    """
    size, out = value.shape[2:], context.graph.shape(node.output[0])[2:]
    for i in range(2):
        starts = shape.pads[i] == (shape.kernel[i] - 1) // 2
        if not starts or out[i] != -(-size[i] // shape.strides[i]):
            raise unsupported(
                node,
                f"pads {list(shape.pads)} that are left out of the mean, expected those of SAME",
            )
    sides = [same_pads(size[i], shape.kernel[i], 1) for i in range(2)]
    pads = (sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    return (
        msgspec.structs.replace(shape, strides=(1, 1), pads=pads),
        msgspec.structs.replace(shape, kernel=(1, 1), pads=(0, 0, 0, 0)),
    )


def mean(context: Context, node: onnx.NodeProto) -> None:
    """Write MEAN for GlobalAveragePool and ReduceMean."""
    value = context.value(node, 0)
    found = context.graph_attributes(node)
    rank = len(value.shape)
    if node.op_type == "GlobalAveragePool":
        axes, keep = list(range(2, rank)), True
    else:
        given = context.static(node, 1)
        raw = found.get("axes", range(rank)) if given is None else given
        axes = sorted(int(a) % rank for a in raw)
        keep = bool(found.get("keepdims", 1))
    stored_axes = sorted(value.layout.index(a) for a in axes)
    if keep:
        layout = value.layout
    else:
        left = [a for a in range(rank) if a not in axes]
        layout = tuple(left.index(a) for a in value.layout if a in left)
    output = context.emit(node, layout)
    which = context.builder.integers(f"{node.output[0]}_axes", np.array(stored_axes))
    context.builder.operator(
        "MEAN", [value.index, which], [output.index], "ReducerOptions", keepDims=keep
    )
