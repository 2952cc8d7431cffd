"""Smooth: move large channels of activations into the weights behind a LayerNormalization.

Transformers have channels of activations that are far larger than the others, and 8 bits with one
scale per tensor lose the others. A factor per channel, ``s_j = max|X_j|^a / max|W_j|^(1-a)``, is
divided out of the activations and multiplied into the weights that read them (Xiao et al. 2022,
SmoothQuant, equation 4): ``X W = (X diag(s)^-1) (diag(s) W)``. The division goes into the scale and
the bias of the LayerNormalization, so it costs nothing; where something else reads its output too
(a residual connection after the norm), that gets the old values back by one multiplication.

The exponent is chosen for each LayerNormalization by the measured error of the products in 8 bits,
on rows of calibration data; none is applied where it does not help. Values stay, but for rounding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from edgeml.errors import ModelError, UsageError
from edgeml.tensors import Array
from edgeml_converters.layers.graph import View, Weights
from edgeml_converters.layers.taps import feeds, tapped
from edgeml_converters.passes.base import (
    CALIBRATION,
    FLOAT,
    OPSET13,
    SIGNATURE,
    STANDARD,
    VALUES,
    PassContext,
    PassResult,
)
from edgeml_converters.quantizer.prepare import prepared

#: Exponents that are tried.
_ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
#: An exponent must take at least this share of the error's power away to be used.
_LEAST_GAIN = 0.1
_LEAST, _MOST = 1 / 64, 64.0
#: Rows of activations that the error is measured on, for each norm, and samples they come from.
_ROWS, _SAMPLES = 256, 16


class Site(NamedTuple):
    """A norm and the products that read its output.

    Attributes:
        output: What the norm makes.
        gamma: Name of its stored scale.
        beta: Name of its stored bias; empty when it has none.
        products: The products with stored weights that read it.
        shared: Whether something else reads it too.
    """

    output: str
    gamma: str
    beta: str
    products: tuple[tuple[onnx.NodeProto, Weights], ...]
    shared: bool


class Smooth:
    """Move large channels from activations into weights; see the module."""

    name = "smooth"
    needs = frozenset({CALIBRATION, FLOAT, OPSET13})
    promises = frozenset({SIGNATURE, STANDARD, VALUES})

    def __init__(self, alpha: float | None = None, reduce_range: bool = False) -> None:
        """Choose the exponent.

        Args:
            alpha: For every norm; None measures which is best for each.
            reduce_range: Whether weights will have 7 bits.

        Raises:
            UsageError: The exponent is not between 0 and 1.
        """
        if alpha is not None and not 0 < alpha < 1:
            raise UsageError(f"alpha is {alpha:g}, expected a number between 0 and 1")
        self._alpha, self._levels = alpha, 63 if reduce_range else 127

    @property
    def options(self) -> dict[str, Any]:
        """What was chosen."""
        return {"alpha": self._alpha, "reduce_range": self._levels == 63}

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: No calibration data, or no LayerNormalization in front of a product.
        """
        view = View(prepared(model))
        sites = list(_sites(view))
        if not sites:
            raise ModelError(
                "nothing to smooth: no LayerNormalization with stored scale in front of a product",
                "this recipe does not fit the model; others are not concerned",
            )
        rows = _sample(view.model, [site.output for site in sites], context)
        done: list[float] = []
        for site in sites:
            alpha, factors = self._choose(view, site, rows[site.output])
            if factors is not None:
                _apply(view, site, factors)
                done.append(alpha)
        if not done:
            return PassResult(model, False, (f"{len(sites)} norms, none gains by it",))
        product = view.finish()
        onnx.checker.check_model(product)
        used = ", ".join(f"{alpha:g}" for alpha in sorted(set(done)))
        return PassResult(product, True, (f"{len(done)} of {len(sites)} norms, alpha {used}",))

    def _choose(self, view: View, site: Site, rows: Array) -> tuple[float, Array | None]:
        """Return the best exponent and its factors; None when none is better than nothing."""
        matrices = [_matrix(view, weights) for _, weights in site.products]
        above = np.abs(rows).max(axis=0)
        below = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
        if self._alpha is not None:
            return self._alpha, _factors(above, below, self._alpha)
        plain = self._error(rows, matrices, np.ones(rows.shape[1], np.float32))
        best, chosen = plain * (1 - _LEAST_GAIN), None
        alpha = 0.0
        for exponent in _ALPHAS:
            factors = _factors(above, below, exponent)
            error = self._error(rows, matrices, factors)
            if error < best:
                best, chosen, alpha = error, factors, exponent
        return alpha, chosen

    def _error(self, rows: Array, matrices: list[Array], factors: Array) -> float:
        """Return the power of the error of the products in 8 bits, over that of the products."""
        total = 0.0
        rough = _round_activations(rows / factors)
        for matrix in matrices:
            scaled = matrix * factors[:, None]
            scale = np.maximum(np.abs(scaled).max(axis=0), 1e-30) / self._levels
            exact = rows @ matrix
            wrong = rough @ (np.rint(scaled / scale) * scale) - exact
            total += float((wrong**2).sum() / max(float((exact**2).sum()), 1e-30))
        return total


