"""Prune: the whole way from a model and a share to save to the pruned model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from edgeml.errors import ModelError
from edgeml.tensors import Array
from edgeml_converters.model import signature
from edgeml_converters.passes.base import PassContext
from edgeml_converters.pruning import amounts, importance
from edgeml_converters.pruning.refit import refit
from edgeml_converters.pruning.remove import Cluster, clusters_of, removed
from edgeml_converters.pruning.rules import follow
from edgeml_converters.pruning.trace import PINNED, Layer, Trace
from edgeml_converters.pruning.view import open_view
from edgeml_converters.source.checks import opset_of


@dataclass(frozen=True)
class Plan:
    """What to prune, and how far.

    Attributes:
        kinds: Kinds of clusters (``remove.CHANNELS``, ``UNITS``, ``HEADS``).
        amount: The share of all multiplications to save, over 0 and under 1.
        multiple: Channels are computed in multiples of this on the device.
        keep: At least this share of each cluster stays.
        samples: At most this many calibration samples are used.
        work: About as many multiplications are spent on runs while layers are fitted.
        fit: Whether layers are fitted anew at all.
    """

    kinds: frozenset[str]
    amount: float = 0.3
    multiple: int = 8
    keep: float = 0.125
    samples: int = 256
    work: float = 4e11
    fit: bool = True


@dataclass(frozen=True)
class Report:
    """What was done.

    Attributes:
        saved: Share of the multiplications that is gone.
        before: Error at the outputs after the removal, relative to their spread.
        after: The same after the layers were fitted.
        notes: In words.
    """

    saved: float
    before: float
    after: float
    notes: tuple[str, ...]


def prune(
    model: onnx.ModelProto, context: PassContext, plan: Plan
) -> tuple[onnx.ModelProto, Report]:
    """Remove channels, units or heads from a model.

    Args:
        model: Not changed.
        context: Calibration data, seed, threads.
        plan: What, and how far.

    Raises:
        ModelError: Nothing can be pruned, no calibration data, or an operator set before 13.
        DataError: There is not one whole batch of calibration data.
    """
    if opset_of(model) < 13:
        raise ModelError(
            f"the model has operator set {opset_of(model)}, expected 13 or more for pruning",
            "apply upgrade_opset first",
        )
    trace = follow(open_view(model, context.calibration))
    clusters = [
        one for one in clusters_of(trace) if one.kind in plan.kinds and not _too_wide(trace, one)
    ]
    if not clusters:
        raise ModelError(_nothing(trace, plan), "leave it as it is")
    if not context.calibration:
        raise ModelError("pruning needs calibration data", "give evaluation data by --data")
    data, fit, judge = _parts(context.calibration, plan.samples)
    samples, threads = plan.samples, context.threads
    layers = _readers(trace, clusters)
    moments = importance.gather(trace, layers, fit, samples, context.seed, threads)
    curves = [
        importance.curve(trace, one, moments, _least(one, plan.keep), plan.multiple)
        for one in clusters
    ]
    weights = amounts.sensitivities(trace, curves, moments, judge, samples, threads)
    gone, saved = amounts.choose(trace, curves, weights, plan.amount, plan.multiple)
    if not gone:
        raise ModelError(
            f"pruning saves nothing: no cluster of channels can lose {plan.multiple} at once",
            "leave it as it is",
        )
    pruned = removed(trace, importance.folded(trace, moments, gone), gone)
    names = amounts.scored_tensors(trace)
    count = min(samples, 64)

    def error() -> float:
        return amounts.output_errors(trace, [pruned], names, judge, count, threads)[0]

    before = after = error()
    fitted = 0
    if plan.fit:
        pruned, fitted = refit(trace, pruned, gone, data, samples, plan.work, context.seed, threads)
        after = error()
    _check(model, pruned)
    notes = (
        f"{saved:.0%} of the multiplications gone, {plan.amount:.0%} asked for",
        f"{fitted} layers fitted anew: error at the outputs {before:.3g} -> {after:.3g}",
        *amounts.kept_shares(trace, curves, gone),
        *_left_alone(trace),
    )
    return pruned, Report(saved, before, after, notes)


def _parts(
    calibration: Mapping[str, Array], samples: int
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Return samples from all over the data: all, those to learn from, and those to judge by."""
    rows = min(len(array) for array in calibration.values())
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, samples)).round().astype(int))
    if len(chosen) < 16:
        parts = [chosen, chosen, chosen]
    else:
        judged = np.arange(len(chosen)) % 4 == 3
        parts = [chosen, chosen[~judged], chosen[judged]]
    first, second, third = ({n: a[part] for n, a in calibration.items()} for part in parts)
    return first, second, third


def _readers(trace: Trace, clusters: list[Cluster]) -> list[Layer]:
    """Return the layers that read channels of the clusters."""
    mine = {one for cluster in clusters for one in cluster.classes}
    return [
        layer
        for layer in trace.layers
        if layer.ids_in is not None and mine & set(trace.atoms.roots(layer.ids_in).tolist())
    ]


def _too_wide(trace: Trace, cluster: Cluster) -> bool:
    """Tell whether a layer that reads the cluster has more inputs than can be summed over."""
    return any(
        layer.ids_in is not None and len(layer.ids_in) // layer.group > importance.MOST_INPUTS
        for layer in _readers(trace, [cluster])
    )


def _least(cluster: Cluster, keep: float) -> int:
    return max(1, round(keep * len(cluster.classes)))


def _left_alone(trace: Trace) -> tuple[str, ...]:
    """Return a note about the operators that channels could not be followed through."""
    if not trace.stopped:
        return ()
    ops = ", ".join(f"{op} ({count})" for op, count in sorted(trace.stopped.items()))
    return (f"left alone: channels that end in {ops}",)


def _nothing(trace: Trace, plan: Plan) -> str:
    """Return why nothing can be pruned."""
    makers = sum(1 for layer in trace.layers if any(trace.atoms.roots(layer.ids_out) != PINNED))
    kinds = " or ".join(sorted(plan.kinds))
    if makers:
        return f"the model has no {kinds} to prune"
    stopped = ", ".join(sorted(trace.stopped)) or "its outputs"
    return f"the model has no {kinds} to prune: all that it computes ends in {stopped}"


def _check(model: onnx.ModelProto, pruned: onnx.ModelProto) -> None:
    """Check that what came out is a model with the same inputs and outputs.

    Raises:
        ModelError: It is not.
    """
    if signature(pruned) != signature(model):
        raise ModelError("pruning changed the inputs or outputs of the model", "report this")
    try:
        onnx.checker.check_model(pruned, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        text = " ".join(str(error).split())
        raise ModelError(f"the pruned model is invalid: {text}", "report this") from error
