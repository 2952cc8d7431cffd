"""Placement for onnxruntime: what its QDQ fusion turns into operators on 8-bit tensors.

A fused operator reads DequantizeLinear and writes QuantizeLinear, so both stand round it; what is
not fused is only slowed down by them. A product writes float (MatMulIntegerToFloat, QGemm) unless
all that read it want 8 bits. The list of operators is onnxruntime's own
(``qdq_selector_action_transformer.cc``); grouped convolutions and ConvTranspose are left out,
because their 8-bit kernels are slower than float (docs/decisions/0010-how-a-winner-is-chosen.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from edgeml_converters.quantizer.graph import Index
from edgeml_converters.quantizer.placement import Placement, Rule, is_simple
from edgeml_converters.quantizer.regions import Regions
from edgeml_converters.quantizer.weighted import groups_of, is_depthwise

_FOLLOWS = Rule("follows")
_MOVES = Rule("moves")
RULES: dict[str, Rule] = {
    # A patch embedding, or a depthwise convolution between grouped ones, is no gain by itself.
    "Conv": Rule("weighted", alone=64),
    "MatMul": Rule("weighted", writes="asked"),
    "Gemm": Rule("weighted", writes="asked"),
    "Add": Rule("follows", ()),
    "Mul": Rule("follows", ()),
    "Concat": Rule("follows", ()),
    "AveragePool": _FOLLOWS,
    "GlobalAveragePool": _FOLLOWS,
    "LeakyRelu": _FOLLOWS,
    "Sigmoid": _FOLLOWS,
    "Softmax": _FOLLOWS,
    "Flatten": _MOVES,
    "Gather": _MOVES,
    "MaxPool": _MOVES,
    "Reshape": _MOVES,
    "Resize": _MOVES,
    "Slice": _MOVES,
    "Split": _MOVES,
    "Squeeze": _MOVES,
    "Transpose": _MOVES,
    "Unsqueeze": _MOVES,
}


def place(index: Index, exclude: Iterable[str] = ()) -> Placement:
    """Return what onnxruntime runs in 8 bits with a gain.

    Args:
        index: Of a prepared model.
        exclude: Nodes that stay float.
    """
    return Regions(index, RULES, _may, exclude).place(Placement(float_bias=False))


def _may(node: onnx.NodeProto, index: Index) -> bool:
    """Tell whether the 8-bit form of a node is not slower than float."""
    if node.op_type == "Conv":
        return groups_of(node) == 1 or is_depthwise(node, index)
    return is_simple(node)
