"""Gemm and MatMul with constant weights."""

from __future__ import annotations

import numpy as np
import onnx

from edgeml_converters.tflite.context import Context, unsupported
from edgeml_converters.tflite.ops.conv import bias_tensor


def dense(context: Context, node: onnx.NodeProto) -> None:
    """Write FULLY_CONNECTED; TFLite wants the weights as [out, in]."""
    value = context.value(node, 0)
    found = context.constant(node, 1)
    if found is None:
        raise unsupported(node, "its weights are not constant")
    weights, parameters = found
    options = context.graph_attributes(node)
    if len(value.shape) != 2 or weights.ndim != 2:
        raise unsupported(node, f"input has {len(value.shape)} axes, expected 2")
    if options.get("transA", 0) or options.get("alpha", 1.0) != 1 or options.get("beta", 1.0) != 1:
        raise unsupported(node, "transA, alpha and beta other than 0, 1, 1")
    value = value if value.order is not None else context.stored_as(value, (0, 1))
    rows = weights.T if options.get("transB", 0) else weights  # [in, out]
    if value.order is not None:
        # The input is an image that was flattened channels-last: move the weights, not the data.
        rows = rows[np.asarray(value.order)]
    stored = np.ascontiguousarray(rows.T)
    filters = context.builder.tensor(
        parameters.name,
        stored.shape,
        "int8",
        scale=parameters.scale,
        zero_point=parameters.zero_point,
        data=stored,
    )
    scale = value.scale * parameters.scale
    bias = bias_tensor(context, node, 2, stored.shape[0], scale)
    output = context.emit(node, (0, 1))
    context.builder.operator(
        "FULLY_CONNECTED",
        [value.index, filters, bias],
        [output.index],
        "FullyConnectedOptions",
        fusedActivationFunction=context.activation(node),
    )
