"""Operators with stored weights: which input holds them, and how 8 bits fit them."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx

from edgeml.tensors import Array
from edgeml_converters.quantizer.graph import Index, attribute


class Weighted(msgspec.Struct, frozen=True):
    """A node whose weights can be stored in 8 bits.

    Attributes:
        node: Its name.
        weights: Position of the weights; the activation is input 0.
        axis: The axis of output channels; None when one scale must do for all.
        bias: Position of the bias; None when it has none.
        channels: How many outputs a bias has.
        alpha: What the weights are multiplied by before they are stored (Gemm).
        beta: What the bias is multiplied by.
    """

    node: str
    weights: int
    axis: int | None
    bias: int | None
    channels: int
    alpha: float = 1.0
    beta: float = 1.0


def groups_of(node: onnx.NodeProto) -> int:
    """Return the groups of a convolution."""
    return int(attribute(node, "group", 1))


def is_depthwise(node: onnx.NodeProto, index: Index) -> bool:
    """Tell whether every input channel of a convolution is a group of its own."""
    shape = index.constant_shape(node.input[1])
    return groups_of(node) > 1 and shape[1] == 1


def weighted(node: onnx.NodeProto, index: Index) -> Weighted | None:
    """Return how a node's weights can be stored, or None when it has none that can."""
    if node.domain or len(node.input) < 2 or index.is_constant(node.input[0]):
        return None
    name = node.input[1]
    if not index.is_constant(name) or not index.is_float(name):
        return None
    shape = index.constant_shape(name)
    if node.op_type == "MatMul":
        if len(shape) < 2:
            return None
        return Weighted(node.name, 1, 1 if len(shape) == 2 else None, None, shape[-1])
    if node.op_type == "Gemm":
        return _gemm(node, index, shape)
    if node.op_type not in ("Conv", "ConvTranspose") or len(shape) < 3:
        return None
    bias = 2 if len(node.input) > 2 and node.input[2] else None
    if node.op_type == "Conv":
        found = Weighted(node.name, 1, 0, bias, shape[0])
    else:
        groups = groups_of(node)
        found = Weighted(node.name, 1, 1 if groups == 1 else None, bias, shape[1] * groups)
    return found if _bias_fits(node, index, found) else None


def _gemm(node: onnx.NodeProto, index: Index, shape: tuple[int, ...]) -> Weighted | None:
    """Return how a Gemm's weights can be stored."""
    if attribute(node, "transA", 0):
        return None
    axis = 0 if attribute(node, "transB", 0) else 1
    bias = 2 if len(node.input) > 2 and node.input[2] else None
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    found = Weighted(node.name, 1, axis, bias, shape[axis], alpha, beta)
    return found if _bias_fits(node, index, found) else None


def _bias_fits(node: onnx.NodeProto, index: Index, found: Weighted) -> bool:
    """Tell whether the bias is stored, and the same for every row."""
    if found.bias is None:
        return True
    name = node.input[found.bias]
    if not index.is_constant(name) or not index.is_float(name):
        return False
    shape = index.constant_shape(name)
    size = int(np.prod(shape))
    return size == 1 or (size == found.channels and shape[-1] == found.channels)


def weights_of(found: Weighted, index: Index) -> Array:
    """Return the weights, with alpha."""
    array = np.asarray(index.constant(index.nodes[found.node].input[found.weights]), np.float32)
    return array if found.alpha == 1.0 else (array * np.float32(found.alpha)).astype(np.float32)


def bias_of(found: Weighted, index: Index) -> Array | None:
    """Return the bias [channels], with beta; None without one."""
    if found.bias is None:
        return None
    array = np.asarray(index.constant(index.nodes[found.node].input[found.bias]), np.float32)
    flat = np.broadcast_to(array.reshape(-1), (found.channels,))
    return (flat * np.float32(found.beta)).astype(np.float32)
