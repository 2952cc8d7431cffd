"""A view of a graph: who makes a tensor, who reads it, what is stored; edits of stored tensors."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from edgeml.tensors import Array
from edgeml_converters.source.external import all_graphs

#: Operators with stored weights, whose output channels each have a weight row of their own.
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


class Weights(msgspec.Struct, frozen=True):
    """Where the weights of a product are, and along which axes.

    Attributes:
        name: Of the stored tensor.
        out_axis: Its axis of output channels.
        in_axis: Its axis of input channels (of one group, for a convolution with groups).
        groups: 1 but for convolutions with groups.
        bias: Name of the stored bias; empty when there is none in the operator itself.
    """

    name: str
    out_axis: int
    in_axis: int
    groups: int = 1
    bias: str = ""


class View:
    """A copy of a model, with the look-ups and edits that passes need.

    Attributes:
        model: The copy; it is changed in place.
        graph: Its main graph.
        outputs: Names of the outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Copy a model."""
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.outputs = {o.name for o in self.graph.output}
        self._stored = {i.name: i for i in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._stored[node.output[0]] = node.attribute[0].t
        self.refresh()

    def refresh(self) -> None:
        """Look at the nodes again, after they were changed."""
        self.maker = {name: node for node in self.graph.node for name in node.output if name}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        # What a graph inside a node reads from outside counts as read by something unknown.
        self.inner = {
            name
            for graph in all_graphs(self.graph)
            if graph is not self.graph
            for node in graph.node
            for name in node.input
        }

    def stored(self, name: str) -> bool:
        """Tell whether a tensor is stored in the model."""
        return name in self._stored

    def array(self, name: str) -> Array:
        """Return a stored tensor."""
        return numpy_helper.to_array(self._stored[name])

    def floating(self, name: str) -> bool:
        """Tell whether a tensor is stored as float32."""
        return self.stored(name) and self._stored[name].data_type == onnx.TensorProto.FLOAT

    def sole_user(self, name: str) -> onnx.NodeProto | None:
        """Return the only node that reads a tensor; None for an output, or when there are more."""
        users = self.users.get(name, [])
        alone = len(users) == 1 and list(users[0].input).count(name) == 1
        return users[0] if alone and name not in self.outputs | self.inner else None

    def own(self, name: str) -> bool:
        """Tell whether one node alone reads a stored tensor."""
        return self.stored(name) and self.sole_user(name) is not None

    def put(self, name: str, array: Array) -> None:
        """Change a stored tensor in place."""
        self._stored[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))

    def add(self, name: str, array: Array) -> str:
        """Store a new tensor; return its name, which is ``name`` or one like it."""
        free = name
        while free in self._stored or free in self.maker or free in self.users:
            free += "_"
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), free))
        self._stored[free] = self.graph.initializer[-1]
        return free

    def weights(self, node: onnx.NodeProto) -> Weights | None:
        """Return where a node's stored float weights are; None when it has none."""
        if node.op_type not in WEIGHTED or len(node.input) < 2 or not self.floating(node.input[1]):
            return None
        name = node.input[1]
        rank = len(self._stored[name].dims)
        bias = node.input[2] if len(node.input) > 2 and self.floating(node.input[2]) else ""
        groups = int(attribute(node, "group", 1))
        if node.op_type == "Conv":
            return Weights(name, 0, 1, groups, bias)
        if node.op_type == "ConvTranspose":
            return Weights(name, 1, 0, groups, bias)
        if rank != 2:
            return None
        if node.op_type == "MatMul":
            return Weights(name, 1, 0)
        plain = not attribute(node, "transA", 0) and attribute(node, "alpha", 1.0) == 1.0
        if not plain or attribute(node, "beta", 1.0) != 1.0:
            return None
        out = 0 if attribute(node, "transB", 0) else 1
        return Weights(name, out, 1 - out, 1, bias)

    def products(self) -> Iterator[tuple[onnx.NodeProto, Weights]]:
        """Yield the nodes of the main graph with stored float weights."""
        for node in self.graph.node:
            found = self.weights(node)
            if found is not None:
                yield node, found

    def finish(self) -> onnx.ModelProto:
        """Return the model without stored tensors that nobody reads."""
        used = {
            name for graph in all_graphs(self.graph) for node in graph.node for name in node.input
        } | self.outputs
        for graph_name in [i.name for i in self.graph.initializer]:
            if graph_name not in used:
                self.graph.initializer.remove(self._stored.pop(graph_name))
        return self.model


def attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """Return a number among a node's attributes."""
    for one in node.attribute:
        if one.name == name:
            return float(one.f if one.type == onnx.AttributeProto.FLOAT else one.i)
    return default
