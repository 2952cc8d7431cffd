"""Fold what only scales and shifts channels into the weights in front of it.

BatchNormalization, and Mul or Add with one stored number per channel, behind Conv, ConvTranspose
or Gemm: ``f (W x + b) + s = (f W) x + (f b + s)``. Computed in float64, stored in the type of the
weights; only for float32 and float64, where the rounding is below 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeml.tensors import Array
from edgeml_converters.simple.uses import Constants, fresh, reads, remove

_HEADS = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class _Head:
    """A node with weights, and how its output channels lie."""

    node: onnx.NodeProto
    weights: Array
    bias: Array | None
    axis: int
    groups: int
    channels: int


def fold_affine(graph: onnx.GraphProto) -> int:
    """Fold until nothing is left to fold; return how many nodes went."""
    total = 0
    while _fold_once(graph):
        total += 1
    return total


def _fold_once(graph: onnx.GraphProto) -> bool:
    constants, counts = Constants(graph), reads(graph)
    makers = {name: node for node in graph.node for name in node.output}
    for index, node in enumerate(graph.node):
        if node.domain not in ("", "ai.onnx") or not node.input:
            continue
        for place in (0, 1) if node.op_type in ("Mul", "Add") else (0,):
            if place >= len(node.input):
                continue
            name = node.input[place]
            maker = makers.get(name)
            if maker is None or maker.op_type not in _HEADS or counts[name] != 1:
                continue
            head = _head(maker, constants)
            found = _affine(node, 1 - place, head, constants) if head else None
            if head is None or found is None:
                continue
            _store(graph, head, *found)
            maker.output[0] = node.output[0]
            remove(graph, {index})
            return True
    return False


def _head(node: onnx.NodeProto, constants: Constants) -> _Head | None:
    """Return a node with its stored weights; None when it cannot take a factor."""
    if node.domain not in ("", "ai.onnx") or len(node.input) < 2:
        return None
    weights = constants.array(node.input[1])
    if weights is None or weights.dtype not in (np.float32, np.float64):
        return None
    bias = None
    if len(node.input) > 2 and node.input[2]:
        bias = constants.array(node.input[2])
        if bias is None:
            return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    groups = int(attributes.get("group", 1))
    if node.op_type == "Conv":
        return _Head(node, weights, bias, 0, groups, weights.shape[0])
    if node.op_type == "ConvTranspose":
        return _Head(node, weights, bias, 1, groups, weights.shape[1] * groups)
    axis = 0 if attributes.get("transB", 0) else 1
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        return None
    channels = weights.shape[axis]
    if bias is not None:
        if bias.size not in (1, channels) or bias.shape[-1:] not in ((), (1,), (channels,)):
            return None
        bias = np.broadcast_to(bias.reshape(-1), (channels,))
    return _Head(node, weights, bias, axis, 1, channels)


def _affine(
    node: onnx.NodeProto, other: int, head: _Head, constants: Constants
) -> tuple[Array, Array] | None:
    """Return factor and shift per channel of a node; None when it is not such a node."""
    ones, zeros = np.ones(head.channels), np.zeros(head.channels)
    if node.op_type == "BatchNormalization":
        return _normalisation(node, head.channels, constants)
    if node.op_type not in ("Mul", "Add") or len(node.input) != 2:
        return None
    values = constants.array(node.input[other])
    if values is None or values.dtype != head.weights.dtype:
        return None
    flat = _per_channel(values, head)
    if flat is None or not np.isfinite(flat).all():
        return None
    return (flat, zeros) if node.op_type == "Mul" else (ones, flat)


def _normalisation(
    node: onnx.NodeProto, channels: int, constants: Constants
) -> tuple[Array, Array] | None:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("training_mode", 0) or attributes.get("spatial", 1) != 1:
        return None
    arrays = [constants.array(name) for name in node.input[1:5]]
    if len(node.output) > 1 or len(arrays) != 4:
        return None
    known = [a.astype(np.float64) for a in arrays if a is not None and a.size == channels]
    if len(known) != 4:
        return None
    scale, shift, mean, variance = (a.reshape(-1) for a in known)
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        offset = shift - mean * factor
    if not (np.isfinite(factor).all() and np.isfinite(offset).all()):
        return None
    return factor, offset


def _per_channel(values: Array, head: _Head) -> Array | None:
    """Return one number per channel of what is broadcast to the output; None when it is not so."""
    if values.size == 1 and values.ndim <= _rank(head):
        return np.full(head.channels, values.reshape(-1)[0], np.float64)
    behind = 0 if head.node.op_type == "Gemm" else head.weights.ndim - 2
    shape = values.shape
    fits = (
        values.ndim in (behind + 1, behind + 2)
        and shape[values.ndim - behind - 1] == head.channels
        and values.size == head.channels
    )
    return values.reshape(-1).astype(np.float64) if fits else None


def _rank(head: _Head) -> int:
    """Return how many axes the output has."""
    return 2 if head.node.op_type == "Gemm" else int(head.weights.ndim)


def _store(graph: onnx.GraphProto, head: _Head, factor: Array, shift: Array) -> None:
    """Give a node its new weights and bias, under names of their own."""
    weights = head.weights.astype(np.float64)
    if head.node.op_type == "ConvTranspose":
        # [inputs, outputs of a group, ...]: the inputs of group g make the outputs of group g.
        inputs, outputs = weights.shape[0] // head.groups, weights.shape[1]
        rest = weights.shape[2:]
        grouped = weights.reshape(head.groups, inputs, outputs, *rest)
        by = factor.reshape(head.groups, 1, outputs, *(1 for _ in rest))
        weights = (grouped * by).reshape(weights.shape)
    else:
        shape = [1] * weights.ndim
        shape[head.axis] = head.channels
        weights = weights * factor.reshape(shape)
    bias = np.zeros(head.channels) if head.bias is None else head.bias.astype(np.float64)
    bias = bias * factor + shift
    kind = head.weights.dtype
    label = head.node.name or head.node.output[0]
    if (factor != 1).any():
        head.node.input[1] = _add(graph, weights.astype(kind), f"{label}/weight")
    name = _add(graph, bias.astype(kind), f"{label}/bias")
    if len(head.node.input) > 2:
        head.node.input[2] = name
    else:
        head.node.input.append(name)


def _add(graph: onnx.GraphProto, values: Array, wish: str) -> str:
    name = fresh(graph, wish)
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name
