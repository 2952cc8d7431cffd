"""Dense: a product with stored weights and the sum of its bias become one Gemm.

onnxruntime makes that of them itself, after it has looked for 8-bit products, and then the bias
is float and the product with it. As Gemm the bias is stored too, and QGemm computes both. A Gemm
has two axes, so a Reshape goes before and behind, which copies nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeml_converters.quantizer.graph import Index


def merge_biases(model: onnx.ModelProto, exclude: Iterable[str] = ()) -> onnx.ModelProto:
    """Return a model in which every MatMul of stored weights that can takes its bias along.

    Args:
        model: A prepared model; not changed.
        exclude: Nodes that are left as they are.
    """
    index = Index(model)
    work = _Merge(index, frozenset(exclude))
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes += work.nodes_for(node)
    if not work.dropped:
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(work.stored)
    made.graph.value_info.extend(work.infos)
    return made


class _Merge:
    """One run over one graph."""

    def __init__(self, index: Index, exclude: frozenset[str]) -> None:
        self.index, self.exclude = index, exclude
        self.dropped: set[str] = set()
        self.stored: list[onnx.TensorProto] = []
        self.infos: list[onnx.ValueInfoProto] = []
        self.flat: dict[str, str] = {}
        self.taken = {*index.nodes, *index.producers, *index.users}

    def nodes_for(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return what stands for a node."""
        if node.name in self.dropped:
            return []
        found = self._bias(node)
        if found is None:
            return [node]
        total, bias = found
        shape = self.index.shape(node.input[0]) or ()
        if len(shape) != 2 and sum(n < 0 for n in shape[:-1]) > 1:
            return [node]
        self.dropped.add(total.name)
        size = self.index.constant_shape(node.input[1])[1]
        bias_name = self._store(f"{bias}_flat", self.index.constant(bias).reshape(-1))
        weights = node.input[1]
        if len(shape) == 2:
            inputs = [node.input[0], weights, bias_name]
            return [helper.make_node("Gemm", inputs, [total.output[0]], name=node.name)]
        before = self._flattened(node.input[0], shape)
        product = self._new(f"{total.output[0]}_rows")
        self.infos.append(helper.make_tensor_value_info(product, TensorProto.FLOAT, [None, size]))
        goal = np.array([*shape[:-1], size], np.int64)
        back = self._store(f"{total.output[0]}_shape", goal)
        return [
            *before,
            helper.make_node(
                "Gemm", [self.flat[node.input[0]], weights, bias_name], [product], name=node.name
            ),
            helper.make_node("Reshape", [product, back], [total.output[0]], name=total.name),
        ]

    def _bias(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, str] | None:
        """Return the Add behind a product and the stored bias that it adds, if it is like that."""
        index = self.index
        if node.op_type != "MatMul" or node.domain or node.name in self.exclude:
            return None
        if not index.is_constant(node.input[1]) or index.is_constant(node.input[0]):
            return None
        shape = index.constant_shape(node.input[1])
        total = index.only_reader(node.output[0])
        if len(shape) != 2 or total is None or total.op_type != "Add" or total.domain:
            return None
        if total.name in self.exclude or not index.is_float(node.input[0]):
            return None
        bias = total.input[1] if total.input[0] == node.output[0] else total.input[0]
        if not index.is_constant(bias) or not index.is_float(bias):
            return None
        dims = index.constant_shape(bias)
        rank = len(index.shape(node.input[0]) or ())
        fits = bool(dims) and dims[-1] == shape[1] == int(np.prod(dims)) and len(dims) <= rank
        return (total, bias) if fits and rank >= 2 else None

    def _flattened(self, name: str, shape: tuple[int, ...]) -> list[onnx.NodeProto]:
        """Return the Reshape of a tensor to rows, unless there is one already."""
        if name in self.flat:
            return []
        rows = self._new(f"{name}_rows")
        self.flat[name] = rows
        size = shape[-1] if shape[-1] > 0 else None
        self.infos.append(helper.make_tensor_value_info(rows, TensorProto.FLOAT, [None, size]))
        goal = self._store(f"{rows}_shape", np.array([-1, shape[-1]], np.int64))
        return [
            helper.make_node("Reshape", [name, goal], [rows], name=self._new(f"{rows}_Reshape"))
        ]

    def _store(self, name: str, array: np.ndarray) -> str:
        free = self._new(name)
        self.stored.append(numpy_helper.from_array(array, free))
        return free

    def _new(self, name: str) -> str:
        """Return a name that nothing has yet, and take it."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name
