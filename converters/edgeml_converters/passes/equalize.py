"""Equalize: scale channels between two convolutions so that fewer of them are lost in 8 bits.

A positive factor goes through ReLU: ``W2 relu(W1 x + b1) = (W2 S) relu(S^-1 W1 x + S^-1 b1)`` for
any positive diagonal S (Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and
Bias Correction, equations 5 to 7). The factor of channel i is ``s_i = sqrt(r1_i / r2_i)``
(equation 11), where r2_i is the range of what reads the channel, and r1_i that of what makes it:

- ``weights``: the range of the weights that make it, as in the paper: for weights with one scale
  per tensor. It needs no data; chains are gone over until the factors stay.
- ``activations``: the range of the channel itself on calibration data: for weights with a scale
  per channel, which rounding of the first weights does not concern any more.

Values stay, but for float rounding. Between the two may stand Relu, LeakyRelu and pooling; a
depthwise convolution is first and second in turn. Clip is no such operator: its bound stays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx

from edgeml.errors import ModelError, UsageError, nearest
from edgeml.tensors import Array
from edgeml_converters.layers.graph import View, Weights
from edgeml_converters.layers.taps import feeds, tapped
from edgeml_converters.passes.base import (
    SIGNATURE,
    STANDARD,
    VALUES,
    PassContext,
    PassResult,
)

_BY = frozenset({"weights", "activations"})
#: Operators that a positive factor per channel goes through.
_THROUGH = frozenset(
    {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
)
_IMAGES = frozenset({"Conv"})
#: Factors outside of this make weights so small or so large that float itself loses digits.
_LEAST, _MOST = 1 / 64, 64.0
#: Rounds over all pairs, at most, and the change of a factor below which they stay.
_ROUNDS, _STILL = 20, 0.01
_SAMPLES = 64


class Pair(NamedTuple):
    """Two products between which channels can be scaled; ``tensor`` is what the second reads."""

    first: onnx.NodeProto
    second: onnx.NodeProto
    tensor: str


class Equalize:
    """Scale channels between convolutions; see the module."""

    name = "equalize"
    promises = frozenset({SIGNATURE, STANDARD, VALUES})

    def __init__(self, by: str = "weights") -> None:
        """Choose what is made equal: ``weights`` or ``activations``.

        Raises:
            UsageError: Another word.
        """
        if by not in _BY:
            raise UsageError(f"cannot equalise by '{by}'", nearest(by, _BY))
        self._by = by

    @property
    def needs(self) -> frozenset[str]:
        """Calibration data, by activations."""
        return frozenset({"calibration"} if self._by == "activations" else ())

    @property
    def options(self) -> dict[str, Any]:
        """What is made equal."""
        return {"by": self._by}

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: There is no pair of products that it can be applied to, or no calibration
                data where it is needed.
        """
        view = View(model)
        pairs = list(_pairs(view))
        if not pairs:
            raise ModelError(
                "nothing to equalise: no two convolutions with only Relu or pooling between",
                "this recipe does not fit the model; others are not concerned",
            )
        ranges = _activations(model, pairs, context) if self._by == "activations" else {}
        largest = 1.0
        for _ in range(1 if ranges else _ROUNDS):
            change = 1.0
            for pair in pairs:
                factors = _factors(view, pair, ranges.get(pair.tensor))
                _scale(view, pair, factors)
                change = max(change, float(np.maximum(factors, 1 / factors).max()))
            largest = max(largest, change)
            if change < 1 + _STILL:
                break
        product = view.finish()
        onnx.checker.check_model(product)
        note = f"{len(pairs)} pairs, factors up to {largest:.3g}"
        return PassResult(product, product != model, (note,))


def _pairs(view: View) -> list[Pair]:
    """Return the pairs in the order of the graph."""
    found: list[Pair] = []
    weights = {id(node): w for node, w in view.products()}
    for node, mine in view.products():
        if not _alone(view, node, mine):
            continue
        tensor = node.output[0]
        user = view.sole_user(tensor)
        while user is not None and user.op_type in _THROUGH and len(user.output) == 1:
            tensor = user.output[0]
            user = view.sole_user(tensor)
        if user is None or user.input[0] != tensor:
            continue
        theirs = weights.get(id(user))
        if theirs is None or not _alone(view, user, theirs):
            continue
        same = (user.op_type in _IMAGES) == (node.op_type in _IMAGES)
        if same and _inputs(view, theirs) == view.array(mine.name).shape[mine.out_axis]:
            found.append(Pair(node, user, tensor))
    return found


