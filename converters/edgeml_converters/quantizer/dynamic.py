"""Dynamic quantisation: matrix products in 8 bits, with the range of the activation of each run.

For each product: DynamicQuantizeLinear (one per activation), MatMulInteger, Cast, Mul by both
scales, and Add of the bias where there is one. These are standard operators, in the very form that
onnxruntime fuses into DynamicQuantizeMatMul or MatMulIntegerToFloat.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeml.tensors import Array
from edgeml_converters.quantizer import parameters as rules
from edgeml_converters.quantizer.graph import Index, attribute
from edgeml_converters.quantizer.weighted import Weighted, bias_of, weighted, weights_of


def write_dynamic(
    model: onnx.ModelProto,
    *,
    per_channel: bool = True,
    reduce_range: bool = False,
    exclude: Iterable[str] = (),
) -> tuple[onnx.ModelProto, int]:
    """Return the model with its products of stored weights in 8 bits, and how many these are.

    Args:
        model: A prepared model; not changed.
        per_channel: One weight scale per output channel.
        reduce_range: Weights of 7 bits.
        exclude: Nodes that stay float.
    """
    work = _Dynamic(Index(model), per_channel, reduce_range)
    left_out = frozenset(exclude)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        found = None
        if node.op_type in ("MatMul", "Gemm") and node.name not in left_out:
            found = _fits(node, work.index)
        nodes += work.product(node, found) if found else [node]
    if not work.products:
        return model, 0
    used = {name for node in nodes for name in node.input}
    used |= work.index.captured | work.index.outputs
    made = onnx.ModelProto()
    made.CopyFrom(model)
    kept = [i for i in model.graph.initializer if i.name in used]
    for field in ("node", "initializer", "value_info"):
        made.graph.ClearField(field)
    made.graph.node.extend(nodes)
    made.graph.initializer.extend([*kept, *work.stored.values()])
    return made, work.products


def _fits(node: onnx.NodeProto, index: Index) -> Weighted | None:
    """Return how a product's weights are stored, when both sides are float32."""
    found = weighted(node, index)
    if found is None or not index.is_float(node.input[0]) or not index.is_float(node.output[0]):
        return None
    return found


class _Dynamic:
    """One run over one graph."""

    def __init__(self, index: Index, per_channel: bool, reduce_range: bool) -> None:
        self.index, self.per_channel, self.reduce_range = index, per_channel, reduce_range
        self.stored: dict[str, onnx.TensorProto] = {}
        self.quantised: set[str] = set()
        self.products = 0
        self.taken = {*index.nodes, *index.producers, *index.users, *index.outputs}
        self.names: dict[str, str] = {}

    def product(self, node: onnx.NodeProto, found: Weighted) -> list[onnx.NodeProto]:
        """Return what stands for a product."""
        self.products += 1
        source, output = node.input[0], node.output[0]
        nodes = self._activation(source)
        weights, scale, zero = self._weights(node, found)
        bias = bias_of(found, self.index)
        integer, real = self._new(f"{output}_integer"), self._new(f"{output}_cast")
        scales = self._new(f"{output}_scales")
        total = self._new(f"{output}_product") if bias is not None else output

        def step(op: str, inputs: list[str], made: str, name: str) -> onnx.NodeProto:
            return helper.make_node(op, inputs, [made], name=self._new(name))

        stored, its_scale, its_zero = (self.names[f"{source}/{i}"] for i in range(3))
        cast = step("Cast", [integer], real, f"{node.name}_Cast")
        cast.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
        # The scales come first: where onnxruntime fuses, it looks for this order of inputs.
        nodes += [
            step(
                "MatMulInteger", [stored, weights, its_zero, zero], integer, f"{node.name}_MatMul"
            ),
            cast,
            step("Mul", [its_scale, scale], scales, f"{node.name}_scales_Mul"),
            step("Mul", [real, scales], total, f"{node.name}_Mul"),
        ]
        if bias is not None:
            name = self._store(f"{output}_bias", bias)
            nodes.append(step("Add", [total, name], output, f"{node.name}_Add"))
        return nodes

    def _activation(self, source: str) -> list[onnx.NodeProto]:
        """Return the node that quantises an activation, unless it is there already."""
        if source in self.quantised:
            return []
        self.quantised.add(source)
        names = [self._new(f"{source}_{part}") for part in ("quantized", "scale", "zero_point")]
        self.names.update({f"{source}/{i}": name for i, name in enumerate(names)})
        name = self._new(f"{source}_DynamicQuantizeLinear")
        return [helper.make_node("DynamicQuantizeLinear", [source], names, name=name)]

    def _weights(self, node: onnx.NodeProto, found: Weighted) -> tuple[str, str, str]:
        """Store weights as [k, n]; return the names of values, scale and zero point."""
        transposed = bool(attribute(node, "transB", 0))
        axis = found.axis if self.per_channel else None
        key = f"{node.input[1]}/{transposed}/{axis}/{found.alpha}"
        if key not in self.names:
            array = weights_of(found, self.index)
            made = rules.weights(array, axis, reduce_range=self.reduce_range)
            values = made.values.T if transposed else made.values
            base = self._new(f"{node.input[1]}_quantized")
            self.names[key] = base
            self._store_as(base, np.asarray(values, order="C"))
            self._store_as(f"{base}_scale", made.scale)
            self._store_as(f"{base}_zero_point", np.zeros(made.scale.shape, np.int8))
        base = self.names[key]
        return base, f"{base}_scale", f"{base}_zero_point"

    def _store(self, name: str, array: Array) -> str:
        free = self._new(name)
        self._store_as(free, array)
        return free

    def _store_as(self, name: str, array: Array) -> None:
        self.stored[name] = numpy_helper.from_array(array, name)

    def _new(self, name: str) -> str:
        """Return a name that nothing has yet, and take it."""
        free, number = name, 1
        while free in self.taken:
            number += 1
            free = f"{name}_{number}"
        self.taken.add(free)
        return free
