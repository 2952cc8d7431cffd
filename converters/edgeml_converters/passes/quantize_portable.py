"""The portable recipe: one full-int8 QDQ model that every runtime and compiler takes.

Behind every operator's output stands QuantizeLinear and DequantizeLinear, weights and biases are
stored integers, and the scales keep the rules of TFLite (see ``portable.parameters``). So the same
file runs in onnxruntime, OpenVINO and QNN as it is, and becomes int8 TFLite by our writer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeml.errors import ModelError, UsageError, nearest
from edgeml_converters.passes.base import (
    CALIBRATION,
    INT8,
    SIGNATURE,
    STANDARD,
    PassContext,
    PassResult,
)
from edgeml_converters.passes.portable import parameters as rules
from edgeml_converters.quantizer.calibrate import observe
from edgeml_converters.quantizer.parameters import Activation
from edgeml_converters.quantizer.prepare import infer, light
from edgeml_converters.quantizer.ranges import METHODS
from edgeml_converters.tflite.graph import CLAMPABLE, CLAMPS, attributes
from edgeml_converters.tflite.writer import HANDLERS

_DENSE = frozenset({"Gemm", "MatMul"})
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul"})


class QuantizePortable:
    """Quantise the whole model to int8, once, for every consumer."""

    name = "quantize_portable"
    needs: frozenset[str] = frozenset({CALIBRATION})
    promises: frozenset[str] = frozenset({SIGNATURE, STANDARD, INT8})

    def __init__(self, calibration: str = "minmax") -> None:
        """Choose how ranges are found; the scheme is fixed by its consumers.

        Args:
            calibration: ``minmax``, ``percentile``, ``entropy`` or ``mse``.

        Raises:
            UsageError: There is no such calibration.
        """
        if calibration not in METHODS:
            raise UsageError(f"unknown calibration '{calibration}'", nearest(calibration, METHODS))
        self._calibration = calibration

    @property
    def options(self) -> dict[str, Any]:
        """How ranges are found."""
        return {"calibration": self._calibration}

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: There is no calibration data, or an operator that is not in the portable
                set; the message names the node.
        """
        if not context.calibration:
            raise ModelError(
                "the portable int8 recipe needs calibration data", "give evaluation data by --data"
            )
        rewritten = onnx.ModelProto()
        rewritten.CopyFrom(model)
        _divisions_to_products(rewritten)
        _whole_pools_to_means(rewritten)
        _check(rewritten)
        work = _Rewrite(rewritten, context, self._calibration)
        work.run()
        onnx.checker.check_model(rewritten, full_check=True)
        note = f"{len(work.stored)} activations, ranges from {work.samples} samples"
        return PassResult(rewritten, True, (note,))


def _check(model: onnx.ModelProto) -> None:
    """Refuse what the portable set does not hold."""
    for node in model.graph.node:
        if node.op_type not in HANDLERS and node.op_type != "Constant":
            raise ModelError(
                f"operator {node.op_type} (node '{node.name or node.output[0]}') is not in the "
                "portable int8 set",
                "this model gets no full-int8 TFLite; other recipes are not concerned",
            )


def _divisions_to_products(model: onnx.ModelProto) -> None:
    """Turn ``x / constant`` into ``x * (1 / constant)``: int8 kernels know no division."""
    constants = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Div" and node.input[1] in constants:
            values = numpy_helper.to_array(constants[node.input[1]])
            if values.dtype != np.float32 or not np.all(values):
                continue
            name = f"{node.output[0]}_reciprocal"
            model.graph.initializer.append(numpy_helper.from_array(1 / values, name))
            node.op_type = "Mul"
            node.input[1] = name


