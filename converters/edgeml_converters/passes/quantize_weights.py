"""QuantizeWeights: weights stored in 8 bits, everything computed in float. Needs no data.

Two forms. ``qdq``: int8 weights behind DequantizeLinear, one scale per output channel, which any
runtime reads. OpenVINO keeps them packed in its matrix products. onnxruntime would unpack those of
convolutions in every run and turn products into MatMulNBits, which is slower than float, unless its
option ``session.disable_quant_qdq`` is 1: then it unpacks all once, when it loads the model, and
only the file is smaller. ``nbits``: MatMulNBits at once, which stay packed in memory too, in blocks
along the input channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper

from edgeml.errors import ModelError, UsageError, nearest
from edgeml.tensors import Array
from edgeml_converters.layers.graph import View, Weights
from edgeml_converters.passes.base import (
    FLOAT,
    INT8,
    OPSET13,
    SIGNATURE,
    SMALLER,
    PassContext,
    PassResult,
)
from edgeml_converters.quantizer.prepare import prepared

_FORMS = frozenset({"qdq", "nbits"})
#: Smaller weights stay float: a scale and a node each are not worth it.
_LEAST_VALUES = 256
_DOMAIN = "com.microsoft"


class QuantizeWeights:
    """Store weights in 8 bits; see the module."""

    name = "quantize_weights"
    needs = frozenset({FLOAT, OPSET13})
    promises = frozenset({SIGNATURE, INT8, SMALLER})

    def __init__(
        self,
        form: str = "qdq",
        ops: Iterable[str] = (),
        block: int = 32,
        exclude: Iterable[str] = (),
    ) -> None:
        """Choose the form.

        Args:
            form: ``qdq`` or ``nbits``.
            ops: Operators whose weights are quantised; by default Conv, ConvTranspose, Gemm,
                MatMul and Gather for ``qdq``, and MatMul for ``nbits``, which knows no other.
            block: Input channels that share a scale, for ``nbits``: a power of 2, 16 or more.
            exclude: Names of nodes whose weights stay float.

        Raises:
            UsageError: An option has a value that it cannot have.
        """
        if form not in _FORMS:
            raise UsageError(f"unknown form '{form}' of weights", nearest(form, _FORMS))
        if block < 16 or block & (block - 1):
            raise UsageError(f"block is {block}, expected a power of 2, 16 or more")
        known = ("MatMul",) if form == "nbits" else (
            "Conv", "ConvTranspose", "Gather", "Gemm", "MatMul"
        )  # fmt: skip
        self._ops = tuple(sorted(ops)) or known
        for op in self._ops:
            if op not in known:
                raise UsageError(
                    f"weights of {op} cannot be quantised as {form}", f"known: {', '.join(known)}"
                )
        self._form, self._block, self._exclude = form, block, tuple(exclude)

    @property
    def options(self) -> dict[str, Any]:
        """All that was chosen."""
        return {
            "form": self._form,
            "ops": list(self._ops),
            "block": self._block,
            "exclude": list(self._exclude),
        }

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: The model is quantised already, its operator set is below 13, or nothing
                in it has stored weights.
        """
        view = View(prepared(model))
        names = {node.name for node in view.graph.node}
        for name in self._exclude:
            if name not in names:
                raise ModelError(f"the model has no node '{name}' to exclude", nearest(name, names))
        done = self._nbits(view) if self._form == "nbits" else self._qdq(view)
        if not done:
            raise ModelError(
                f"nothing to quantise: no {' or '.join(self._ops)} has stored float weights"
            )
        product = view.finish()
        onnx.checker.check_model(product)
        return PassResult(product, True, (f"{done} stored tensors in 8 bits",))

    def _chosen(self, node: onnx.NodeProto) -> bool:
        return node.op_type in self._ops and node.name not in self._exclude

    def _qdq(self, view: View) -> int:
        """Put DequantizeLinear behind weights; return how many tensors were quantised."""
        done: dict[str, str] = {}
        inserted: list[tuple[onnx.NodeProto, onnx.NodeProto]] = []
        for node in list(view.graph.node):
            place = _place(view, node) if self._chosen(node) else None
            if place is None:
                continue
            position, weights = place
            name = weights.name
            if name not in done:
                values = view.array(name)
                if values.size < _LEAST_VALUES or not np.isfinite(values).all():
                    continue
                stored, scale = quantise_rows(values, weights.out_axis)
                done[name] = f"{name}_float"
                made = helper.make_node(
                    "DequantizeLinear",
                    [view.add(f"{name}_int8", stored), view.add(f"{name}_scale", scale)],
                    [done[name]],
                    name=f"{name}_unpack",
                    axis=weights.out_axis,
                )
                inserted.append((node, made))
            node.input[position] = done[name]
        _insert_before(view, inserted)
        return len(done)

    def _nbits(self, view: View) -> int:
        """Turn MatMul into MatMulNBits; return how many."""
        done = 0
        for node in view.graph.node:
            place = view.weights(node) if self._chosen(node) else None
            if place is None or view.array(place.name).size < _LEAST_VALUES:
                continue
            values = view.array(place.name)
            if not np.isfinite(values).all():
                continue
            packed, scales = _blocks(values, self._block)
            rows, columns = values.shape
            node.input[1:] = [
                view.add(f"{place.name}_int8", packed),
                view.add(f"{place.name}_scales", scales),
            ]
            node.op_type, node.domain = "MatMulNBits", _DOMAIN
            settings = {"K": rows, "N": columns, "bits": 8, "block_size": self._block}
            node.attribute.extend(helper.make_attribute(k, v) for k, v in settings.items())
            done += 1
        if done and not any(o.domain == _DOMAIN for o in view.model.opset_import):
            view.model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
        view.refresh()
        return done


def _place(view: View, node: onnx.NodeProto) -> tuple[int, Weights] | None:
    """Return which input of a node is its weights, and along which axis their scales go."""
    if node.op_type == "Gather":
        name = node.input[0]
        if view.floating(name) and view.array(name).ndim == 2:
            return 0, Weights(name, 0, 1)
        return None
    found = view.weights(node)
    return (1, found) if found is not None else None


def _insert_before(view: View, inserted: list[tuple[onnx.NodeProto, onnx.NodeProto]]) -> None:
    """Put each new node before the node that reads it first."""
    before: dict[int, list[onnx.NodeProto]] = {}
    for user, made in inserted:
        before.setdefault(id(user), []).append(made)
    nodes = [n for node in view.graph.node for n in (*before.get(id(node), ()), node)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del view.graph.node[:]
    view.graph.node.extend(copies)
    view.refresh()


def quantise_rows(values: Array, axis: int) -> tuple[Array, Array]:
    """Return int8 values without offset and one scale per index of an axis."""
    others = tuple(a for a in range(values.ndim) if a != axis)
    largest = np.abs(values).max(axis=others)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    shaped = scale.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    return np.clip(np.rint(values / shaped), -127, 127).astype(np.int8), scale


def _blocks(values: Array, block: int) -> tuple[Array, Array]:
    """Pack weights [K, N] for MatMulNBits: uint8 [N, K/block, block], zero at 128, and scales."""
    rows, columns = values.shape
    count = -(-rows // block)
    padded = np.zeros((count * block, columns), np.float32)
    padded[:rows] = values
    cut = padded.T.reshape(columns, count, block)
    largest = np.abs(cut).max(axis=2)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    packed = np.clip(np.rint(cut / scale[..., None]) + 128, 0, 255).astype(np.uint8)
    return packed, scale
