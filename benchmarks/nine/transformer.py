"""The parts of a transformer, written as exporters write them: MatMul, Add, Erf, no fusions."""

from __future__ import annotations

import math

from .builder import Net, Value

#: Log-normal spread of the columns of a weight, and of the gains of a normalisation.
_COLUMNS, _GAINS = 0.25, 0.2


def linear(net: Net, x: Value, width: int, gain: float = 1.0) -> Value:
    """Add ``x W + b`` with weights that multiply the standard deviation by about ``gain``."""
    inside = x.data.shape[-1]
    weight = net.dice.standard_normal((inside, width)) * gain / math.sqrt(inside)
    weight *= net.dice.lognormal(0.0, _COLUMNS, width)
    bias = net.dice.normal(0.0, 0.05, width)
    product = net.op("MatMul", x, net.parameter(weight))
    return net.op("Add", product, net.parameter(bias))


def norm(net: Net, x: Value) -> Value:
    """Add a layer normalisation with some spread of its gains."""
    width = x.data.shape[-1]
    scale = net.parameter(net.dice.lognormal(0.0, _GAINS, width))
    shift = net.parameter(net.dice.normal(0.0, 0.1, width))
    return net.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-6)


def gelu(net: Net, x: Value) -> Value:
    """Add the Gaussian error linear unit."""
    e = net.op("Erf", net.op("Div", x, net.number(math.sqrt(2.0))))
    return net.op("Mul", net.op("Mul", x, net.op("Add", e, net.number(1.0))), net.number(0.5))


def attention(
    net: Net, x: Value, heads: int, bias: Value | None = None, sharp: float = 1.0
) -> Value:
    """Add self-attention with its output projection.

    Args:
        net: The graph.
        x: States, (N, T, H).
        heads: How many.
        bias: Added to the scores before the softmax; broadcasts to (N, heads, T, T).
        sharp: Gain of queries and keys: the larger, the more a place looks at few others.
    """
    _, length, width = x.data.shape
    size = width // heads

    def split(gain: float, perm: list[int]) -> Value:
        y = net.shaped(linear(net, x, width, gain), 0, length, heads, size)
        return net.op("Transpose", y, perm=perm)

    q, k, v = split(sharp, [0, 2, 1, 3]), split(sharp, [0, 2, 3, 1]), split(1.0, [0, 2, 1, 3])
    scores = net.op("Div", net.op("MatMul", q, k), net.number(math.sqrt(size)))
    if bias is not None:
        scores = net.op("Add", scores, bias)
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    joined = net.shaped(net.op("Transpose", mixed, perm=[0, 2, 1, 3]), 0, length, width)
    return linear(net, joined, width)


def feed_forward(net: Net, x: Value, inner: int) -> Value:
    """Add the two layers behind the attention."""
    return linear(net, gelu(net, linear(net, x, inner)), x.data.shape[-1])
