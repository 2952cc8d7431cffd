"""What the operators of the writer share: values with a layout, and where they are kept.

A value remembers in which order ONNX's axes are stored (``layout``: stored axis i is ONNX axis
``layout[i]``). So a Transpose only relabels, images stay channels-last from the first to the last
convolution, and a transpose is written only where an operator needs another order.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import onnx

from edgeml.errors import ModelError
from edgeml.tensors import Array
from edgeml_converters.tflite.builder import Builder
from edgeml_converters.tflite.graph import QdqGraph, Quantised, attributes

#: ONNX's N, C, H, W in the order in which TFLite stores them.
CHANNELS_LAST = (0, 2, 3, 1)
#: TFLite's activation functions that clamp, and their bounds.
_ACTIVATIONS = {"RELU": (0.0, math.inf), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}


class Value(msgspec.Struct, frozen=True):
    """A quantised activation in the file.

    Attributes:
        index: Its tensor in the file.
        shape: Its shape in ONNX's order of axes.
        layout: Stored axis i is ONNX axis ``layout[i]``.
        scale: Its scale.
        zero_point: Its zero point.
        order: For a flattened image: position in the file -> position in ONNX; None when equal.
    """

    index: int
    shape: tuple[int, ...]
    layout: tuple[int, ...]
    scale: float
    zero_point: int
    order: Array | None = None

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape in the file."""
        return tuple(self.shape[axis] for axis in self.layout)


