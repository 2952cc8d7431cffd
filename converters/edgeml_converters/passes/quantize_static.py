"""QuantizeStatic: 8-bit weights and activations as QDQ, ranges from calibration data.

onnxruntime's entropy calibration is not offered: with the 128 bins that ``quantize_static`` fixes
for it (onnxruntime 1.31), its only candidate is the whole range, and the result is that of minmax.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeml.errors import ModelError, UsageError, nearest
from edgeml.tensors import Array
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
from edgeml_converters.passes.quantize import prepared, quantise
from edgeml_converters.passes.shapes import real_inputs

_METHODS = {"minmax": "MinMax", "percentile": "Percentile"}
_SCHEMES = {"u8s8": "QUInt8", "s8s8": "QInt8"}
#: At most this many values of one input are fed in one calibration run.
_CHUNK_VALUES = 1 << 18


class QuantizeStatic:
    """Quantise what onnxruntime can run in 8 bits; see the module."""

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
    ) -> None:
        """Choose the scheme.

        Args:
            scheme: ``u8s8`` (activations without sign: x86) or ``s8s8``.
            per_channel: One weight scale per output channel.
            reduce_range: Weights of 7 bits, for x86 without VNNI.
            calibration: ``minmax`` or ``percentile``.
            exclude: Names of nodes that stay float.

        Raises:
            UsageError: An option has a value that it cannot have.
        """
        if scheme.lower() not in _SCHEMES:
            raise UsageError(f"unknown scheme '{scheme}'", nearest(scheme.lower(), _SCHEMES))
        if calibration not in _METHODS:
            raise UsageError(f"unknown calibration '{calibration}'", nearest(calibration, _METHODS))
        self._scheme, self._per_channel = scheme.lower(), per_channel
        self._reduce_range, self._calibration = reduce_range, calibration
        self._exclude = tuple(exclude)

    @property
    def options(self) -> dict[str, Any]:
        """All that was chosen."""
        return {
            "scheme": self._scheme,
            "per_channel": self._per_channel,
            "reduce_range": self._reduce_range,
            "calibration": self._calibration,
            "exclude": list(self._exclude),
        }

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: No calibration data, an unknown node to exclude, nothing to quantise, or
                the quantiser failed.
        """
        inputs = [i.name for i in real_inputs(model)]
        absent = [name for name in inputs if name not in context.calibration]
        if absent:
            raise ModelError(
                f"static quantisation needs calibration data for input '{absent[0]}'",
                "give evaluation data by --data",
            )
        ready = prepared(model)
        names = {node.name for node in ready.graph.node}
        for name in self._exclude:
            if name not in names:
                raise ModelError(f"the model has no node '{name}' to exclude", nearest(name, names))
        reader = _Reader(ready, {name: context.calibration[name] for name in inputs})

        def call(source: Path, product: Path, folder: Path) -> None:
            from onnxruntime import quantization as q

            kind = getattr(q.QuantType, _SCHEMES[self._scheme])
            q.quantize_static(
                str(source),
                str(product),
                reader,
                quant_format=q.QuantFormat.QDQ,
                activation_type=kind,
                weight_type=q.QuantType.QInt8,
                per_channel=self._per_channel,
                reduce_range=self._reduce_range,
                nodes_to_exclude=list(self._exclude),
                calibrate_method=getattr(q.CalibrationMethod, _METHODS[self._calibration]),
            )

        quantised = quantise(ready, call)
        return PassResult(quantised, True, (f"ranges from {reader.samples} samples",))


class _Reader:
    """Feeds calibration data a bounded number of samples at a time."""

    def __init__(self, model: onnx.ModelProto, data: dict[str, Array]) -> None:
        self._values = real_inputs(model)
        self._data = data
        self.samples = min(len(array) for array in data.values())
        self._feeds = self._iterate()

    def get_next(self) -> dict[str, Array] | None:
        """Return the next feed; None at the end."""
        return next(self._feeds, None)

    def rewind(self) -> None:
        """Start again."""
        self._feeds = self._iterate()

    def _iterate(self) -> Iterator[dict[str, Array]]:
        shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in self._values}
        if all(shape and not shape[0] for shape in shapes.values()):
            largest = max(int(array[:1].size) for array in self._data.values())
            step = max(1, _CHUNK_VALUES // max(1, largest))
            for start in range(0, self.samples, step):
                stop = min(start + step, self.samples)
                yield {name: array[start:stop] for name, array in self._data.items()}
            return
        steps = {name: (shape[0] or 1) if shape else 1 for name, shape in shapes.items()}
        count = min(len(self._data[name]) // step for name, step in steps.items())
        for i in range(count):
            yield {
                name: array[i * steps[name] : (i + 1) * steps[name]]
                if shapes[name]
                else np.asarray(array[i])
                for name, array in self._data.items()
            }
