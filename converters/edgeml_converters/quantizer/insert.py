"""Insert: writes QuantizeLinear and DequantizeLinear nodes where a placement says so.

Names are made of the tensors' and nodes' own names, so the same model gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeml.tensors import Array
from edgeml_converters.quantizer import parameters as rules
from edgeml_converters.quantizer.graph import Index
from edgeml_converters.quantizer.parameters import Activation, Range
from edgeml_converters.quantizer.placement import Placement
from edgeml_converters.quantizer.weighted import bias_of, weights_of


def insert(
    model: onnx.ModelProto,
    index: Index,
    placement: Placement,
    ranges: Mapping[str, Range],
    *,
    scheme: str = "u8s8",
    per_channel: bool = True,
    reduce_range: bool = False,
) -> onnx.ModelProto:
    """Return the quantised model.

    Args:
        model: A prepared model; not changed.
        index: Of that model.
        placement: What is stored in 8 bits.
        ranges: Of every tensor of the placement; what has none stays float.
        scheme: A key of ``parameters.STORED``.
        per_channel: One weight scale per output channel.
        reduce_range: Weights of 7 bits.
    """
    work = _Insertion(model, index, placement, ranges, scheme)
    work.per_channel, work.reduce_range = per_channel, reduce_range
    return work.run()


class _Insertion:
    """One run over one graph."""

    def __init__(
        self,
        model: onnx.ModelProto,
        index: Index,
        placement: Placement,
        ranges: Mapping[str, Range],
        scheme: str,
    ) -> None:
        self.model, self.index, self.placement, self.scheme = model, index, placement, scheme
        self.per_channel, self.reduce_range = True, False
        self.found = _parameters(placement, ranges, scheme)
        self.nodes: dict[str, onnx.NodeProto] = {}
        self.taken = {n for node in model.graph.node for n in (*node.input, *node.output)}
        self.taken |= set(index.nodes)
        self.added: list[onnx.TensorProto] = []
        self.before: dict[str, list[onnx.NodeProto]] = {}
        self.pairs: dict[str, list[onnx.NodeProto]] = {}
        self.shared: dict[tuple[str, object], str] = {}

    def run(self) -> onnx.ModelProto:
        """Write the new model."""
        for node in self.model.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            self.nodes[node.name] = copy
        for name in sorted(self.found):
            self._activation(name)
        for name in sorted(self.placement.weights):
            self._weights(name)
        for name in sorted(self.placement.constants):
            self._operand(name)
        return self._assemble()

    def _assemble(self) -> onnx.ModelProto:
        graph = self.model.graph
        ordered: list[onnx.NodeProto] = []
        for info in graph.input:
            ordered += self.pairs.get(info.name, [])
        for node in graph.node:
            ordered += [*self.before.get(node.name, []), self.nodes[node.name]]
            for name in node.output:
                ordered += self.pairs.get(name, [])
        used = {name for node in ordered for name in node.input} | self.index.captured
        used |= self.index.outputs
        made = onnx.ModelProto(
            ir_version=self.model.ir_version,
            producer_name=self.model.producer_name,
            producer_version=self.model.producer_version,
            domain=self.model.domain,
            model_version=self.model.model_version,
            doc_string=self.model.doc_string,
        )
        made.opset_import.extend(self.model.opset_import)
        made.metadata_props.extend(self.model.metadata_props)
        made.functions.extend(self.model.functions)
        made.graph.name = graph.name
        made.graph.doc_string = graph.doc_string
        made.graph.node.extend(ordered)
        made.graph.input.extend(graph.input)
        made.graph.output.extend(graph.output)
        made.graph.sparse_initializer.extend(graph.sparse_initializer)
        kept = [i for i in graph.initializer if i.name in used]
        made.graph.initializer.extend([*kept, *self.added])
        return made

    def _activation(self, name: str) -> None:
        """Put a pair behind a tensor, and let its readers read from it."""
        readers = self.placement.readers[name]
        found = self.found[name]
        back = self._new(f"{name}_dequantized")
        source = name
        for use in self.index.users.get(name, []):
            if readers is None or use in readers:
                self.nodes[use.node].input[use.position] = back
        if readers is None and (name in self.index.outputs or name in self.index.captured):
            # The pair takes over the name that is read from outside.
            source = self._new(f"{name}_float")
            maker = self.nodes[self.index.producers[name]]
            maker.output[list(maker.output).index(name)] = source
            for use in self.index.users.get(name, []):
                self.nodes[use.node].input[use.position] = name
            back = name
        kind = rules.STORED[self.scheme][0]
        scale = self._add(f"{name}_scale", np.array(found.scale, np.float32))
        zero = self._add(f"{name}_zero_point", np.array(found.zero_point, kind))
        stored = self._new(f"{name}_quantized")
        self.pairs[name] = [
            self._node("QuantizeLinear", [source, scale, zero], stored, f"{name}_QuantizeLinear"),
            self._node("DequantizeLinear", [stored, scale, zero], back, f"{name}_DequantizeLinear"),
        ]

    def _weights(self, name: str) -> None:
        """Store the weights and the bias of a node."""
        found = self.placement.weights[name]
        node = self.nodes[name]
        original = self.index.nodes[name]
        source = self.found.get(original.input[0])
        if source is None:
            return
        bias = bias_of(found, self.index)
        axis = found.axis if self.per_channel else None
        in_bias = bias is not None and not self.placement.float_bias
        stored = rules.weights(
            weights_of(found, self.index),
            axis,
            reduce_range=self.reduce_range,
            input_scale=source.scale if in_bias else 0.0,
            bias=bias,
        )
        key = (original.input[1], axis, found.alpha, source.scale if in_bias else 0.0)
        tensor = original.input[1]
        node.input[1] = self._dequantised(tensor, stored.values, stored.scale, axis, name, key)
        if found.alpha != 1.0 or found.beta != 1.0:
            kept = [a for a in node.attribute if a.name not in ("alpha", "beta")]
            attributes = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
            del node.attribute[:]
            node.attribute.extend(attributes)
        if found.bias is None or bias is None:
            return
        if not in_bias:
            if found.beta != 1.0:
                node.input[found.bias] = self._add(f"{name}_bias", bias)
            return
        scale = np.broadcast_to(stored.scale, bias.shape) if stored.scale.ndim else stored.scale
        values, scales = rules.bias(bias, source.scale, np.asarray(scale, order="C"))
        tensor = original.input[found.bias]
        node.input[found.bias] = self._dequantised(
            tensor, values, scales, 0 if scales.ndim else None, name, None
        )

    def _operand(self, name: str) -> None:
        """Store a constant operand."""
        array = np.asarray(self.index.constant(name), np.float32)
        if not array.size or not np.isfinite(array).all():
            return
        found = rules.activation(float(array.min()), float(array.max()), self.scheme)
        values = rules.stored(array, found, self.scheme)
        for use in sorted(self.placement.constants[name]):
            node = self.nodes[use.node]
            scale = np.array(found.scale, np.float32)
            node.input[use.position] = self._dequantised(
                name, values, scale, None, use.node, ("operand",), found.zero_point
            )

    def _dequantised(
        self,
        tensor: str,
        values: Array,
        scale: Array,
        axis: int | None,
        node: str,
        key: object,
        zero_point: int = 0,
    ) -> str:
        """Add a stored constant and the node over it; return what the node writes.

        Equal keys of one tensor share what is stored; each node gets a DequantizeLinear of its
        own, because runtimes fuse only those that have one reader.
        """
        known = self.shared.get((tensor, key)) if key is not None else None
        if known is None:
            known = self._new(f"{tensor}_quantized")
            self._append(known, values)
            self._append(f"{known}_scale", scale)
            self._append(f"{known}_zero_point", np.full(scale.shape, zero_point, values.dtype))
            if key is not None:
                self.shared[(tensor, key)] = known
        back = self._new(f"{tensor}_dequantized")
        made = self._node(
            "DequantizeLinear",
            [known, f"{known}_scale", f"{known}_zero_point"],
            back,
            f"{back}_DequantizeLinear",
        )
        if axis is not None:
            made.attribute.append(helper.make_attribute("axis", axis))
        self.before.setdefault(node, []).append(made)
        return back

    def _node(self, op: str, inputs: list[str], output: str, name: str) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], name=self._new(name))

    def _new(self, name: str) -> str:
        """Return a name that nothing has yet, and take it."""
        free, number = name, 1
        while free in self.taken:
            number += 1
            free = f"{name}_{number}"
        self.taken.add(free)
        return free

    def _add(self, name: str, array: Array) -> str:
        """Store a tensor under a free name; return it."""
        free = self._new(name)
        self._append(free, array)
        return free

    def _append(self, name: str, array: Array) -> None:
        self.added.append(numpy_helper.from_array(np.asarray(array, order="C"), name))


def _parameters(
    placement: Placement, ranges: Mapping[str, Range], scheme: str
) -> dict[str, Activation]:
    """Return the parameters of every tensor of a placement that has a range.

    Tensors of one group get those of the range of them all; the others of a group count too,
    when they have a range.
    """
    merged: dict[str, Range] = {}
    for name, (low, high) in ranges.items():
        group = placement.groups.find(name)
        before = merged.get(group, (low, high))
        merged[group] = (min(before[0], low), max(before[1], high))
    return {
        name: rules.activation(*merged[placement.groups.find(name)], scheme)
        for name in placement.readers
        if name in ranges
    }