def _alone(view: View, node: onnx.NodeProto, weights: Weights) -> bool:
    """Tell whether a product's weights and bias are its own, and it is of a kind we scale."""
    if node.op_type not in {*_IMAGES, "Gemm", "MatMul"} or not view.own(weights.name):
        return False
    third = len(node.input) > 2 and bool(node.input[2])
    return not third or (bool(weights.bias) and view.own(weights.bias))


def _inputs(view: View, weights: Weights) -> int:
    """Return how many input channels a product has, all groups together."""
    return int(view.array(weights.name).shape[weights.in_axis]) * weights.groups


def _rows(view: View, weights: Weights) -> Array:
    """Return the largest absolute weight of each input channel."""
    values = np.abs(view.array(weights.name))
    if weights.groups == 1:
        plain: Array = np.moveaxis(values, weights.in_axis, 0)
        plain = plain.reshape(len(plain), -1).max(axis=1)
        return plain
    grouped = values.reshape(weights.groups, -1, *values.shape[1:])
    rows: Array = np.moveaxis(grouped, 2, 1).reshape(_inputs(view, weights), -1).max(axis=1)
    return rows


def _columns(view: View, weights: Weights) -> Array:
    """Return the largest absolute weight of each output channel."""
    values = np.moveaxis(np.abs(view.array(weights.name)), weights.out_axis, 0)
    columns: Array = values.reshape(len(values), -1).max(axis=1)
    return columns


def _factors(view: View, pair: Pair, ranges: Array | None) -> Array:
    """Return the factor of each channel; 1 for channels that carry nothing."""
    first, second = view.weights(pair.first), view.weights(pair.second)
    assert first is not None and second is not None  # pairs are made of products
    above = _columns(view, first) if ranges is None else ranges
    below = _rows(view, second)
    known = (above > 0) & (below > 0)
    factors = np.ones(len(above), np.float64)
    factors[known] = np.sqrt(above[known] / below[known], dtype=np.float64)
    if ranges is not None and known.any():
        # Only the ratio of the factors matters: 8 bits do not see a common one.
        factors[known] /= np.exp(np.mean(np.log(factors[known])))
    return np.clip(factors, _LEAST, _MOST)


def _scale(view: View, pair: Pair, factors: Array) -> None:
    """Divide what makes each channel by its factor, and multiply what reads it."""
    first, second = view.weights(pair.first), view.weights(pair.second)
    assert first is not None and second is not None  # pairs are made of products
    values = view.array(first.name)
    shape = [-1 if axis == first.out_axis else 1 for axis in range(values.ndim)]
    view.put(first.name, (values / factors.reshape(shape)).astype(np.float32))
    if first.bias:
        bias = view.array(first.bias)
        view.put(first.bias, (bias / factors.reshape(bias.shape)).astype(np.float32))
    values = view.array(second.name)
    if second.groups == 1:
        shape = [-1 if axis == second.in_axis else 1 for axis in range(values.ndim)]
        scaled = values * factors.reshape(shape)
    else:
        grouped = values.reshape(second.groups, -1, *values.shape[1:])
        each = factors.reshape(second.groups, 1, -1, *(1 for _ in values.shape[2:]))
        scaled = (grouped * each).reshape(values.shape)
    view.put(second.name, scaled.astype(np.float32))


def _activations(
    model: onnx.ModelProto, pairs: list[Pair], context: PassContext
) -> dict[str, Array]:
    """Return tensor -> the largest absolute value of each of its channels."""
    if not context.calibration:
        raise ModelError(
            "equalising activations needs calibration data", "give evaluation data by --data"
        )
    axes = {p.tensor: 1 if p.second.op_type in _IMAGES else -1 for p in pairs}
    found: dict[str, Array] = {}
    with tapped(model, axes, context.threads) as run:
        for feed in feeds(model, context.calibration, _SAMPLES):
            for name, values in run(feed).items():
                channels = np.moveaxis(np.abs(values), axes[name], 0)
                largest = channels.reshape(len(channels), -1).max(axis=1)
                found[name] = np.maximum(found.get(name, largest), largest)
    return found
