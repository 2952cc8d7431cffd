"""Trace: which channels of which tensors can only go together.

Every channel that a layer makes is an *atom*. A tensor has a label: the axis that holds channels,
and the atom at each position of it. The rules of the operators (``rules_*``) carry labels from
inputs to outputs and unite atoms that must share their fate: an Add unites the channels of both
sides, a grouped convolution the channels at one place of each group. Whatever no rule knows pins
its channels: they stay. What a removal changes is noted beside: *sites* (a stored tensor loses
positions of an axis) and *counts* (a number inside the model says how many positions there are).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from edgeml.tensors import Array
from edgeml_converters.pruning.view import Shape, View

Ids = npt.NDArray[np.int64]
#: The atom of everything that stays.
PINNED = 0


class Atoms:
    """Sets of atoms that share their fate (union by the smaller number, so order is kept)."""

    def __init__(self) -> None:
        """Begin with the pinned one."""
        self._parent = [PINNED]

    def fresh(self, count: int) -> Ids:
        """Return new atoms."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, atom: int) -> int:
        """Return the one that stands for an atom's set."""
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def roots(self, ids: Ids) -> Ids:
        """Return the root of each."""
        return np.array([self.root(int(i)) for i in ids], np.int64)

    def unite(self, first: Ids, second: Ids) -> None:
        """Unite the atoms at the same positions."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self.root(a), self.root(b)))
            self._parent[high] = low

    def pin(self, ids: Ids) -> None:
        """Say that these stay."""
        self.unite(ids, np.full(len(ids), PINNED, np.int64))


@dataclass(frozen=True, eq=False)
class Label:
    """The axis of a tensor that holds channels, and the atom at each position.

    Attributes:
        axis: The axis.
        ids: The atoms.
        block: So many positions in a row were one channel's places in space, before a Flatten.
    """

    axis: int
    ids: Ids
    block: int = 1


@dataclass(frozen=True, eq=False)
class Site:
    """A stored tensor that loses the positions of its axis whose atoms go."""

    tensor: str
    axis: int
    ids: Ids


@dataclass(frozen=True, eq=False)
class Count:
    """A number that becomes the number of atoms that are left.

    Attributes:
        ids: The atoms to count.
        tensor: The stored tensor that holds it; empty for an attribute.
        index: Its position there.
        node: The node whose attribute it is.
        attribute: Name of the attribute.
    """

    ids: Ids
    tensor: str = ""
    index: int = 0
    node: int = -1
    attribute: str = ""


@dataclass(frozen=True, eq=False)
class Layer:
    """A node that multiplies by weights.

    Attributes:
        node: Its position in the graph.
        name: For people.
        op: ``Conv``, ``ConvTranspose``, ``Gemm``, ``MatMul``, ``Depthwise`` or ``Attention`` (a
            product of two tensors that were computed).
        weight: Stored tensor; empty for ``Attention``.
        bias: Stored tensor; empty without.
        x: What it reads.
        y: What it writes, a bias added.
        ids_in: Atoms of its input channels; None when they are not followed.
        ids_out: Atoms of its outputs.
        group: Of a grouped convolution.
        macs: Multiplications of one run at batch 1, with the inputs and outputs that it has now.
        block: A dense layer reads so many numbers of each input channel, one per place in space.
    """

    node: int
    name: str
    op: str
    weight: str
    bias: str
    x: str
    y: str
    ids_in: Ids | None
    ids_out: Ids
    group: int
    macs: float
    block: int = 1


@dataclass
class Trace:
    """A graph that is being followed; the rules write into it."""

    view: View
    atoms: Atoms = field(default_factory=Atoms)
    labels: dict[str, Label] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    heads: set[int] = field(default_factory=set)
    stopped: dict[str, int] = field(default_factory=dict)

    def dims(self, name: str) -> Shape | None:
        """Return the axes of a tensor."""
        return self.view.dims(name)

    def pin(self, name: str) -> None:
        """Say that the channels of a tensor stay."""
        label = self.labels.get(name)
        if label is not None:
            self.atoms.pin(label.ids)

    def stop(self, node: onnx.NodeProto) -> None:
        """Say that nothing can be followed through a node: its inputs stay as they are."""
        if any(name in self.labels for name in node.input):
            self.stopped[node.op_type] = self.stopped.get(node.op_type, 0) + 1
        for name in node.input:
            self.pin(name)

    def carry(self, name: str, axis: int, ids: Ids, block: int = 1) -> None:
        """Give a tensor its label."""
        self.labels[name] = Label(axis, ids, block)

    def site(self, tensor: str, axis: int, ids: Ids) -> None:
        """Note that a stored tensor follows atoms."""
        self.sites.append(Site(tensor, axis, ids))


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """Return the value of an attribute, or the default."""
    for one in node.attribute:
        if one.name == name:
            return helper.get_attribute_value(one)
    return default


def integer(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an integer attribute."""
    value = attribute(node, name, default)
    return value if isinstance(value, int) else default


def integers(node: onnx.NodeProto, name: str) -> list[int]:
    """Return a list of integers; empty when it is not there."""
    value = attribute(node, name, ())
    return [int(v) for v in value] if isinstance(value, Sequence) else []


def stored_integers(trace: Trace, node: onnx.NodeProto, position: int) -> list[int] | None:
    """Return the values of a stored integer input; None when it is computed or missing."""
    if len(node.input) <= position or not node.input[position]:
        return None
    values: Array | None = trace.view.weights.get(node.input[position])
    return None if values is None else [int(v) for v in np.atleast_1d(values)]
