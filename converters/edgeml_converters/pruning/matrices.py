"""The weights of a layer as matrices over its input channels, whatever the operator."""

from __future__ import annotations

import numpy as np
import onnx

from edgeml.tensors import Array
from edgeml_converters.pruning.trace import Layer, integer


def to_matrices(layer: Layer, node: onnx.NodeProto, weight: Array) -> Array:
    """Return [group, output * tap, input]: one row per output channel and kernel position."""
    if layer.op == "Conv":
        parts = weight.reshape(layer.group, -1, *weight.shape[1:])
        cols = parts.reshape(*parts.shape[:3], -1)
        return cols.transpose(0, 1, 3, 2).reshape(layer.group, -1, weight.shape[1])
    if layer.op == "ConvTranspose":
        cols = weight.reshape(*weight.shape[:2], -1)
        return cols.transpose(1, 2, 0).reshape(1, -1, weight.shape[0])
    cols = dense(layer, node, weight)
    cols = cols.reshape(len(cols), -1, layer.block).transpose(0, 2, 1)
    return cols.reshape(1, -1, cols.shape[2])


def dense(layer: Layer, node: onnx.NodeProto, weight: Array) -> Array:
    """Return the weight of a Gemm or MatMul as [outputs, inputs], or that as its weight."""
    flipped = layer.op == "Gemm" and integer(node, "transB", 0)
    return weight if flipped else weight.T


def from_matrices(layer: Layer, node: onnx.NodeProto, matrices: Array, like: Array) -> Array:
    """Return the weight that ``to_matrices`` gives ``matrices`` for, shaped like ``like``."""
    if layer.op == "Conv":
        taps = int(np.prod(like.shape[2:]))
        weight: Array = matrices.reshape(like.shape[0], taps, like.shape[1])
        weight = weight.transpose(0, 2, 1).reshape(like.shape)
    elif layer.op == "ConvTranspose":
        taps = int(np.prod(like.shape[2:]))
        weight = matrices.reshape(like.shape[1], taps, like.shape[0])
        weight = weight.transpose(2, 0, 1).reshape(like.shape)
    else:
        weight = matrices.reshape(-1, layer.block, matrices.shape[2]).transpose(0, 2, 1)
        weight = dense(layer, node, weight.reshape(len(weight), -1))
    return np.ascontiguousarray(weight, like.dtype)
