"""Placement for onnxruntime: what its QDQ fusion turns into operators on 8-bit tensors.

A fused operator reads DequantizeLinear and writes QuantizeLinear, so both stand round it. What is
not fused is only slowed down by them: so an operator without weights takes part only where what
it reads is in 8 bits already and somebody goes on in 8 bits, and a product writes float
(MatMulIntegerToFloat) unless all that read it want 8 bits. The list is onnxruntime's own
(``qdq_selector_action_transformer.cc``); grouped convolutions and ConvTranspose are left out,
because their 8-bit kernels are slower than float (docs/decisions/0010-how-a-winner-is-chosen.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from edgeml_converters.quantizer.graph import Index
from edgeml_converters.quantizer.placement import (
    Placement,
    Rule,
    activations,
    opset_allows,
    stored_output,
    takes_float,
)
from edgeml_converters.quantizer.weighted import groups_of, is_depthwise, weighted

_FOLLOWS = Rule("follows")
_MOVES = Rule("moves")
RULES: dict[str, Rule] = {
    "Conv": Rule("weighted"),
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
    work = _Choice(index, frozenset(exclude))
    work.settle()
    placement = Placement(float_bias=False)
    for name in sorted(work.chosen):
        _take(placement, work, index.nodes[name])
    return placement


class _Choice:
    """Which nodes run in 8 bits: all that may, less those that lose, until nothing changes."""

    def __init__(self, index: Index, exclude: frozenset[str]) -> None:
        self.index = index
        self.chosen = {
            name for name, node in index.nodes.items() if name not in exclude and _may(node, index)
        }

    def settle(self) -> None:
        """Drop what loses."""
        while True:
            stored = {t for name in self.chosen for t in self.written(self.index.nodes[name])}
            lost = {name for name in self.chosen if not self._gains(name, stored)}
            if not lost:
                return
            self.chosen -= lost

    def written(self, node: onnx.NodeProto) -> list[str]:
        """Return the tensors that a chosen node writes in 8 bits."""
        rule = RULES[node.op_type]
        names = [stored_output(node, self.index)] if len(node.output) == 1 else list(node.output)
        if rule.writes == "asked" and not all(self._wanted(name) for name in names):
            return []
        return [name for name in names if name]

    def _wanted(self, name: str) -> bool:
        """Tell whether all that read a tensor read it from 8 bits."""
        index = self.index
        uses = index.users.get(name, [])
        return (
            bool(uses)
            and name not in index.outputs
            and name not in index.captured
            and all(use.node in self.chosen for use in uses)
        )

    def _gains(self, name: str, stored: set[str]) -> bool:
        """Tell whether a chosen node may stay so."""
        node = self.index.nodes[name]
        rule = RULES[node.op_type]
        if rule.kind == "weighted":
            return True
        if any(
            node.input[use.position] not in stored for use in activations(node, rule, self.index)
        ):
            return False
        uses = [use for out in self.written(node) for use in self.index.users.get(out, [])]
        return any(use.node in self.chosen for use in uses)


def _may(node: onnx.NodeProto, index: Index) -> bool:
    """Tell whether onnxruntime has an 8-bit form of a node that is not slower."""
    rule = RULES.get(node.op_type)
    if rule is None or not takes_float(node, rule, index) or not opset_allows(node):
        return False
    if rule.kind == "weighted":
        if weighted(node, index) is None:
            return False
        return node.op_type != "Conv" or groups_of(node) == 1 or is_depthwise(node, index)
    return True


def _take(placement: Placement, work: _Choice, node: onnx.NodeProto) -> None:
    """Put a chosen node into the placement."""
    index = work.index
    rule = RULES[node.op_type]
    uses = activations(node, rule, index)
    for use in uses:
        placement.read(node.input[use.position], use)
    written = work.written(node)
    for name in written:
        placement.read_by_all(name)
        if rule.kind == "moves":
            placement.groups.join(node.input[0], name)
    if rule.kind == "weighted":
        found = weighted(node, index)
        if found is not None:
            placement.weights[node.name] = found
    elif not rule.inputs:
        placement.store_operands(node, index)
