"""Placement for OpenVINO: only what operators with weights, and products, read is stored in 8 bits.

Its low-precision passes move the steps of 8 bits through the graph themselves, and fuse the
return to float into what follows; further Q/DQ pairs, round Add, Mul, normalisation or Softmax,
only get in the way. A pair is put as early as the value is already there: before operators that
only move values, and before a Concat on every branch, with one scale for all.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgeml_converters.quantizer.graph import Index, Use
from edgeml_converters.quantizer.placement import (
    Placement,
    Rule,
    activations,
    opset_allows,
    takes_float,
)
from edgeml_converters.quantizer.weighted import weighted

_MOVES = Rule("moves")
RULES: dict[str, Rule] = {
    "Conv": Rule("weighted", writes="never"),
    "ConvTranspose": Rule("weighted", writes="never"),
    "Gemm": Rule("weighted", writes="never"),
    "MatMul": Rule("weighted", writes="never"),
    "Concat": Rule("joins", ()),
    "Flatten": _MOVES,
    "MaxPool": _MOVES,
    "Reshape": _MOVES,
    "Resize": _MOVES,
    "Slice": _MOVES,
    "Split": _MOVES,
    "Squeeze": _MOVES,
    "Transpose": _MOVES,
    "Unsqueeze": _MOVES,
}
_PRODUCT = Rule("product", (0, 1), writes="never")


def place(index: Index, exclude: Iterable[str] = ()) -> Placement:
    """Return what OpenVINO runs in 8 bits with a gain.

    Args:
        index: Of a prepared model.
        exclude: Nodes that stay float.
    """
    excluded = frozenset(exclude)
    placement = Placement(float_bias=True)
    eaters: list[Use] = []
    movers: set[str] = set()
    for name, node in index.nodes.items():
        rule = RULES.get(node.op_type)
        if rule is None or name in excluded or not opset_allows(node):
            continue
        if rule.kind != "weighted":
            if takes_float(node, rule, index):
                movers.add(name)
            continue
        found = weighted(node, index)
        if found is not None and takes_float(node, rule, index):
            placement.weights[name] = found
            eaters += activations(node, rule, index)
        elif node.op_type == "MatMul" and takes_float(node, _PRODUCT, index):
            uses = activations(node, _PRODUCT, index)
            eaters += uses if len(uses) == 2 else []
    asked = _asked(index, eaters, movers)
    for use in eaters:
        _climb(placement, index, movers, asked, use)
    return placement


def _asked(index: Index, eaters: list[Use], movers: set[str]) -> set[str]:
    """Return the tensors that are read, through movers or not, in 8 bits alone."""
    eating = set(eaters)
    asked: set[str] = set()
    for node in reversed(list(index.nodes.values())):
        for name in node.output:
            uses = index.users.get(name, [])
            if not uses or name in index.outputs or name in index.captured:
                continue
            if all(
                use in eating or (use.node in movers and set(index.nodes[use.node].output) <= asked)
                for use in uses
            ):
                asked.add(name)
    return asked


def _climb(placement: Placement, index: Index, movers: set[str], asked: set[str], use: Use) -> None:
    """Store what an input reads, as early in the graph as that is the same."""
    name = index.nodes[use.node].input[use.position]
    maker = index.producers.get(name)
    if maker not in movers or not set(index.nodes[maker].output) <= asked:
        placement.read(name, use)
        return
    node = index.nodes[maker]
    for before in activations(node, RULES[node.op_type], index):
        source = node.input[before.position]
        placement.groups.join(name, source)
        _climb(placement, index, movers, asked, before)
