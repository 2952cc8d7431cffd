"""Conv: plain, grouped, depthwise."""

from __future__ import annotations

import numpy as np
import onnx

from edgeml_converters.tflite.context import CHANNELS_LAST, Context, unsupported
from edgeml_converters.tflite.ops.fold import fold_strides
from edgeml_converters.tflite.ops.windows import padded, window


def conv(context: Context, node: onnx.NodeProto) -> None:
    """Write CONV_2D or DEPTHWISE_CONV_2D; weights [out, in / group, kh, kw] in ONNX."""
    value = context.value(node, 0)
    found = context.constant(node, 1)
    if found is None:
        raise unsupported(node, "its weights are not constant")
    weights, parameters = found
    shape = window(context, node, value, list(weights.shape[2:]))
    group = int(context.graph_attributes(node).get("group", 1))
    depthwise = group > 1 and group == value.shape[1]
    if depthwise:
        # [out, 1, kh, kw] -> [1, kh, kw, out]; the channel axis is the last one
        stored, axis = weights.transpose(1, 2, 3, 0), 3
    else:
        stored, axis = weights.transpose(0, 2, 3, 1), 0
    folded = None
    if context.for_cpu and group == 1:
        size = context.graph.shape(node.output[0])[2:]
        folded = fold_strides(context, value, stored, shape, size, node.output[0])
    if folded is not None:
        index, stored, padding = folded.index, folded.weights, folded.padding
        strides = (1, 1)
    else:
        value, padding = padded(context, node, value, shape)
        index, strides = value.index, shape.strides
    filters = context.builder.tensor(
        parameters.name,
        stored.shape,
        "int8",
        scale=parameters.scale,
        zero_point=parameters.zero_point,
        axis=axis,
        data=stored,
    )
    bias = bias_tensor(context, node, 2, weights.shape[0], value.scale * parameters.scale)
    output = context.emit(node, CHANNELS_LAST)
    options = {
        "padding": padding,
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": shape.dilations[0],
        "dilationWFactor": shape.dilations[1],
        "fusedActivationFunction": context.activation(node),
    }
    builtin, table = "CONV_2D", "Conv2DOptions"
    if depthwise:
        builtin, table = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
        options["depthMultiplier"] = weights.shape[0] // group
    context.builder.operator(builtin, [index, filters, bias], [output.index], table, **options)


def bias_tensor(
    context: Context, node: onnx.NodeProto, position: int, channels: int, scale: np.ndarray
) -> int:
    """Add the int32 bias with scale ``input scale * weight scale`` and zero point 0; zeros if none.

    Raises:
        ModelError: The bias is not constant.
    """
    scale = np.atleast_1d(np.asarray(scale, np.float32))
    if position < len(node.input) and node.input[position]:
        found = context.constant(node, position)
        if found is None:
            raise unsupported(node, "its bias is not a quantised constant")
        data = np.asarray(found[0], np.int32).reshape(channels)
        name = found[1].name
    else:
        data, name = np.zeros(channels, np.int32), f"{node.output[0]}_zero_bias"
    return context.builder.tensor(
        name,
        (channels,),
        "int32",
        scale=scale,
        zero_point=np.zeros(scale.size, np.int64),
        data=data,
    )
