"""Index: who makes and who reads each tensor of a graph, and what is known about it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from edgeml.tensors import Array
from edgeml_converters.source.external import all_graphs
from edgeml_converters.source.stored import values


class Use(NamedTuple):
    """One input of a node: the node's name and the position."""

    node: str
    position: int


class Index:
    """What can be asked about the main graph of a prepared model (its nodes have unique names).

    Attributes:
        nodes: Name -> node.
        producers: Tensor -> the name of the node that makes it.
        users: Tensor -> the inputs that it is.
        outputs: The graph's outputs.
        captured: Tensors that graphs inside nodes read; nothing may be done to them there.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Read a model; it must not change while this is in use."""
        graph = model.graph
        self.graph = graph
        self.nodes: dict[str, onnx.NodeProto] = {node.name: node for node in graph.node}
        self.producers = {name: node.name for node in graph.node for name in node.output if name}
        self.users: dict[str, list[Use]] = {}
        for node in graph.node:
            for position, name in enumerate(node.input):
                if name:
                    self.users.setdefault(name, []).append(Use(node.name, position))
        self.outputs = {o.name for o in graph.output}
        self.captured = _captured(graph)
        self._stored = {i.name: i for i in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and not node.domain:
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self._stored[node.output[0]] = attribute.t
        self._infos = {v.name: v for v in [*graph.value_info, *graph.input, *graph.output]}

    def is_constant(self, name: str) -> bool:
        """Tell whether a tensor is stored in the model."""
        return name in self._stored

    def constant(self, name: str) -> Array:
        """Return a stored tensor."""
        return values(self._stored[name])

    def constant_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a stored tensor without reading it."""
        return tuple(self._stored[name].dims)

    def is_float(self, name: str) -> bool:
        """Tell whether a tensor is known to hold float32."""
        if name in self._stored:
            return bool(self._stored[name].data_type == onnx.TensorProto.FLOAT)
        info = self._infos.get(name)
        return bool(info and info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape with -1 for what is not known; None when nothing is."""
        if name in self._stored:
            return tuple(self._stored[name].dims)
        info = self._infos.get(name)
        if info is None or not info.type.tensor_type.HasField("shape"):
            return None
        dims = info.type.tensor_type.shape.dim
        return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """Return the one node that reads a tensor; None when there are more or other readers."""
        uses = self.users.get(name, [])
        if len(uses) != 1 or name in self.outputs or name in self.captured:
            return None
        return self.nodes[uses[0].node]


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return an attribute of a node, or the default."""
    for one in node.attribute:
        if one.name == name:
            return helper.get_attribute_value(one)
    return default


def scalar(index: Index, name: str, default: float) -> float:
    """Return a stored scalar; the default without a name, NaN when it is not stored."""
    if not name:
        return default
    if not index.is_constant(name):
        return float("nan")
    return float(np.asarray(index.constant(name)).reshape(-1)[0])


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Return the names that graphs inside nodes use and do not make themselves."""
    names: set[str] = set()
    for inner in all_graphs(graph):
        if inner is graph:
            continue
        names |= {name for node in inner.node for name in node.input}
        names |= {output.name for output in inner.output}
    return names
