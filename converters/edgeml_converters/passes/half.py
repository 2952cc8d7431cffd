"""Half: weights and computation in float16, inputs and outputs as they were.

For GPUs and NPUs, and for processors that compute in float16; x86 processors do not, and with it
onnxruntime is slower there than without (measured: 0.74 to 0.99 times as fast). What float16 cannot
hold (above 65504) is cut to its largest number where it is stored; operators that take float32 for
some input only (scales of Resize) or that know no float16 keep float32, between casts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeml.errors import ModelError
from edgeml.tensors import Array
from edgeml_converters.passes.base import (
    FLOAT,
    OPSET13,
    SIGNATURE,
    SMALLER,
    STANDARD,
    PassContext,
    PassResult,
)
from edgeml_converters.quantizer.prepare import prepared
from edgeml_converters.source.checks import node_name

_MOST = float(np.finfo(np.float16).max)
#: Operators that keep float32: no float16 in the standard or in runtimes, or too inexact in it.
_KEEP = frozenset(
    {
        "Bernoulli",
        "Constant",
        "CumSum",
        "EyeLike",
        "GridSample",
        "MaxRoiPool",
        "Multinomial",
        "NonMaxSuppression",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Range",
        "Resize",
        "RoiAlign",
        "Upsample",
    }
)


class Half:
    """Compute in float16; see the module."""

    name = "half"
    needs = frozenset({FLOAT, OPSET13})
    promises = frozenset({SIGNATURE, SMALLER, STANDARD})

    @property
    def options(self) -> dict[str, Any]:
        """It has none."""
        return {}

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: The model is quantised already, its operator set is below 13, or it holds
                no float32 that could become float16.
        """
        ready = prepared(model)
        work = _Half(ready)
        if not work.stored:
            raise ModelError("nothing to halve: the model stores no float32 weights")
        work.run()
        onnx.checker.check_model(ready)
        note = f"{len(work.stored)} stored tensors in float16, {work.cut} values cut to its range"
        return PassResult(ready, True, (note,))


class _Half:
    """One run over one graph; the model is changed in place.

    Every float tensor becomes float16 under its own name. At the edges of the model, and where an
    operator keeps float32, casts stand between.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.cut = 0
        kinds = {t.name: t.data_type for t in self.graph.initializer}
        for value in (*self.graph.value_info, *self.graph.input, *self.graph.output):
            kinds[value.name] = value.type.tensor_type.elem_type
        self._kinds = kinds
        readers = {name for node in self.graph.node if not _keeps(node) for name in node.input}
        self.stored = [
            t
            for t in self.graph.initializer
            if t.data_type == TensorProto.FLOAT and t.name in readers
        ]

    def run(self) -> None:
        """Rewrite the graph.

        Raises:
            ModelError: It holds graphs inside nodes, or a tensor of unknown type.
        """
        self._check()
        before: list[onnx.NodeProto] = []
        after: list[onnx.NodeProto] = []
        names: dict[str, str] = {}
        for value in self.graph.input:
            if self._float(value.name):
                names[value.name] = f"{value.name}_f16"
                before.append(_cast(value.name, names[value.name], TensorProto.FLOAT16))
        for value in self.graph.output:
            if self._float(value.name):
                names[value.name] = f"{value.name}_f16"
                after.append(_cast(names[value.name], value.name, TensorProto.FLOAT))
        wide = self._store()
        made: list[onnx.NodeProto] = []
        known: dict[str, str] = dict(wide)
        for node in self.graph.node:
            made += self._kept(node, names, known) if _keeps(node) else [_retyped(node, names)]
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in (*before, *made, *after)]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        del self.graph.value_info[:]

    def _check(self) -> None:
        for node in self.graph.node:
            if any(a.HasField("g") or a.graphs for a in node.attribute):
                raise ModelError(
                    f"node '{node_name(node)}' ({node.op_type}) holds a graph of its own, which is "
                    "not halved",
                    "keep the model in float32",
                )
            for name in node.output:
                if name and not self._kinds.get(name):
                    raise ModelError(
                        f"the type of tensor '{name}' is not known, so it cannot be halved",
                        "fix the shapes of the inputs first (fix_shapes)",
                    )

    def _float(self, name: str) -> bool:
        return self._kinds.get(name) == TensorProto.FLOAT

    def _store(self) -> dict[str, str]:
        """Halve the stored tensors; return those that something reads in float32 all the same."""
        keepers = {name for node in self.graph.node if _keeps(node) for name in node.input}
        halved = {tensor.name for tensor in self.stored}
        wide: dict[str, str] = {
            t.name: t.name
            for t in self.graph.initializer
            if t.data_type == TensorProto.FLOAT and t.name not in halved
        }
        for tensor in self.stored:
            values = numpy_helper.to_array(tensor)
            if tensor.name in keepers:
                wide[tensor.name] = f"{tensor.name}_f32"
                self.graph.initializer.append(numpy_helper.from_array(values, wide[tensor.name]))
            tensor.CopyFrom(numpy_helper.from_array(self._half(values), tensor.name))
        return wide

    def _half(self, values: Array) -> Array:
        """Return values as float16; infinities stay, larger ones become the largest number."""
        over = np.isfinite(values) & (np.abs(values) > _MOST)
        self.cut += int(over.sum())
        with np.errstate(over="ignore"):
            return np.where(over, np.copysign(_MOST, values), values).astype(np.float16)

    def _kept(
        self, node: onnx.NodeProto, names: dict[str, str], known: dict[str, str]
    ) -> list[onnx.NodeProto]:
        """Return an operator that keeps float32, with the casts that it needs.

        Args:
            node: The operator.
            names: Tensors that have another name in float16.
            known: Tensors that are there in float32 -> their names there; new ones are added.
        """
        before: list[onnx.NodeProto] = []
        after: list[onnx.NodeProto] = []
        for index, name in enumerate(node.input):
            if not name or not self._float(name):
                continue
            if name not in known:
                known[name] = f"{name}_f32"
                before.append(_cast(names.get(name, name), known[name], TensorProto.FLOAT))
            node.input[index] = known[name]
        for index, name in enumerate(node.output):
            if name and self._float(name):
                known[name] = node.output[index] = f"{name}_f32"
                after.append(_cast(known[name], names.get(name, name), TensorProto.FLOAT16))
        return [*before, node, *after]


def _keeps(node: onnx.NodeProto) -> bool:
    """Tell whether an operator keeps float32."""
    return node.op_type in _KEEP or node.domain not in ("", "ai.onnx")


def _cast(source: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}_cast", to=kind)


def _retyped(node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    """Let an operator read and write float16, also where its attributes say float32."""
    for names_of in (node.input, node.output):
        for index, name in enumerate(names_of):
            names_of[index] = names.get(name, name)
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        tensor = attribute.t
        if attribute.name == "value" and tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    return node
