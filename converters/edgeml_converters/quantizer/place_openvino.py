"""Placement for OpenVINO: 8 bits between operators with weights, and nothing round the others.

Its low-precision passes move the steps of 8 bits through the graph by themselves and fuse the
return to float into what follows. What they need is a pair on every input of an operator with
weights; pairs round Add, pools and Concat between convolutions keep those in 8 bits too; pairs
round normalisation, Softmax or the Add of a transformer only cost. Between operators that only
move values one pair at either end is enough, and more would hide a channel shuffle from it.
Products of two activations stay float: on AVX512-VNNI their conversions cost more than they gain.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from edgeml_converters.quantizer.graph import Index
from edgeml_converters.quantizer.placement import Placement, Rule, is_simple
from edgeml_converters.quantizer.regions import Regions

_WEIGHTED = Rule("weighted", writes="asked")
_FOLLOWS = Rule("follows")
_MOVES = Rule("moves")
RULES: dict[str, Rule] = {
    "Conv": _WEIGHTED,
    "ConvTranspose": _WEIGHTED,
    "Gemm": _WEIGHTED,
    "MatMul": _WEIGHTED,
    "Add": Rule("follows", ()),
    "Concat": Rule("joins", ()),
    "AveragePool": _FOLLOWS,
    "GlobalAveragePool": _FOLLOWS,
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
#: Operators between which OpenVINO carries 8 bits on without a pair.
_CARRIES = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def place(index: Index, exclude: Iterable[str] = ()) -> Placement:
    """Return what OpenVINO runs in 8 bits with a gain.

    Args:
        index: Of a prepared model.
        exclude: Nodes that stay float.
    """
    regions = Regions(index, RULES, _may, exclude)
    placement = regions.place(Placement(float_bias=True))
    for name in [name for name in placement.readers if _is_between(name, regions)]:
        del placement.readers[name]
    return placement


def _may(node: onnx.NodeProto, index: Index) -> bool:
    """Tell whether a node is one of the simple cases."""
    return is_simple(node)


def _is_between(name: str, regions: Regions) -> bool:
    """Tell whether a tensor lies inside a chain of operators that only move values."""
    index = regions.index
    maker = index.producers.get(name)
    readers = {use.node for use in index.users.get(name, [])}
    return (
        maker is not None
        and readers | {maker} <= regions.chosen
        and all(index.nodes[n].op_type in _CARRIES for n in readers | {maker})
    )
