"""Pools and means."""

from __future__ import annotations

import numpy as np
import onnx

from edgeml_converters.tflite.context import CHANNELS_LAST, Context, unsupported
from edgeml_converters.tflite.ops.windows import is_same, padded, window

_LOWEST = -128


def pool(context: Context, node: onnx.NodeProto) -> None:
    """Write MAX_POOL_2D or AVERAGE_POOL_2D (input and output share one scale)."""
    found = context.graph_attributes(node)
    value = context.value(node, 0)
    shape = window(context, node, value, list(found["kernel_shape"]))
    if found.get("ceil_mode", 0) or shape.dilations != (1, 1):
        raise unsupported(node, "ceil_mode and dilations")
    average = node.op_type == "AveragePool"
    if average and any(shape.pads) and not found.get("count_include_pad", 0):
        # TFLite's SAME leaves the padding out of the mean too; an explicit PAD would count it.
        if not is_same(value, shape):
            raise unsupported(node, "padding that is left out of the mean and is not SAME")
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
    context.builder.operator(
        "AVERAGE_POOL_2D" if average else "MAX_POOL_2D",
        [value.index],
        [output.index],
        "Pool2DOptions",
        padding=padding,
        strideH=shape.strides[0],
        strideW=shape.strides[1],
        filterHeight=shape.kernel[0],
        filterWidth=shape.kernel[1],
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