def _round_activations(values: Array) -> Array:
    """Round to 8 bits without sign, one scale and one zero point for all values."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = max(high - low, 1e-30) / 255
    zero = np.rint(-low / scale)
    rounded: Array = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
    return rounded


def _factors(above: Array, below: Array, alpha: float) -> Array:
    """Return equation 4, bounded; 1 for channels that carry nothing."""
    known = (above > 0) & (below > 0)
    factors = np.ones(len(above), np.float64)
    factors[known] = above[known] ** alpha / below[known] ** (1 - alpha)
    if known.any():
        # Only the ratio of the factors matters: 8 bits do not see a common one.
        factors[known] /= np.exp(np.mean(np.log(factors[known])))
    return np.clip(factors, _LEAST, _MOST).astype(np.float32)


def _sites(view: View) -> list[Site]:
    """Return the norms that can be scaled."""
    weights = {id(node): w for node, w in view.products()}
    found: list[Site] = []
    for node in view.graph.node:
        parts = _norm(view, node)
        if parts is None:
            continue
        output, gamma, beta = parts
        users = view.users.get(output, [])
        products = tuple(
            (user, weights[id(user)])
            for user in users
            if user.op_type in ("MatMul", "Gemm")
            and id(user) in weights
            and user.input[0] == output
            and view.own(weights[id(user)].name)
        )
        shared = len(products) < len(users) or output in view.outputs | view.inner
        if products:
            found.append(Site(output, gamma, beta, products, shared))
    return found


def _norm(view: View, node: onnx.NodeProto) -> tuple[str, str, str] | None:
    """Return output, scale and bias of a LayerNormalization over the last axis, whole or in parts.

    In parts it ends in ``Add(Mul(normalised, scale), bias)``, as exporters wrote it for long.
    """
    if node.op_type == "LayerNormalization":
        gamma, beta = node.input[1], node.input[2] if len(node.input) > 2 else ""
        names = [gamma, *([beta] if beta else [])]
        output = node.output[0]
    elif node.op_type == "Add":
        beta = next((name for name in node.input if view.floating(name)), "")
        product = next((view.maker[name] for name in node.input if name in view.maker), None)
        if not beta or product is None or product.op_type != "Mul":
            return None
        gamma = next((name for name in product.input if view.floating(name)), "")
        divided = next((view.maker[name] for name in product.input if name in view.maker), None)
        if divided is None or divided.op_type != "Div" or view.sole_user(product.output[0]) is None:
            return None
        names, output = [gamma, beta], node.output[0]
    else:
        return None
    if not all(view.floating(name) and view.array(name).ndim == 1 for name in names):
        return None
    if len({view.array(name).shape for name in names}) != 1 or not all(map(view.own, names)):
        return None
    return output, gamma, beta


def _matrix(view: View, weights: Weights) -> Array:
    """Return weights as [inputs, outputs]."""
    values = view.array(weights.name)
    return values if weights.in_axis == 0 else values.T


def _sample(model: onnx.ModelProto, names: list[str], context: PassContext) -> dict[str, Array]:
    """Return some rows of each tensor, spread over the calibration data."""
    found: dict[str, list[Array]] = {name: [] for name in names}
    each = max(1, _ROWS // _SAMPLES)
    with tapped(model, names, context.threads) as run:
        for feed in feeds(model, context.calibration, _SAMPLES):
            for name, values in run(feed).items():
                rows = values.reshape(-1, values.shape[-1])
                count = min(len(rows), each * max(1, len(values)))
                found[name].append(rows[np.linspace(0, len(rows) - 1, count).astype(int)])
    return {name: np.concatenate(parts)[:_ROWS] for name, parts in found.items()}


def _apply(view: View, site: Site, factors: Array) -> None:
    """Divide the norm's output, multiply the weights, give others the old values back."""
    for name in (site.gamma, site.beta):
        if name:
            view.put(name, view.array(name) / factors)
    for _, weights in site.products:
        values = view.array(weights.name)
        shape = [-1 if axis == weights.in_axis else 1 for axis in range(values.ndim)]
        view.put(weights.name, values * factors.reshape(shape))
    if not site.shared:
        return
    mine = {id(node) for node, _ in site.products}
    old, maker = f"{site.output}_smooth", view.maker[site.output]
    # The norm's output gets a new name, which the products read; the old name keeps its values.
    for index, name in enumerate(maker.output):
        if name == site.output:
            maker.output[index] = old
    for node in view.graph.node:
        if id(node) in mine:
            node.input[0] = old
    back = helper.make_node(
        "Mul",
        [old, view.add(f"{old}_factors", factors)],
        [site.output],
        name=f"{old}_back",
    )
    position = [id(n) for n in view.graph.node].index(id(maker)) + 1
    view.graph.node.insert(position, back)
    view.refresh()
