"""Reads a QDQ ONNX graph: which tensors are quantised, and how."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeml.errors import ModelError
from edgeml.tensors import Array

#: Nodes that the operator before them does too, by saturation or by its activation function.
CLAMPS = frozenset({"Relu", "Clip"})
#: Nodes whose output may be clamped for free.
CLAMPABLE = frozenset({"Conv", "Gemm", "MatMul", "Add", "Sub", "Mul"})


class Quantised(msgspec.Struct, frozen=True):
    """How a tensor is quantised.

    Attributes:
        name: Name of the stored (integer) tensor.
        scale: One number, or one per channel.
        zero_point: As many.
        axis: The channel axis, in ONNX's order of axes.
    """

    name: str
    scale: Any
    zero_point: Any
    axis: int = 0


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


class QdqGraph:
    """Look-ups over a QDQ model with a static batch of 1."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Infer the shapes and index the graph.

        Raises:
            ModelError: A shape is not static.
        """
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        self.graph = inferred.graph
        self.constants: dict[str, Array] = {
            i.name: numpy_helper.to_array(i) for i in self.graph.initializer
        }
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            if node.op_type == "Constant":
                value = attributes(node).get("value")
                if value is not None:
                    self.constants[node.output[0]] = numpy_helper.to_array(value)
            for name in node.output:
                self.producers[name] = node
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self._shapes = self._static_shapes()

    def _static_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that has one."""
        shapes = {name: tuple(a.shape) for name, a in self.constants.items()}
        values = [*self.graph.input, *self.graph.value_info, *self.graph.output]
        for info in values:
            dims = info.type.tensor_type.shape.dim
            if all(d.HasField("dim_value") for d in dims):
                shapes[info.name] = tuple(d.dim_value for d in dims)
        return shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's static shape.

        Raises:
            ModelError: It is not known.
        """
        if name not in self._shapes:
            raise ModelError(
                f"tensor '{name}' has no static shape, expected all axes fixed",
                "fix the input's axes with --shape",
            )
        return self._shapes[name]

    def operators(self) -> Iterator[onnx.NodeProto]:
        """Yield the nodes that become operators, in order; clamps that fold away are left out."""
        for node in self.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Constant"):
                continue
            if not self.folds_away(node):
                yield node

    def folds_away(self, node: onnx.NodeProto) -> bool:
        """Tell whether a clamp is done by the operator before it."""
        if node.op_type not in CLAMPS:
            return False
        before = self.producers.get(node.input[0])
        return (
            before is not None
            and before.op_type in CLAMPABLE
            and len(self.consumers[node.input[0]]) == 1
        )

    def clamp(self, node: onnx.NodeProto) -> tuple[float, float]:
        """Return the bounds of the clamp that is part of a node; infinite without one.

        Raises:
            ModelError: A bound is computed while the model runs.
        """
        low, high = -math.inf, math.inf
        users = self.consumers.get(node.output[0], [])
        if len(users) != 1 or not self.folds_away(users[0]):
            return low, high
        if users[0].op_type == "Relu":
            return 0.0, high
        bounds = [low, high]
        for i, name in enumerate(users[0].input[1:3]):
            if name and name not in self.constants:
                raise ModelError(f"bound '{name}' of a Clip is computed while the model runs")
            bounds[i] = float(self.constants[name]) if name else bounds[i]
        return bounds[0], bounds[1]

    def before(self, name: str) -> Quantised | None:
        """Return how an operator's float input is stored; None when it is not quantised."""
        node = self.producers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        return self._parameters(node, node.input[0])

    def after(self, node: onnx.NodeProto) -> tuple[str, Quantised]:
        """Return the float name and the stored form of a node's output, clamps passed over.

        Raises:
            ModelError: No QuantizeLinear follows.
        """
        name = node.output[0]
        users = self.consumers.get(name, [])
        while len(users) == 1 and self.folds_away(users[0]):
            name = users[0].output[0]
            users = self.consumers.get(name, [])
        for user in users:
            if user.op_type == "QuantizeLinear":
                return name, self._parameters(user, user.output[0])
        raise ModelError(
            f"{node.op_type} '{node.name or node.output[0]}' has a float output",
            "the portable quantisation puts QuantizeLinear behind every operator",
        )

    def _parameters(self, node: onnx.NodeProto, stored: str) -> Quantised:
        """Return scale, zero point and axis of a Q or DQ node."""
        scale = np.atleast_1d(self.constants[node.input[1]])
        zero_point = np.atleast_1d(self.constants[node.input[2]])
        axis = int(attributes(node).get("axis", 1)) if scale.size > 1 else 0
        return Quantised(stored, scale, zero_point, axis)
