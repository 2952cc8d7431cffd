"""Builds an ONNX graph and runs every node on samples at once.

Because each node has its value as soon as it is added, what depends on data (the statistics of
a batch normalisation, the scale of a layer, a classifier's head) is taken from it on the way, in
one pass, and a network of chance behaves like a trained one: no channel is dead, none overflows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
OPSET, IR = 17, 8
_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


@dataclass(frozen=True, eq=False)
class Value:
    """One tensor of the graph: its name, and what it is for the samples."""

    name: str
    data: Array


class Net:
    """A graph that grows; see the module."""

    def __init__(self, name: str, seed: int) -> None:
        """Begin an empty graph; the weights are drawn with ``seed``."""
        self.name = name
        self.dice = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, Array] = {}
        self._inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, samples: Array, batch: int | str = 1) -> Value:
        """Add an input; ``samples`` has the batch on axis 0, the graph gets ``batch`` there."""
        shape = [batch, *samples.shape[1:]]
        kind = _TYPES[str(samples.dtype)]
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return Value(name, samples)

    def weight(self, name: str, data: Array) -> Value:
        """Add an initializer."""
        self._weights[name] = data
        return Value(name, data)

    def parameter(self, data: Array) -> Value:
        """Add an initializer of floats that training may change."""
        return self.weight(f"p{len(self._weights)}", data.astype(np.float32))

    def op(self, kind: str, *inputs: Value, **attributes: Any) -> Value:
        """Add a node and run it."""
        name = f"{kind.lower()}_{len(self._nodes)}"
        names = [one.name for one in inputs]
        node = helper.make_node(kind, names, [f"{name}_out"], name=name, **attributes)
        self._nodes.append(node)
        return Value(f"{name}_out", run_node(node, [one.data for one in inputs]))

    def shaped(self, x: Value, *shape: int) -> Value:
        """Reshape; 0 keeps an axis."""
        wanted = np.asarray(shape, np.int64)
        return self.op("Reshape", x, self.weight(f"shape_{len(self._nodes)}", wanted))

    def number(self, value: float) -> Value:
        """Return a constant of one float."""
        return self.weight(f"number_{len(self._nodes)}", np.asarray(value, np.float32))

    def model(self, outputs: dict[str, Value], batch: int | str = 1) -> onnx.ModelProto:
        """Return the whole, checked; ``outputs``: the name it gets -> value."""
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self._nodes]
        infos = []
        for name, value in outputs.items():
            nodes.append(helper.make_node("Identity", [value.name], [name], name=f"to_{name}"))
            shape = [batch, *value.data.shape[1:]]
            infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        _join_identities(nodes)
        weights = [numpy_helper.from_array(array, name) for name, array in self._weights.items()]
        graph = helper.make_graph(nodes, self.name, self._inputs, infos, weights)
        opset = helper.make_opsetid("", OPSET)
        made = helper.make_model(graph, opset_imports=[opset], ir_version=IR)
        onnx.checker.check_model(made, full_check=True)
        return made


def _join_identities(nodes: list[onnx.NodeProto]) -> None:
    """Let the node before an output's Identity write the output itself, where it can."""
    made = {name: node for node in nodes for name in node.output}
    for node in [n for n in nodes if n.op_type == "Identity"]:
        source = node.input[0]
        readers = [n for n in nodes if n is not node and source in n.input]
        if source in made and not readers:
            maker = made[source]
            maker.output[list(maker.output).index(source)] = node.output[0]
            nodes.remove(node)


def run_node(node: onnx.NodeProto, inputs: Sequence[Array]) -> Array:
    """Return the first output of one node."""
    infos = []
    feed: dict[str, Array] = {}
    for name, array in zip(node.input, inputs, strict=True):
        if name not in feed:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            infos.append(helper.make_tensor_value_info(name, kind, array.shape))
            feed[name] = array
    out = onnx.ValueInfoProto()
    out.name = node.output[0]
    graph = helper.make_graph([node], "node", infos, [out])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    return run_model(made, feed)


def run_model(model: onnx.ModelProto, feed: dict[str, Array]) -> Array:
    """Return the first output of a model."""
    result: Array = session_of(model)(feed)
    return result


def session_of(model: onnx.ModelProto) -> Callable[[dict[str, Array]], Array]:
    """Return a function that runs a model and gives its first output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(feed: dict[str, Array]) -> Array:
        first: Array = session.run(None, feed)[0]
        return first

    return run
