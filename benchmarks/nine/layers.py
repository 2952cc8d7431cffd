"""Layers with weights of chance that behave like trained ones.

Weights are drawn after He et al. 2015 ("Delving deep into rectifiers"), each output channel with
a scale of its own (log-normal): the spread that makes quantisation of real networks hard. What
follows a convolution is normalised by the statistics of the samples, and a residual branch ends
with a small gain, as training leaves it (Goyal et al. 2017, section 5.1).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from onnx import helper

from .builder import Array, Net, Value, run_node

Norm = Literal["bn", "folded", "biased"]
#: Log-normal spread of the channels' weights, and of what they give after normalisation.
SPREAD, GAIN_SPREAD = 0.5, 0.2
#: Mean and spread of what a normalisation adds.
SHIFT = (0.6, 0.3)
#: Gain of the last normalisation of a residual branch.
BRANCH = 0.25
_EPSILON = 1e-5


def conv(
    net: Net,
    x: Value,
    channels: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    group: int = 1,
    pads: int | None = None,
    norm: Norm = "bn",
    gain: float = 1.0,
) -> Value:
    """Add a convolution and its normalisation.

    Args:
        net: The graph.
        x: Input, (N, C, H, W).
        channels: Output channels.
        kernel: Side of the kernel.
        stride: Of both axes.
        group: Groups; equal to the channels for a depthwise one.
        pads: On each side; half the kernel when None.
        norm: ``bn`` adds a BatchNormalization; ``folded`` puts the same into weight and bias;
            ``biased`` has a bias of 0 and no normalisation.
        gain: Mean gain of the normalisation.
    """
    inside = x.data.shape[1] // group * kernel * kernel
    shape = (channels, x.data.shape[1] // group, kernel, kernel)
    weight = net.dice.standard_normal(shape) * np.sqrt(2.0 / inside)
    weight *= net.dice.lognormal(0.0, SPREAD, (channels, 1, 1, 1))
    pad = kernel // 2 if pads is None else pads
    attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2,
                  "pads": [pad] * 4, "group": group}  # fmt: skip
    if norm == "biased":
        weights = net.parameter(weight), net.parameter(np.zeros(channels))
        return net.op("Conv", x, *weights, **attributes)
    scale = (gain * net.dice.lognormal(0.0, GAIN_SPREAD, channels)).astype(np.float32)
    shift = (gain * net.dice.normal(*SHIFT, channels)).astype(np.float32)
    if norm == "bn":
        return batch_norm(net, net.op("Conv", x, net.parameter(weight), **attributes), scale, shift)
    return _folded(net, x, weight.astype(np.float32), scale, shift, attributes)


def batch_norm(net: Net, x: Value, scale: Array, shift: Array) -> Value:
    """Add a BatchNormalization with the samples' own mean and variance."""
    mean, var = _moments(x.data)
    weights = [net.parameter(array) for array in (scale, shift, mean, var)]
    return net.op("BatchNormalization", x, *weights, epsilon=_EPSILON)


def _moments(data: Array) -> tuple[Array, Array]:
    """Return mean and variance of each channel; the variance is never 0."""
    return data.mean((0, 2, 3), dtype=np.float64), data.var((0, 2, 3), dtype=np.float64) + 1e-3


def _folded(
    net: Net,
    x: Value,
    weight: Array,
    scale: Array,
    shift: Array,
    attributes: dict[str, object],
) -> Value:
    """Add a convolution whose weight and bias already hold the normalisation."""
    trial = run_node(helper.make_node("Conv", ["x", "w"], ["y"], **attributes), [x.data, weight])
    mean, var = _moments(trial)
    gain = scale / np.sqrt(var + _EPSILON)
    w = net.parameter(weight * gain[:, None, None, None])
    return net.op("Conv", x, w, net.parameter(shift - mean * gain), **attributes)


def relu(net: Net, x: Value) -> Value:
    """Add a ReLU."""
    return net.op("Relu", x)


def relu6(net: Net, x: Value) -> Value:
    """Add a ReLU that ends at 6."""
    low = net.weight("zero", np.asarray(0.0, np.float32))
    return net.op("Clip", x, low, net.weight("six", np.asarray(6.0, np.float32)))


def max_pool(net: Net, x: Value, pads: int = 1, stride: int = 2) -> Value:
    """Add a 3x3 maximum pooling."""
    return net.op("MaxPool", x, kernel_shape=[3, 3], strides=[stride] * 2, pads=[pads] * 4)


def average_pool(net: Net, x: Value, stride: int) -> Value:
    """Add a 3x3 average pooling."""
    return net.op("AveragePool", x, kernel_shape=[3, 3], strides=[stride] * 2, pads=[1] * 4)


def global_pool(net: Net, x: Value) -> Value:
    """Add the average over all positions; (N, C) comes out."""
    return net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)


def dense(net: Net, x: Value, weight: Array, bias: Array) -> Value:
    """Add a fully connected layer; ``weight`` is (outputs, inputs)."""
    return net.op("Gemm", x, net.parameter(weight), net.parameter(bias), transB=1)
