"""CorrectBias: biases that take back the shift of the mean which rounding to 8 bits brings.

Rounding weights and activations shifts the mean of an operator's outputs; the shift is the same for
every sample, so it can be taken out of the bias: ``b' = b - E[W_q x_q - W x]`` for each output
channel (Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias
Correction, section 4.2; there the expectation comes from BatchNormalization, here from calibration
data, as in appendix D). The result is a float model, to be quantised with the same options.

Every operator is fed by exact tensors (the fast variant): all shifts come from one run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx

from edgeml.errors import ModelError
from edgeml.tensors import Array
from edgeml_converters.layers.graph import View, Weights
from edgeml_converters.layers.sensitivity import channel_shift
from edgeml_converters.passes.base import (
    CALIBRATION,
    FLOAT,
    OPSET13,
    SIGNATURE,
    STANDARD,
    PassContext,
    PassResult,
)
from edgeml_converters.passes.quantize_static import QuantizeStatic
from edgeml_converters.quantizer.prepare import prepared

_SAMPLES = 64
#: Products whose channels are axis 1 of the output; those of the others are the last axis.
_IMAGES = frozenset({"Conv", "ConvTranspose"})


class CorrectBias:
    """Take the mean error of 8 bits out of the biases; see the module."""

    name = "correct_bias"
    needs = frozenset({CALIBRATION, FLOAT, OPSET13})
    promises = frozenset({SIGNATURE, STANDARD})

    def __init__(self, static: Mapping[str, Any] | None = None) -> None:
        """Take the options of ``quantize_static`` that the model will be quantised with.

        Raises:
            UsageError: One of them has a value that it cannot have.
        """
        self._static = dict(static or {})
        QuantizeStatic(**self._static)  # its options are checked before any work

    @property
    def options(self) -> dict[str, Any]:
        """Those of the quantiser."""
        return {"static": self._static}

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: No calibration data, or nothing that can be quantised or corrected.
        """
        ready = prepared(model)
        quantised = QuantizeStatic(**self._static).run(ready, context).model
        product, done = corrected(ready, bias_shifts(ready, quantised, context))
        if not done:
            raise ModelError("no operator has a bias that a shift of its mean could go into")
        onnx.checker.check_model(product)
        return PassResult(product, True, (f"{done} biases corrected",))


def bias_shifts(
    model: onnx.ModelProto, quantised: onnx.ModelProto, context: PassContext
) -> dict[str, Array]:
    """Return product -> the shift of the mean of each of its output channels.

    Args:
        model: The float model, prepared.
        quantised: What static quantisation makes of it.
        context: Calibration data and threads.

    Raises:
        ModelError: An input has no data.
    """
    products = [node for node, _ in View(model).products()]
    axes = {node.name: 1 if node.op_type in _IMAGES else -1 for node in products}
    found = channel_shift(model, quantised, axes, context.calibration, _SAMPLES, context.threads)
    return {name: shift for name, shift in found.items() if np.isfinite(shift).all()}


def corrected(
    model: onnx.ModelProto, shifts: Mapping[str, Array], keep: Iterable[str] = ()
) -> tuple[onnx.ModelProto, int]:
    """Take shifts out of the biases of a float model; return it, and how many were changed.

    Args:
        model: The float model, prepared; not changed.
        shifts: As ``bias_shifts`` gives them.
        keep: Names of products that stay float, and so stay as they are.
    """
    view = View(model)
    left = set(keep)
    done = 0
    for node, weights in list(view.products()):
        shift = shifts.get(node.name)
        if shift is not None and shift.any() and node.name not in left:
            done += _add(view, node, weights, -shift)
    return view.finish(), done


def _add(view: View, node: onnx.NodeProto, weights: Weights, change: Array) -> bool:
    """Add to the bias of an operator; tell whether it has, or can be given, one.

    A bias that several operators share is copied first.
    """
    change = change.astype(np.float32)
    if weights.bias:
        bias = view.array(weights.bias)
        if bias.size != change.size:
            return False
        node.input[2] = view.add(f"{weights.bias}_corrected", bias + change.reshape(bias.shape))
    elif node.op_type in {*_IMAGES, "Gemm"}:
        if len(node.input) > 2 and node.input[2]:
            return False  # computed, not stored
        del node.input[2:]
        node.input.append(view.add(f"{node.name}_corrected", change))
    else:
        return _add_behind(view, node, change)
    return True


def _add_behind(view: View, node: onnx.NodeProto, change: Array) -> bool:
    """Change the bias that an Add behind a matrix product adds."""
    user = view.sole_user(node.output[0])
    if user is None or user.op_type != "Add":
        return False
    place = 1 - list(user.input).index(node.output[0])
    name = user.input[place]
    if not view.floating(name) or view.array(name).shape != change.shape:
        return False
    user.input[place] = view.add(f"{name}_corrected", view.array(name) + change)
    return True
