"""Who makes and who reads a tensor, graphs inside nodes included."""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import numpy_helper

from edgeml.tensors import Array
from edgeml_converters.source.external import all_graphs
from edgeml_converters.source.stored import is_external


def reads(graph: onnx.GraphProto) -> Counter[str]:
    """Return how often each tensor is read: by nodes, inner graphs, and as an output."""
    found: Counter[str] = Counter()
    for one in all_graphs(graph):
        for node in one.node:
            found.update(name for name in node.input if name)
        found.update(value.name for value in one.output)
    return found


def rewire(graph: onnx.GraphProto, new: dict[str, str]) -> None:
    """Let nodes and inner graphs read other tensors: old name -> new name."""

    def last(name: str) -> str:
        while name in new:
            name = new[name]
        return name

    for one in all_graphs(graph):
        for node in one.node:
            for index, name in enumerate(node.input):
                if name in new:
                    node.input[index] = last(name)
        if one is not graph:
            for value in one.output:
                if value.name in new:
                    value.name = last(value.name)


class Constants:
    """The stored tensors of a graph and its Constant nodes, read when they are asked for."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        """Take a graph; stored tensors that are inputs too may be fed, so they are none."""
        fed = {value.name for value in graph.input}
        self._tensors = {t.name: t for t in graph.initializer if t.name not in fed}
        for node in graph.node:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self._tensors[node.output[0]] = attribute.t
        self._arrays: dict[str, Array] = {}

    def __contains__(self, name: object) -> bool:
        """Tell whether a tensor is stored."""
        return name in self._tensors

    def tensor(self, name: str) -> onnx.TensorProto | None:
        """Return a stored tensor; None when it is none, or lies beside the model."""
        found = self._tensors.get(name)
        return None if found is None or is_external(found) else found

    def array(self, name: str) -> Array | None:
        """Return the values of a stored tensor; None when it is none, or lies beside."""
        if name not in self._arrays:
            tensor = self.tensor(name)
            if tensor is None:
                return None
            self._arrays[name] = numpy_helper.to_array(tensor)
        return self._arrays[name]


def fresh(graph: onnx.GraphProto, wish: str) -> str:
    """Return a name that no tensor and no node has."""
    used = {n.name for g in all_graphs(graph) for n in g.node}
    for one in all_graphs(graph):
        used |= {name for node in one.node for name in (*node.input, *node.output)}
        used |= {value.name for value in (*one.input, *one.output, *one.initializer)}
    name, number = wish, 1
    while name in used:
        number += 1
        name = f"{wish}_{number}"
    return name


def remove(graph: onnx.GraphProto, gone: set[int]) -> None:
    """Remove nodes by their places."""
    for index in sorted(gone, reverse=True):
        del graph.node[index]
