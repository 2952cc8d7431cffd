"""QuantizeStatic: 8-bit weights and activations as QDQ, ranges from calibration data.

The quantiser is our own (``edgeml_converters.quantizer``): it stores what the runtime at hand
gains by (``placement``), and finds ranges in bounded memory (``calibration``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import onnx

from edgeml.errors import ModelError, UsageError, nearest
from edgeml_converters.model import signature
from edgeml_converters.passes.base import (
    CALIBRATION,
    FLOAT,
    INT8,
    OPSET13,
    SIGNATURE,
    STANDARD,
    PassContext,
    PassResult,
)
from edgeml_converters.passes.shapes import real_inputs
from edgeml_converters.quantizer import place_onnxruntime, place_openvino
from edgeml_converters.quantizer.calibrate import observe
from edgeml_converters.quantizer.dense import merge_biases
from edgeml_converters.quantizer.graph import Index
from edgeml_converters.quantizer.insert import insert
from edgeml_converters.quantizer.parameters import STORED
from edgeml_converters.quantizer.placement import Placement
from edgeml_converters.quantizer.prepare import prepared
from edgeml_converters.quantizer.ranges import METHODS
from edgeml_converters.source.files import outline
from edgeml_converters.source.stored import is_large

PLACEMENTS: dict[str, Callable[[Index, Iterable[str]], Placement]] = {
    "onnxruntime": place_onnxruntime.place,
    "openvino": place_openvino.place,
}


class QuantizeStatic:
    """Quantise what a runtime gains by in 8 bits; see the module."""

    name = "quantize_static"
    needs: frozenset[str] = frozenset({CALIBRATION, OPSET13, FLOAT})
    promises: frozenset[str] = frozenset({SIGNATURE, STANDARD, INT8})

    def __init__(
        self,
        scheme: str = "u8s8",
        per_channel: bool = True,
        reduce_range: bool = False,
        calibration: str = "minmax",
        exclude: Iterable[str] = (),
        placement: str = "onnxruntime",
    ) -> None:
        """Choose the scheme.

        Args:
            scheme: ``u8s8`` (activations without sign: x86) or ``s8s8``.
            per_channel: One weight scale per output channel.
            reduce_range: Weights of 7 bits, for x86 without VNNI.
            calibration: ``minmax``, ``percentile``, ``entropy`` or ``mse``.
            exclude: Names of nodes that stay float.
            placement: The runtime that it is for, ``onnxruntime`` or ``openvino``.

        Raises:
            UsageError: An option has a value that it cannot have.
        """
        self._scheme = _known("scheme", scheme.lower(), STORED)
        self._per_channel, self._reduce_range = per_channel, reduce_range
        self._calibration = _known("calibration", calibration, METHODS)
        self._exclude = tuple(exclude)
        self._placement = _known("placement", placement, PLACEMENTS)

    @property
    def options(self) -> dict[str, Any]:
        """All that was chosen."""
        return {
            "scheme": self._scheme,
            "per_channel": self._per_channel,
            "reduce_range": self._reduce_range,
            "calibration": self._calibration,
            "exclude": list(self._exclude),
            "placement": self._placement,
        }

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: No calibration data, an unknown node to exclude, nothing to quantise, or
                the model does not run on the data.
        """
        ready = prepared(model)
        inputs = [i.name for i in real_inputs(ready)]
        absent = [name for name in inputs if name not in context.calibration]
        if absent or not inputs:
            raise ModelError(
                f"static quantisation needs calibration data for input '{(absent or ['?'])[0]}'",
                "give evaluation data by --data",
            )
        names = {node.name for node in ready.graph.node}
        for name in self._exclude:
            if name not in names:
                raise ModelError(f"the model has no node '{name}' to exclude", nearest(name, names))
        if self._placement == "onnxruntime":
            ready = merge_biases(ready, self._exclude)
        index = Index(ready)
        placement = PLACEMENTS[self._placement](index, self._exclude)
        if not placement.weights:
            raise ModelError(
                "nothing to quantise: the model has no operator that this recipe makes 8-bit",
                "keep it in float, or choose another recipe",
            )
        data = {name: context.calibration[name] for name in inputs}
        ranges = observe(ready, placement.readers, data, self._calibration, context.threads)
        quantised = insert(
            ready,
            index,
            placement,
            ranges,
            scheme=self._scheme,
            per_channel=self._per_channel,
            reduce_range=self._reduce_range,
        )
        _check(model, quantised)
        samples = min(len(array) for array in data.values())
        return PassResult(quantised, True, (f"ranges from {samples} samples",))


def _known(what: str, value: str, known: Iterable[str]) -> str:
    """Return a value that is known.

    Raises:
        UsageError: It is not.
    """
    if value not in known:
        raise UsageError(f"unknown {what} '{value}'", nearest(value, known))
    return value


def _check(model: onnx.ModelProto, quantised: onnx.ModelProto) -> None:
    """Check that the product is a valid model with the same signature."""
    if signature(quantised) != signature(model):
        raise ModelError("quantising changed the inputs or outputs of the model", "report this")
    try:
        onnx.checker.check_model(outline(quantised)[0] if is_large(quantised) else quantised)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"the quantised model is invalid: {error}", "report this") from error