def _whole_pools_to_means(model: onnx.ModelProto) -> None:
    """Turn an AveragePool over the whole image into GlobalAveragePool.

    The average of many values has a smaller range than these. TFLite's AVERAGE_POOL_2D must store
    it by the scale of its input all the same; MEAN has a scale of its own.
    """
    pools = [node for node in model.graph.node if node.op_type == "AveragePool"]
    if not pools:
        return
    infos = {v.name: v for v in [*model.graph.input, *infer(light(model))]}
    for node in pools:
        known = attributes(node)
        info = infos.get(node.input[0])
        if info is None or any(known.get("pads", ())):
            continue
        dims = [d.dim_value for d in info.type.tensor_type.shape.dim]
        if len(dims) == 4 and list(known["kernel_shape"]) == dims[2:]:
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]


class _Rewrite:
    """One run over one graph."""

    def __init__(self, model: onnx.ModelProto, context: PassContext, calibration: str) -> None:
        self.graph = model.graph
        self.constants = {i.name: numpy_helper.to_array(i) for i in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant" and "value" in attributes(node):
                self.constants[node.output[0]] = numpy_helper.to_array(attributes(node)["value"])
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.samples = len(next(iter(context.calibration.values())))
        self.stored: dict[str, Activation] = {}
        self._parameters(model, context, calibration)

    def _clamped(self, node: onnx.NodeProto) -> bool:
        """Tell whether a node's output goes only into a clamp that saturation does for free."""
        users = self.users.get(node.output[0], [])
        outputs = {o.name for o in self.graph.output}
        return (
            node.op_type in CLAMPABLE
            and len(users) == 1
            and users[0].op_type in CLAMPS
            and self._clamp_holds_zero(users[0])
            and node.output[0] not in outputs
        )

    def _clamp_holds_zero(self, node: onnx.NodeProto) -> bool:
        """Tell whether 0 lies within a clamp's bounds: only then does saturation equal it."""
        if node.op_type == "Relu":
            return True
        bounds = [
            float(self.constants[name]) if name else None for name in [*node.input[1:], "", ""][:2]
        ]
        low, high = bounds
        return (low is None or low <= 0) and (high is None or high >= 0)

    def _parameters(self, model: onnx.ModelProto, context: PassContext, calibration: str) -> None:
        """Choose the parameters of every activation that is stored."""
        names = [i.name for i in self.graph.input if i.name not in self.constants]
        groups = rules.Groups()
        fixed: dict[str, tuple[float, int]] = {}
        for node in self.graph.node:
            if node.op_type == "Constant" or self._clamped(node):
                continue
            output = node.output[0]
            names.append(output)
            if node.op_type in rules.MOVERS:
                groups.join(node.input[0], output)
            if node.op_type in rules.JOINERS:
                for name in node.input:
                    groups.join(output, name)
            if node.op_type in rules.FIXED:
                fixed[output] = rules.FIXED[node.op_type]
        observed = observe(model, names, context.calibration, calibration, context.threads)
        merged = groups.ranges(observed)
        pinned = {groups.find(name): value for name, value in fixed.items()}
        for name in names:
            group = groups.find(name)
            if group in pinned:
                self.stored[name] = Activation(*pinned[group])
            elif group in merged:
                self.stored[name] = rules.activation(*merged[group])
            else:
                raise ModelError(f"tensor '{name}' is not float32, expected float activations")

    def run(self) -> None:
        """Rewrite the graph."""
        nodes: list[onnx.NodeProto] = []
        outputs = {o.name for o in self.graph.output}
        for info in self.graph.input:
            if info.name in self.stored:
                nodes += self._store(info.name, info.name, f"{info.name}_dq")
        for node in self.graph.node:
            nodes += self._operator(node)
            name = node.output[0]
            if node.op_type == "Constant" or name not in self.stored:
                continue
            if name in outputs:
                node.output[0] = f"{name}_f"
                nodes += self._store(name, f"{name}_f", name)
            else:
                nodes += self._store(name, name, f"{name}_dq")
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        del self.graph.value_info[:]
        used = {name for node in nodes for name in node.input}
        kept = [i for i in self.graph.initializer if i.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _operator(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return a node with its inputs stored, behind the nodes that dequantise constants."""
        before: list[onnx.NodeProto] = []
        weighted = node.op_type == "Conv" or node.op_type in _DENSE
        original = list(node.input)
        for position, name in enumerate(original):
            if name in self.stored:
                back = f"{name}_dq" if name not in {o.name for o in self.graph.output} else name
                node.input[position] = back
            elif weighted and position == 1 and name in self.constants:
                before += self._weights(node, original)
            elif node.op_type in _ELEMENTWISE and name in self.constants:
                before += self._constant(node, position, name)
        return [*before, node]

    def _store(self, name: str, source: str, back: str) -> list[onnx.NodeProto]:
        """Return Q and DQ behind a float tensor."""
        found = self.stored[name]
        parameters = [f"{name}_scale", f"{name}_zero_point"]
        self._add(parameters[0], np.array(found.scale, np.float32))
        self._add(parameters[1], np.array(found.zero_point, np.int8))
        stored = f"{name}_q"
        return [
            helper.make_node("QuantizeLinear", [source, *parameters], [stored], name=f"{name}_Q"),
            helper.make_node("DequantizeLinear", [stored, *parameters], [back], name=f"{name}_DQ"),
        ]

    def _weights(self, node: onnx.NodeProto, names: list[str]) -> list[onnx.NodeProto]:
        """Store the weights and the bias of a convolution or a dense layer."""
        if names[0] not in self.stored:
            raise ModelError(f"input of '{node.name or node.output[0]}' is a constant")
        scale = self.stored[names[0]].scale
        array = np.asarray(self.constants[names[1]], np.float32)
        offset = None
        if len(names) > 2 and names[2]:
            if names[2] not in self.constants:
                raise ModelError(f"bias of '{node.name or node.output[0]}' is not constant")
            offset = np.asarray(self.constants[names[2]], np.float32).ravel()
        axis = 0 if node.op_type == "Conv" else None
        stored = rules.weights(array, axis, scale, offset)
        prefix = f"{node.name or node.output[0]}_weights"
        nodes = [self._dequantised(prefix, stored.values, stored.scale, axis)]
        node.input[1] = nodes[0].output[0]
        if offset is not None:
            values, scales = rules.bias(offset, scale, stored.scale)
            back = self._dequantised(
                f"{node.name or node.output[0]}_bias", values, scales, 0 if axis == 0 else None
            )
            node.input[2] = back.output[0]
            nodes.append(back)
        return nodes

    def _constant(self, node: onnx.NodeProto, position: int, name: str) -> list[onnx.NodeProto]:
        """Store a constant operand of Add, Sub or Mul."""
        array = np.asarray(self.constants[name], np.float32)
        found = rules.activation(float(array.min()), float(array.max()))
        stored = np.clip(np.rint(array / found.scale) + found.zero_point, -128, 127)
        prefix = f"{node.name or node.output[0]}_operand{position}"
        back = self._dequantised(
            prefix,
            stored.astype(np.int8),
            np.array([found.scale], np.float32),
            None,
            found.zero_point,
        )
        node.input[position] = back.output[0]
        return [back]

    def _dequantised(
        self,
        prefix: str,
        values: np.ndarray,
        scale: np.ndarray,
        axis: int | None,
        zero_point: int = 0,
    ) -> onnx.NodeProto:
        """Add a stored constant and return the DequantizeLinear node over it."""
        per_channel = axis is not None
        self._add(f"{prefix}_q", values)
        self._add(f"{prefix}_scale", scale if per_channel else scale.reshape(()))
        zero = np.full(scale.shape if per_channel else (), zero_point, values.dtype)
        self._add(f"{prefix}_zero_point", zero)
        node = helper.make_node(
            "DequantizeLinear",
            [f"{prefix}_q", f"{prefix}_scale", f"{prefix}_zero_point"],
            [f"{prefix}_dq"],
            name=f"{prefix}_DQ",
        )
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        return node

    def _add(self, name: str, array: np.ndarray) -> None:
        """Add an initializer."""
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
