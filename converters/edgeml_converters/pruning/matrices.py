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
    flipped = layer.op == "Gemm" and integer(node, "transB", 0)
    return (weight if flipped else weight.T)[None]


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
        flipped = layer.op == "Gemm" and integer(node, "transB", 0)
        weight = matrices[0] if flipped else matrices[0].T
    return np.ascontiguousarray(weight, like.dtype)
