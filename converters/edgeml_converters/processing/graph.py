"""A graph that is being added to: nodes and constants with names that nothing else has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeml.errors import ModelError, nearest
from edgeml_converters.passes.shapes import real_inputs
from edgeml_converters.source.checks import opset_of
from edgeml_converters.source.external import all_graphs

#: A number for each axis; a name or nothing where it varies.
Dims = tuple[int | str | None, ...]

_LEAST_OPSET = 13


class Editor:
    """Adds nodes before or behind a copy of a model; the given model stays as it is."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Copy the model.

        Raises:
            ModelError: Its operator set is too old for the nodes that are to be added.
        """
        if opset_of(model) < _LEAST_OPSET:
            raise ModelError(
                f"the model has operator set {opset_of(model)}, expected {_LEAST_OPSET} or more "
                "for processing in the graph",
                "export the model again with opset 17",
            )
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: set[str] = set()
        nodes: set[str] = set()
        for graph in all_graphs(self.graph):
            for values in (graph.input, graph.output, graph.initializer):
                self._tensors |= {value.name for value in values}
            for node in graph.node:
                self._tensors |= {*node.input, *node.output}
                nodes.add(node.name)
        self._used = self._tensors | nodes

    def fresh(self, wish: str) -> str:
        """Return a name that nothing has."""
        name, number = f"edgeml/{wish}", 1
        while name in self._used:
            number += 1
            name = f"edgeml/{wish}_{number}"
        self._used.add(name)
        return name

    def constant(self, values: npt.ArrayLike, dtype: str, wish: str) -> str:
        """Store values and return their name."""
        name = self.fresh(wish)
        array = np.asarray(values, dtype)
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, inputs: Sequence[str], wish: str = "", **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        return self.many(op, inputs, (wish or op.lower(),), **attributes)[0]

    def many(
        self, op: str, inputs: Sequence[str], wishes: Sequence[str], **attributes: Any
    ) -> list[str]:
        """Add a node and return the names of its outputs."""
        outputs = [self.fresh(wish) for wish in wishes]
        node = helper.make_node(op, list(inputs), outputs, self.fresh(f"{op}_node"), **attributes)
        self._nodes.append(node)
        return outputs

    def rename(self, wanted: str, name: str) -> None:
        """Give the tensor that was added last under ``wanted`` another name."""
        for node in self._nodes:
            for names in (node.input, node.output):
                for index, one in enumerate(names):
                    if one == wanted:
                        names[index] = name

    def has(self, name: str) -> bool:
        """Tell whether a tensor of the model is called this."""
        return name in self._tensors

    def move(self, name: str) -> None:
        """Free the name of an output that goes; its tensor gets another name."""
        new = self.take_name(name, "raw")
        for node in self._nodes:
            for index, one in enumerate(node.input):
                if one == name:
                    node.input[index] = new

    def take_name(self, name: str, wish: str) -> str:
        """Free a name of the model for a new tensor; return what its tensor is called now."""
        new = self.fresh(wish)
        for graph in all_graphs(self.graph):
            for node in graph.node:
                for names in (node.input, node.output):
                    for index, one in enumerate(names):
                        if one == name:
                            names[index] = new
        return new

    def put_before(self) -> None:
        """Put the added nodes in front of the model's."""
        copies = []
        for node in [*self._nodes, *self.graph.node]:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copies.append(copy)
        del self.graph.node[:]
        self.graph.node.extend(copies)
        self._nodes = []

    def put_behind(self) -> None:
        """Put the added nodes behind the model's."""
        self.graph.node.extend(self._nodes)
        self._nodes = []


def known(value: onnx.ValueInfoProto) -> bool:
    """Tell whether a tensor's number of axes is known."""
    kind = value.type
    return bool(kind.HasField("tensor_type") and kind.tensor_type.HasField("shape"))


def dims_of(value: onnx.ValueInfoProto) -> Dims:
    """Return the axes of a tensor."""
    return tuple(
        d.dim_value if d.HasField("dim_value") else (d.dim_param or None)
        for d in value.type.tensor_type.shape.dim
    )


def find(values: Sequence[onnx.ValueInfoProto], name: str, what: str) -> onnx.ValueInfoProto:
    """Return the input or output that is meant.

    Args:
        values: Those that there are.
        name: Its name; may be empty when there is one.
        what: ``input`` or ``output``.

    Raises:
        ModelError: There is no such, or it is not clear which.
    """
    names = [value.name for value in values]
    if not name and len(values) == 1:
        return values[0]
    if not name:
        raise ModelError(
            f"the model has {len(values)} {what}s ({', '.join(names)}), and none was named",
            f"name one by {what}=NAME",
        )
    if name not in names:
        raise ModelError(f"the model has no {what} '{name}'", nearest(name, names))
    return values[names.index(name)]


def model_input(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    """Return the input that is meant; see ``find``."""
    return find(real_inputs(model), name, "input")


def value_info(name: str, kind: int, dims: Dims) -> onnx.ValueInfoProto:
    """Return the description of an input or output."""
    return helper.make_tensor_value_info(name, kind, list(dims))


def type_number(dtype: str) -> int:
    """Return the number that ONNX gives a NumPy type."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


FLOAT = int(TensorProto.FLOAT)
INT64 = int(TensorProto.INT64)
