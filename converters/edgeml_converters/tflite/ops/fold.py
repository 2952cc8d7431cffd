"""Fold the strides of a convolution over few channels into its channels.

Processors multiply 8 or 16 input channels at a time; a first layer over 1 or 3 channels leaves
most of that idle. With stride s, every s x s block of pixels can stand as s * s times the channels
of one pixel, and the kernel likewise:

    [1, H, W, C] * [O, kh, kw, C], stride s
    = [1, H / s, W / s, s s C] * [O, kh / s, kw / s, s s C], stride 1

The kernel is filled up with zero weights, before its first row and column as well, so that the
padding becomes whole blocks. The same integers are multiplied, so nothing changes but the speed.
It is done only where TFLite's own SAME or VALID then pads right: an explicit PAD over small rows
costs more than is gained. (For the keyword
DS-CNN, whose first layer is 10 x 4 over one channel, ``edgeml convert`` printed 48 us before and
41 us after, for the whole model, with LiteRT 2.3.0 on an AVX-512 VNNI processor.)
"""

from __future__ import annotations

import msgspec
import numpy as np

from edgeml.tensors import Array
from edgeml_converters.tflite.context import CHANNELS_LAST, Context, Value
from edgeml_converters.tflite.ops.windows import Window, same_pads

#: With more channels than this the multipliers are busy anyway.
_FEW_CHANNELS = 4


class Folded(msgspec.Struct, frozen=True):
    """A convolution with stride 1 over folded channels.

    Attributes:
        index: Tensor of the folded input.
        weights: [out, kh / s, kw / s, s * s * in].
        padding: The schema's SAME or VALID.
    """

    index: int
    weights: Array
    padding: int


class _Axis(msgspec.Struct, frozen=True):
    """One axis, in folded pixels but for ``before``: zero weights before the kernel."""

    before: int
    kernel: int
    size: int
    pads: tuple[int, int]


def _axis(size: int, kernel: int, stride: int, pad: int, out: int) -> _Axis:
    before = -pad % stride
    folded = -(-(kernel + before) // stride)
    length = -(-size // stride)
    first = (pad + before) // stride
    return _Axis(before, folded, length, (first, out - 1 + folded - length - first))


def fold_strides(
    context: Context, value: Value, weights: Array, shape: Window, out: tuple[int, ...], name: str
) -> Folded | None:
    """Return the folded convolution; None where folding is not possible or does not pay.

    Args:
        context: The graph and the file.
        value: The input, not padded yet.
        weights: [out, kh, kw, in], as TFLite stores them.
        shape: Kernel, strides, pads.
        out: Height and width of the output.
        name: Prefix of the new tensors.
    """
    stride = shape.strides[0]
    if stride < 2 or shape.strides[1] != stride or shape.dilations != (1, 1):
        return None
    if value.shape[1] > _FEW_CHANNELS:
        return None
    axes = [
        _axis(value.shape[2 + i], shape.kernel[i], stride, shape.pads[i], out[i]) for i in range(2)
    ]
    kinds = context.builder.schema.Padding
    if all(axis.pads == (0, 0) for axis in axes):
        padding = kinds.VALID
    elif all(axis.pads == same_pads(axis.size, axis.kernel, 1) for axis in axes):
        padding = kinds.SAME
    else:
        return None
    high, wide = axes
    if wide.size * stride != value.shape[3]:
        return None
    whole = _filled(context, context.stored_as(value, CHANNELS_LAST), high.size * stride, name)
    channels = stride * stride * value.shape[1]
    index = context.like(f"{name}_folded", (1, high.size, wide.size, channels), value)
    context.builder.operator(
        "SPACE_TO_DEPTH", [whole], [index], "SpaceToDepthOptions", blockSize=stride
    )
    return Folded(index, _folded_kernel(weights, axes, stride), padding)


def _filled(context: Context, value: Value, rows: int, name: str) -> int:
    """Return the image with rows of zeros below it, up to a whole number of blocks."""
    batch, high, wide, channels = value.stored
    if rows == high:
        return value.index
    # Rows at the end are bytes at the end: one long copy, where a PAD of an image copies each row.
    flat, longer = (batch, high * wide * channels), (batch, rows * wide * channels)
    index = context.like(f"{name}_flat", flat, value)
    context.reshape(value.index, index, flat, f"{name}_flat")
    amounts = context.builder.integers(
        f"{name}_fill_amounts", np.array([[0, 0], [0, longer[1] - flat[1]]])
    )
    filled = context.like(f"{name}_filled", longer, value)
    context.builder.operator("PAD", [index, amounts], [filled], "PadOptions")
    image = (batch, rows, wide, channels)
    whole = context.like(f"{name}_whole", image, value)
    context.reshape(filled, whole, image, f"{name}_whole")
    return whole


def _folded_kernel(weights: Array, axes: list[_Axis], stride: int) -> Array:
    """Return [out, kh / s, kw / s, s * s * in]; channels in the order of SPACE_TO_DEPTH."""
    sides = [
        (axis.before, axis.kernel * stride - weights.shape[1 + i] - axis.before)
        for i, axis in enumerate(axes)
    ]
    filled = np.pad(weights, ((0, 0), *sides, (0, 0)))
    out, channels = weights.shape[0], weights.shape[3]
    blocks = filled.reshape(out, axes[0].kernel, stride, axes[1].kernel, stride, channels)
    moved = blocks.transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(moved).reshape(out, axes[0].kernel, axes[1].kernel, -1)
