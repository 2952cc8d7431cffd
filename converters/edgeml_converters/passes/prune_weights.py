"""PruneWeights: weights set to zero one by one, for the size of a compressed download only.

It makes nothing faster: no runtime here skips single zeros on a processor (measured: 90 % of the
weights zero ran 0.98 to 1.01 times as fast on onnxruntime, 1.00 to 1.02 on OpenVINO). The file
stays as large as it was, too; only compressed bytes shrink, and nothing that carries a bundle
compresses it. So it is no recipe; it is there for whoever compresses bundles himself.

What goes first is what costs the least by the second moments ``E[x_j^2]`` of the layer's inputs:
``w_ij^2 E[x_j^2]``, the diagonal of the error of the layer's output (Optimal Brain Damage: LeCun,
Denker and Solla 1989; the same product is used by Wanda: Sun et al. 2023). Within an output
channel the weights compete; the number that goes is the same for all layers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgeml.errors import ModelError, UsageError
from edgeml.tensors import Array
from edgeml_converters.model import model_bytes
from edgeml_converters.passes.base import (
    CALIBRATION,
    FLOAT,
    OPSET13,
    SIGNATURE,
    SMALLER,
    STANDARD,
    PassContext,
    PassResult,
)
from edgeml_converters.pruning.importance import rows_of
from edgeml_converters.pruning.matrices import from_matrices, to_matrices
from edgeml_converters.pruning.rules import follow
from edgeml_converters.pruning.tap import lockstep
from edgeml_converters.pruning.trace import Layer, Trace
from edgeml_converters.pruning.view import open_view
from edgeml_converters.source.checks import opset_of

#: Layers with fewer weights than this are left alone: nothing is to be gained by them.
_LEAST_WEIGHTS = 256


class PruneWeights:
    """Set weights to zero; see the module."""

    name = "prune_weights"
    needs = frozenset({CALIBRATION, OPSET13, FLOAT})
    promises = frozenset({SIGNATURE, STANDARD, SMALLER})

    def __init__(self, amount: float = 0.5, samples: int = 256) -> None:
        """Choose how many.

        Args:
            amount: The share of each layer's weights that goes.
            samples: At most this many calibration samples are used.

        Raises:
            UsageError: An option has a value that it cannot have.
        """
        if not 0.0 < amount < 1.0 or samples < 1:
            raise UsageError(
                f"amount {amount} and samples {samples}, expected 0 to 1, and 1 or more"
            )
        self._amount, self._samples = amount, samples

    @property
    def options(self) -> dict[str, Any]:
        """The share, and the samples."""
        return {"amount": self._amount, "samples": self._samples}

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: No calibration data, an operator set before 13, nothing with weights.
            DataError: The calibration data hold less than one batch of the model.
        """
        if opset_of(model) < 13:
            raise ModelError(
                f"the model has operator set {opset_of(model)}, expected 13 or more for pruning",
                "apply upgrade_opset first",
            )
        trace = follow(open_view(model))
        layers = [
            layer
            for layer in trace.layers
            if layer.op in ("Conv", "Gemm", "MatMul")
            and trace.view.weights[layer.weight].size >= _LEAST_WEIGHTS
        ]
        if not layers:
            raise ModelError("the model has no layer with enough weights to prune")
        if not context.calibration:
            raise ModelError("pruning needs calibration data", "give evaluation data by --data")
        squares = _squares(trace, layers, context.calibration, self._samples, context.threads)
        pruned = onnx.ModelProto()
        pruned.CopyFrom(model)
        stored = {i.name: i for i in pruned.graph.initializer}
        zeros = total = 0
        for layer in layers:
            if layer.weight not in stored:
                continue  # it came from a Constant node: rare, and small
            values = self._thinned(trace, layer, squares[layer.node])
            zeros, total = zeros + int((values == 0).sum()), total + values.size
            tensor = stored[layer.weight]
            tensor.CopyFrom(numpy_helper.from_array(values, layer.weight))
        before, after = (len(zlib.compress(model_bytes(m), 6)) for m in (model, pruned))
        notes = (
            f"{zeros / max(total, 1):.0%} of {total} weights are zero; no speed-up on a CPU",
            f"compressed by deflate {before} -> {after} bytes; uncompressed the same",
        )
        return PassResult(pruned, model_bytes(pruned) != model_bytes(model), notes)

    def _thinned(self, trace: Trace, layer: Layer, squares: Array) -> Array:
        """Return a layer's weights with the least important ones zero."""
        node = trace.view.model.graph.node[layer.node]
        weight = trace.view.weights[layer.weight]
        matrices = np.array(to_matrices(layer, node, weight))
        scores = matrices**2 * squares[:, None, :]
        # One output channel competes in itself, over all its kernel positions.
        outputs = len(layer.ids_out) // layer.group
        rows = scores.reshape(layer.group, outputs, -1)
        count = int(self._amount * rows.shape[2])
        order = np.argsort(rows, axis=2, kind="stable")[:, :, :count]
        flat = matrices.reshape(rows.shape)
        np.put_along_axis(flat, order, 0.0, axis=2)
        return from_matrices(layer, node, flat.reshape(matrices.shape), weight)


def _squares(
    trace: Trace, layers: list[Layer], data: Mapping[str, Array], samples: int, threads: int
) -> dict[int, Array]:
    """Return, for each layer, the mean squares of its inputs, [group, inputs]."""
    names = sorted({layer.x for layer in layers})
    sums: dict[int, Array] = {}
    for (found,) in lockstep([(trace.view.model, names)], data, samples, threads):
        for layer in layers:
            rows = rows_of(layer, found[layer.x]).astype(np.float64)
            added = (rows**2).mean(axis=0).reshape(layer.group, -1) * len(found[layer.x])
            sums[layer.node] = sums.get(layer.node, 0.0) + added
    return sums