class Context:
    """The graph that is read, the file that is built, and the values in between."""

    def __init__(self, graph: QdqGraph, builder: Builder, for_cpu: bool) -> None:
        """Start without values; ``for_cpu`` allows what pays on processors only."""
        self.graph = graph
        self.builder = builder
        self.for_cpu = for_cpu
        self.values: dict[str, Value] = {}  # by the name of the stored tensor

    def value(self, node: onnx.NodeProto, position: int) -> Value:
        """Return an input that is an activation.

        Raises:
            ModelError: It is not quantised, or a constant.
        """
        found = self.graph.before(node.input[position])
        if found is None or found.name not in self.values:
            raise unsupported(node, f"input '{node.input[position]}' is not a quantised activation")
        return self.values[found.name]

    def constant(self, node: onnx.NodeProto, position: int) -> tuple[Array, Quantised] | None:
        """Return an input that is a stored constant, with its parameters; None when it is not."""
        if position >= len(node.input) or not node.input[position]:
            return None
        found = self.graph.before(node.input[position])
        if found is None or found.name not in self.graph.constants:
            return None
        return self.graph.constants[found.name], found

    def static(self, node: onnx.NodeProto, position: int) -> Array | None:
        """Return an input that is a plain constant (axes, pads, shapes); None when absent.

        Raises:
            ModelError: It is computed while the model runs.
        """
        if position >= len(node.input) or not node.input[position]:
            return None
        name = node.input[position]
        if name not in self.graph.constants:
            raise unsupported(node, f"input '{name}' is computed while the model runs")
        return self.graph.constants[name]

    def emit(
        self, node: onnx.NodeProto, layout: tuple[int, ...], order: Array | None = None
    ) -> Value:
        """Add the tensor of a node's output (behind its clamps) and return the value."""
        name, parameters = self.graph.after(node)
        return self.add(parameters, self.graph.shape(name), layout, order)

    def activation(self, node: onnx.NodeProto) -> int:
        """Return the activation function that does a node's clamp.

        None is needed when the integers reach no further than the clamp: they saturate. They do
        reach further where the output shares its scale with other tensors (see ``Concat``).

        Raises:
            ModelError: TFLite has no activation function with these bounds.
        """
        low, high = self.graph.clamp(node)
        _, parameters = self.graph.after(node)
        scale, zero_point = float(parameters.scale[0]), int(parameters.zero_point[0])
        least, most = (-128 - zero_point) * scale, (127 - zero_point) * scale
        below, above = least < low - scale / 2, most > high + scale / 2
        kinds = self.builder.schema.ActivationFunctionType
        if not below and not above:
            return int(kinds.NONE)
        for name, (start, end) in _ACTIVATIONS.items():
            exact = start == low or (not below and start <= least)
            if exact and (end == high or (not above and end >= most)):
                return int(getattr(kinds, name))
        raise unsupported(node, f"clip to [{low}, {high}] of values that share a wider scale")

    def add(
        self,
        parameters: Quantised,
        shape: tuple[int, ...],
        layout: tuple[int, ...],
        order: Array | None = None,
    ) -> Value:
        """Add an activation's tensor to the file."""
        index = self.builder.tensor(
            parameters.name,
            tuple(shape[axis] for axis in layout),
            "int8",
            scale=parameters.scale,
            zero_point=parameters.zero_point,
        )
        value = Value(
            index,
            shape,
            layout,
            float(parameters.scale[0]),
            int(parameters.zero_point[0]),
            order,
        )
        self.values[parameters.name] = value
        return value

    def alias(self, node: onnx.NodeProto, value: Value) -> None:
        """Let a node's output be a value that is there already (same scale and zero point)."""
        _, parameters = self.graph.after(node)
        self.values[parameters.name] = value

    def stored_as(self, value: Value, layout: tuple[int, ...]) -> Value:
        """Return the value in another order of axes, with a TRANSPOSE when it is not free."""
        if value.layout == layout:
            return value
        perm = tuple(value.layout.index(axis) for axis in layout)
        moved = msgspec.structs.replace(value, layout=layout)
        if same_order(value.stored, perm):
            return self._reshaped(value, moved)
        name = f"transpose_{len(self.values)}_{value.index}"
        index = self.like(name, moved.stored, value)
        axes = self.builder.integers(name + "_perm", np.array(perm))
        self.builder.operator("TRANSPOSE", [value.index, axes], [index], "TransposeOptions")
        return msgspec.structs.replace(moved, index=index)

    def _reshaped(self, value: Value, moved: Value) -> Value:
        """Only axes of length 1 move: the bytes are the same, a RESHAPE will do."""
        if value.stored == moved.stored:
            return moved
        name = f"reshape_{len(self.values)}_{value.index}"
        index = self.like(name, moved.stored, value)
        self.reshape(value.index, index, moved.stored, name)
        return msgspec.structs.replace(moved, index=index)

    def like(self, name: str, shape: tuple[int, ...], value: Value) -> int:
        """Add a tensor with the parameters of a value."""
        return self.builder.tensor(
            name,
            shape,
            "int8",
            scale=np.array([value.scale]),
            zero_point=np.array([value.zero_point]),
        )

    def reshape(self, source: int, target: int, shape: tuple[int, ...], name: str) -> None:
        """Write a RESHAPE."""
        dims = np.array(shape, np.int32)
        wanted = self.builder.integers(name + "_shape", dims)
        self.builder.operator(
            "RESHAPE", [source, wanted], [target], "ReshapeOptions", newShape=dims
        )

    def pad(self, value: Value, pads: list[tuple[int, int]], fill: int | None, name: str) -> Value:
        """Write a PAD over the stored axes.

        Args:
            value: What to pad.
            pads: (before, after) per stored axis.
            fill: The stored integer to fill with; None for the zero point.
            name: Prefix of the new tensors.
        """
        stored = tuple(n + a + b for n, (a, b) in zip(value.stored, pads, strict=True))
        shape = tuple(stored[value.layout.index(axis)] for axis in range(len(stored)))
        index = self.like(name, stored, value)
        amounts = self.builder.integers(name + "_amounts", np.array(pads))
        if fill is None:
            self.builder.operator("PAD", [value.index, amounts], [index], "PadOptions")
        else:
            filler = self.builder.tensor(
                name + "_fill",
                (1,),
                "int8",
                scale=np.array([value.scale]),
                zero_point=np.array([value.zero_point]),
                data=np.array([fill], np.int8),
            )
            self.builder.operator("PADV2", [value.index, amounts, filler], [index], "PadV2Options")
        return msgspec.structs.replace(value, index=index, shape=shape)

    def graph_attributes(self, node: onnx.NodeProto) -> dict[str, Any]:
        """Return a node's attributes."""
        return attributes(node)


def same_order(stored: tuple[int, ...], perm: tuple[int, ...]) -> bool:
    """Tell whether permuting the axes leaves the bytes in the same order."""
    moving = [axis for axis in perm if stored[axis] != 1]
    return moving == sorted(moving)


def unsupported(node: onnx.NodeProto, reason: str) -> ModelError:
    """Return the error for a node that the writer cannot carry over."""
    where = node.name or node.output[0]
    return ModelError(
        f"{node.op_type} '{where}' has no int8 TFLite form: {reason}",
        "leave the TFLite profiles out, or change this part of the model",
    )
