"""Patches: what a convolution reads for some of its outputs, as rows of a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from edgeml.tensors import Array
from edgeml_converters.pruning.trace import attribute, integers


@dataclass(frozen=True)
class Window:
    """How a convolution goes over its input.

    Attributes:
        kernel: Size per axis.
        strides: Per axis.
        dilations: Per axis.
        pads: Before, per axis; None when they follow from the sizes (``SAME``).
        lower: Of an odd padding that follows from the sizes, whether the larger part is before.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    lower: bool = False

    def rows(self, x: Array, y: Array, places: Array) -> tuple[Array, Array]:
        """Return the patches and the outputs at some places.

        Args:
            x: Input, [samples, inputs, *space].
            y: Output, [samples, outputs, *space].
            places: Positions in the flattened space of the output.

        Returns:
            [rows, inputs * kernel] and [rows, outputs], rows by sample and place.
        """
        space = y.shape[2:]
        where = np.unravel_index(places, space)
        widths, picks = [(0, 0), (0, 0)], []
        for axis, kernel in enumerate(self.kernel):
            stride, dilation = self.strides[axis], self.dilations[axis]
            reach = (space[axis] - 1) * stride + (kernel - 1) * dilation + 1
            before = self._before(axis, reach - x.shape[2 + axis])
            widths.append((before, max(0, reach - before - x.shape[2 + axis])))
            taps = np.arange(kernel) * dilation
            shape = [len(places)] + [1] * len(self.kernel)
            shape[1 + axis] = kernel
            picks.append((where[axis][:, None] * stride + taps).reshape(shape))
        padded = np.pad(x, widths)
        index: tuple[Any, ...] = (slice(None), slice(None), *picks)
        patches = padded[index]  # [samples, inputs, places, *kernel]
        rows = np.moveaxis(patches, 2, 1).reshape(len(x) * len(places), -1)
        flat = y.reshape(*y.shape[:2], -1)[:, :, places]
        return rows, np.moveaxis(flat, 1, 2).reshape(len(rows), -1)

    def _before(self, axis: int, missing: int) -> int:
        if self.pads is not None:
            return self.pads[axis]
        total = max(0, missing)
        return (total + 1) // 2 if self.lower else total // 2


def window_of(node: onnx.NodeProto, shape: tuple[int, ...]) -> Window:
    """Return the window of a Conv node.

    Args:
        node: The node.
        shape: Of its weight, [outputs, inputs, *kernel].
    """
    kernel = shape[2:]
    ones = (1,) * len(kernel)
    auto = attribute(node, "auto_pad", b"NOTSET")
    same = auto in (b"SAME_UPPER", b"SAME_LOWER")
    pads = tuple(integers(node, "pads")[: len(kernel)]) or (0,) * len(kernel)
    return Window(
        kernel,
        tuple(integers(node, "strides")) or ones,
        tuple(integers(node, "dilations")) or ones,
        None if same else pads,
        auto == b"SAME_LOWER",
    )
