"""Regions: which nodes run in 8 bits, given rules for operators.

All that may run in 8 bits start so; those that lose are dropped until nothing changes. A node with
weights stays, unless it is small and alone. Another one stays only when all that it reads is
stored in 8 bits by others, and somebody goes on in 8 bits behind it: else each of its ends would
need a conversion of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import onnx

from edgeml_converters.quantizer.graph import Index
from edgeml_converters.quantizer.placement import (
    Placement,
    Rule,
    activations,
    stored_output,
    takes_float,
)
from edgeml_converters.quantizer.weighted import weighted

May = Callable[[onnx.NodeProto, Index], bool]


class Regions:
    """The choice for one graph.

    Attributes:
        index: Of the graph.
        rules: Operator -> its rule.
        chosen: The nodes that run in 8 bits.
    """

    def __init__(
        self, index: Index, rules: Mapping[str, Rule], may: May, exclude: Iterable[str]
    ) -> None:
        """Choose.

        Args:
            index: Of a prepared model.
            rules: Operator -> its rule.
            may: Tells of a node that has a rule whether its runtime gains by it.
            exclude: Nodes that stay float.
        """
        self.index, self.rules = index, rules
        left_out = frozenset(exclude)
        self.chosen = {
            name
            for name, node in index.nodes.items()
            if name not in left_out and self._has_form(node) and may(node, index)
        }
        while lost := self._losing():
            self.chosen -= lost

    def written(self, node: onnx.NodeProto) -> list[str]:
        """Return the tensors that a chosen node writes in 8 bits."""
        rule = self.rules[node.op_type]
        names = [stored_output(node, self.index)] if len(node.output) == 1 else list(node.output)
        if rule.writes == "asked" and not all(self._wanted(name) for name in names):
            return []
        return [name for name in names if name]

    def place(self, placement: Placement) -> Placement:
        """Put what was chosen into a placement, and return it."""
        for name in sorted(self.chosen):
            node = self.index.nodes[name]
            rule = self.rules[node.op_type]
            for use in activations(node, rule, self.index):
                placement.read(node.input[use.position], use)
            for output in self.written(node):
                placement.read_by_all(output)
                if rule.kind in ("moves", "joins"):
                    for use in activations(node, rule, self.index):
                        placement.groups.join(node.input[use.position], output)
            found = weighted(node, self.index) if rule.kind == "weighted" else None
            if found is not None:
                placement.weights[name] = found
            elif not rule.inputs:
                placement.store_operands(node, self.index)
        return placement

    def _has_form(self, node: onnx.NodeProto) -> bool:
        """Tell whether there is a rule for a node, and weights where it wants them."""
        rule = self.rules.get(node.op_type)
        if rule is None or not takes_float(node, rule, self.index):
            return False
        return rule.kind != "weighted" or weighted(node, self.index) is not None

    def _losing(self) -> set[str]:
        stored = {t for name in self.chosen for t in self.written(self.index.nodes[name])}
        return {name for name in self.chosen if not self._gains(name, stored)}

    def _gains(self, name: str, stored: set[str]) -> bool:
        """Tell whether a chosen node may stay so."""
        node = self.index.nodes[name]
        rule = self.rules[node.op_type]
        read = [node.input[use.position] for use in activations(node, rule, self.index)]
        uses = [use for out in self.written(node) for use in self.index.users.get(out, [])]
        wanted = any(use.node in self.chosen for use in uses)
        if rule.kind != "weighted":
            return wanted and stored.issuperset(read)
        if rule.writes == "asked" or wanted or not stored.isdisjoint(read):
            return True
        return math.prod(self.index.constant_shape(node.input[1])[1:]) >= rule.alone

    def _wanted(self, name: str) -> bool:
        """Tell whether all that read a tensor read it from 8 bits."""
        uses = self.index.users.get(name, [])
        return (
            bool(uses)
            and name not in self.index.outputs
            and name not in self.index.captured
            and all(use.node in self.chosen for use in uses)
        )
