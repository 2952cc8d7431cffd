"""UpgradeOpset: old models get an operator set that the later passes know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, version_converter

from edgeml.errors import DeviceError, ModelError, RequestError
from edgeml_converters.model import run_model
from edgeml_converters.passes import old_forms
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
from edgeml_converters.source.files import filled, outline
from edgeml_converters.source.stored import is_large

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

        Where the operator set cannot be raised, or the model would then compute something else,
        it stays, and a note says why: some recipes can live with it, others say what they need.

        Raises:
            ModelError: The model itself does not run on the data.
        """
        before = opset_of(model)
        stored = {i.name for i in model.graph.initializer}
        listed = sum(i.name in stored for i in model.graph.input)
        if before >= self._opset and not listed:
            return PassResult(model, False)
        plain = onnx.ModelProto()
        plain.CopyFrom(model)
        notes: list[str] = []
        if listed:
            inputs = real_inputs(plain)
            del plain.graph.input[:]
            plain.graph.input.extend(inputs)
            notes.append(f"{listed} stored tensors are no longer inputs")
        plain.ir_version = max(plain.ir_version, _IR)
        if before >= self._opset:
            return PassResult(plain, True, tuple(notes))
        made, said = self._upgraded(model, plain, context)
        notes.append(said)
        if made is not None:
            return PassResult(made, True, tuple(notes))
        return PassResult(plain if listed else model, bool(listed), tuple(notes))

    def _upgraded(
        self, model: onnx.ModelProto, plain: onnx.ModelProto, context: PassContext
    ) -> tuple[onnx.ModelProto | None, str]:
        """Return the model in the new operator set and a note; no model when it must stay."""
        before = opset_of(model)
        stays = f"the operator set stays {before}"
        try:
            made = self._convert(plain)
        except (RuntimeError, ValueError, IndexError) as error:
            said = " ".join(str(error).split())
            return None, f"{stays}: {_culprit(model, said)}{said}"
        try:
            worst = _difference(model, made, context)
        except _Unusable as error:
            return None, f"{stays}: {error}"
        raised = f"operator set {before} -> {self._opset}"
        if worst is None:
            return made, f"{raised}; not compared: the source does not run on random samples"
        if worst > TOLERANCE:
            return None, (
                f"{stays}: raising it to {self._opset} changes the outputs by {worst:.2g} "
                f"(relative), allowed is {TOLERANCE:g}"
            )
        return made, f"{raised}; outputs equal within {worst:.1g}"

    def _convert(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the model in the new operator set; its other domains stay."""
        before = opset_of(model)
        others = [o for o in model.opset_import if o.domain not in ("", "ai.onnx")]
        bare = old_forms.rewritten(outline(model)[0] if is_large(model) else model)
        converted = version_converter.convert_version(bare, self._opset)
        have = {o.domain for o in converted.opset_import}
        converted.opset_import.extend(o for o in others if o.domain not in have)
        old_forms.completed(converted, before)
        return filled(converted, model)


class _Unusable(Exception):
    """The upgraded model does not load or run; the text says why."""


def _culprit(model: onnx.ModelProto, said: str) -> str:
    """Return which node an error is about, where its text lets one tell."""
    words = "".join(c if c.isalnum() else " " for c in said).lower().split()
    joined = "".join(words)
    tests: tuple[Callable[[onnx.NodeProto], bool], ...] = (
        lambda node: node.op_type.lower() in words,
        lambda node: len(node.op_type) > 4 and node.op_type.lower() in joined,
        lambda node: any(a.name.lower() in words for a in node.attribute if len(a.name) > 4),
    )
    for fits in tests:
        for node in model.graph.node:
            if fits(node):
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
        ModelError: The first does not load, or does not run on the data.
        _Unusable: The second does not.
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
        raise _Unusable(f"the upgraded model does not run: {error.message}") from error
    except ModelError as error:
        raise _Unusable(f"the upgraded model does not load: {error.message}") from error
    worst = 0.0
    for name, values in first.items():
        x, y = values.astype(np.float64), second[name].astype(np.float64)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        gap = np.where(same, 0.0, np.abs(x - y))
        scale = float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) or 1.0
        worst = max(worst, float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0)) / scale)
    return worst
