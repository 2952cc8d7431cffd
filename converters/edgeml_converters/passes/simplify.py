"""Simplify: fold constants and BatchNormalization, drop what does nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx

from edgeml.errors import ModelError
from edgeml_converters.model import inlined, model_digest, read_model, signature
from edgeml_converters.passes.base import (
    IDEMPOTENT,
    SIGNATURE,
    STANDARD,
    VALUES,
    PassContext,
    PassResult,
)
from edgeml_converters.simple import clean
from edgeml_converters.simple.affine import fold_affine
from edgeml_converters.simple.constants import fold_constants
from edgeml_converters.source.checks import count_ops
from edgeml_converters.source.external import all_tensors
from edgeml_converters.source.files import save_outside
from edgeml_converters.source.stored import SMALL, is_large

#: One rewrite may make room for another; more rounds than this were never seen to be needed.
_ROUNDS = 10
#: Of onnxruntime's session options: how the weights of an optimised model are written.
_OUTSIDE = "session.optimized_model_external_initializers"


class Simplify:
    """Rewrites of our own, then those of onnxruntime's basic level, which keep to the standard.

    Constants are folded by our own rewrites only: onnxruntime folds without a bound, and a file
    of kilobytes can become one of gigabytes.
    """

    name = "simplify"
    needs: frozenset[str] = frozenset()
    promises: frozenset[str] = frozenset({SIGNATURE, VALUES, STANDARD, IDEMPOTENT})

    @property
    def options(self) -> dict[str, Any]:
        """It has none."""
        return {}

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: The model does not load, or the result is not what it should be.
        """
        if is_large(model):
            simple, notes = _rewritten(model)
        else:
            simple, notes = _smallest(model)
        before, after = count_ops(model), count_ops(simple)
        foreign = [n for n in after if ":" in n and n not in before]
        if foreign:
            raise ModelError(f"simplifying brought in the operator '{foreign[0]}'", "report this")
        _keep_frame(model, simple)
        if signature(simple) != signature(model):
            raise ModelError("simplifying changed the inputs or outputs of the model")
        total = sum(before.values()), sum(after.values())
        if model_digest(simple, whole=False) == model_digest(model, whole=False):
            return PassResult(model, False)
        return PassResult(simple, True, (f"{total[0]} -> {total[1]} nodes", *notes))


def _rewritten(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return a rewritten copy, and what a reader should know."""
    simple = onnx.ModelProto()
    simple.CopyFrom(model)
    return simple, _rewrite(simple)


def _smallest(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return what is left of a model by our rewrites, or by those of onnxruntime behind them.

    In between it lies in a file: a model in memory keeps the room of all that was removed from
    it, and beside the given model there is one other at a time.
    """
    with tempfile.TemporaryDirectory(prefix="edgeml-") as folder:
        file = Path(folder) / "given.onnx"
        notes = _write_rewritten(model, file)
        optimised = onnx.load(_optimise(file))  # with what lies outside for graphs in nodes too
        for tensor in all_tensors(optimised):
            tensor.ClearField("data_location")
        _rewrite(optimised)
        simple = read_model(file)
        # It moves transposes about without an end; only what makes a graph smaller counts.
        if sum(count_ops(optimised).values()) < sum(count_ops(simple).values()):
            return optimised, notes
        del optimised
        return inlined(simple), notes


def _write_rewritten(model: onnx.ModelProto, file: Path) -> list[str]:
    """Write a rewritten copy; nothing of it stays in memory."""
    simple, notes = _rewritten(model)
    save_outside(simple, file)
    return notes


def _rewrite(model: onnx.ModelProto) -> list[str]:
    """Apply our own rewrites until nothing changes; return what a reader should know."""
    folded, affine, shared = 0, 0, 0
    for _ in range(_ROUNDS):
        noops = clean.drop_noops(model.graph)
        constants = fold_constants(model)
        into = fold_affine(model.graph)
        dead = clean.drop_dead(model.graph)
        folded, affine = folded + constants, affine + into
        if not (noops or constants or into or dead):
            break
    shared = clean.share_equal(model.graph)
    said = ((folded, "constants folded"), (affine, "scalings folded into weights"),
            (shared, "equal weights stored once"))  # fmt: skip
    return [f"{count} {what}" for count, what in said if count]


def _optimise(file: Path) -> Path:
    """Let onnxruntime optimise a model in a file; return the file beside it that it writes."""
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    out = file.with_name("optimised.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # it warns that optimised models belong to one machine
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    # Weights lie in files that it maps, before and after it: it holds no copies of them.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry(f"{_OUTSIDE}_file_name", f"{out.name}.data")
    options.add_session_config_entry(f"{_OUTSIDE}_min_size_in_bytes", str(SMALL))
    try:
        ort.InferenceSession(
            file,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["ConstantFolding"],
        )
    except (state.Fail, state.InvalidGraph, state.InvalidArgument, state.NotImplemented) as e:
        raise ModelError(f"onnxruntime cannot simplify the model: {e}") from e
    return out


def _keep_frame(model: onnx.ModelProto, simple: onnx.ModelProto) -> None:
    """Give the result the frame of the given model: names, axes, operator sets, no stale notes."""
    for mine, given in zip(simple.graph.output, model.graph.output, strict=True):
        mine.CopyFrom(given)
    inputs = {i.name: i for i in model.graph.input}
    for mine in simple.graph.input:
        mine.CopyFrom(inputs[mine.name])
    used = {n.domain for n in simple.graph.node} | {""}
    kept = [o for o in model.opset_import if o.domain in used or o.domain == "ai.onnx"]
    del simple.opset_import[:]
    simple.opset_import.extend(kept)
    del simple.graph.value_info[:]
    del simple.metadata_props[:]
    simple.metadata_props.extend(model.metadata_props)
    simple.ir_version = model.ir_version
    simple.producer_name = model.producer_name
    simple.producer_version = model.producer_version
    simple.graph.name = model.graph.name
    for node in simple.graph.node:
        if node.domain == "ai.onnx":
            node.domain = ""
