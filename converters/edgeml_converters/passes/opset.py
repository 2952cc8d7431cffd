"""UpgradeOpset: old models get an operator set that the later passes know."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, version_converter

from edgeml.errors import DeviceError, ModelError, RequestError
from edgeml_converters.model import run_model
from edgeml_converters.passes.base import (
    IDEMPOTENT,
    SIGNATURE,
    STANDARD,
    VALUES,
    WEIGHTS,
    PassContext,
    PassResult,
)
from edgeml_converters.passes.shapes import real_inputs
from edgeml_converters.source.checks import opset_of

#: IR version that goes with operator set 17, which every runtime here reads.
_IR = 8
#: The largest relative difference that the upgrade may make.
TOLERANCE = 1e-4


class UpgradeOpset:
    """Bring the standard operator set to at least a version, and check that nothing changed."""

    name = "upgrade_opset"
    needs: frozenset[str] = frozenset()
    promises: frozenset[str] = frozenset({SIGNATURE, VALUES, STANDARD, IDEMPOTENT, WEIGHTS})

    def __init__(self, opset: int = 17) -> None:
        """Take the lowest version to leave."""
        self._opset = opset

    @property
    def options(self) -> dict[str, Any]:
        """The version."""
        return {"opset": self._opset}

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: An operator has no newer form, or the new model computes something else.
        """
        before = opset_of(model)
        plain = onnx.ModelProto()
        plain.CopyFrom(model)
        stored = {i.name for i in plain.graph.initializer}
        listed = [i.name for i in plain.graph.input if i.name in stored]
        if listed:
            inputs = real_inputs(plain)
            del plain.graph.input[:]
            plain.graph.input.extend(inputs)
        if before >= self._opset and not listed:
            return PassResult(model, False)
        plain.ir_version = max(plain.ir_version, _IR)
        notes = [f"{len(listed)} stored tensors are no longer inputs"] if listed else []
        if before < self._opset:
            plain = self._convert(plain)
            notes.append(f"operator set {before} -> {self._opset}")
        worst = _difference(model, plain, context)
        if worst is None:
            notes.append("not compared: the source does not run on random samples, give data")
            return PassResult(plain, True, tuple(notes))
        if worst > TOLERANCE:
            raise ModelError(
                f"upgrading operator set {before} to {self._opset} changes the outputs by "
                f"{worst:.2g} (relative), expected at most {TOLERANCE:g}",
                "export the model again with opset 17",
            )
        return PassResult(plain, True, (*notes, f"outputs equal within {worst:.1g}"))

    def _convert(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the model in the new operator set; its other domains stay."""
        others = [o for o in model.opset_import if o.domain not in ("", "ai.onnx")]
        try:
            converted = version_converter.convert_version(model, self._opset)
        except (RuntimeError, ValueError, IndexError) as error:
            said = " ".join(str(error).split())
            raise ModelError(
                f"the operator set cannot be upgraded to {self._opset}: {_culprit(model, said)}"
                f"{said}",
                "export the model again with opset 17",
            ) from error
        have = {o.domain for o in converted.opset_import}
        converted.opset_import.extend(o for o in others if o.domain not in have)
        return converted


def _culprit(model: onnx.ModelProto, said: str) -> str:
    """Return which node an error is about, where its text lets one tell."""
    for node in model.graph.node:
        if node.op_type in said.replace(":", " ").replace("`", " ").split():
            return f"node '{node.name or node.output[0]}' ({node.op_type}): "
    return ""


def samples_for(model: onnx.ModelProto, context: PassContext) -> dict[str, np.ndarray[Any, Any]]:
    """Return a few samples to compare two models with: of the calibration data, else random."""
    rng = np.random.default_rng(context.seed)
    feed = {}
    for value in real_inputs(model):
        dims = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
        rows = (dims[0] if dims else 1) * 2
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if value.name in context.calibration and len(context.calibration[value.name]) >= rows:
            feed[value.name] = context.calibration[value.name][:rows]
        elif np.dtype(dtype).kind == "f":
            feed[value.name] = rng.standard_normal((rows, *dims[1:])).astype(dtype)
        else:
            feed[value.name] = rng.integers(0, 2, (rows, *dims[1:])).astype(dtype)
    return feed


def _difference(a: onnx.ModelProto, b: onnx.ModelProto, context: PassContext) -> float | None:
    """Return the largest difference of outputs, relative to the largest value.

    None when there is no data and the source itself refuses random samples.

    Raises:
        ModelError: A model does not load, or does not run on the data.
    """
    feed = samples_for(a, context)
    try:
        first = run_model(a, feed, context.threads)
    except (RequestError, DeviceError) as error:
        if context.calibration:
            raise ModelError(f"the source does not run on the data: {error.message}") from error
        return None
    try:
        second = run_model(b, feed, context.threads)
    except (RequestError, DeviceError) as error:
        raise ModelError(f"the upgraded model does not run: {error.message}") from error
    worst = 0.0
    for name, values in first.items():
        x, y = values.astype(np.float64), second[name].astype(np.float64)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        gap = np.where(same, 0.0, np.abs(x - y))
        scale = float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) or 1.0
        worst = max(worst, float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0)) / scale)
    return worst
