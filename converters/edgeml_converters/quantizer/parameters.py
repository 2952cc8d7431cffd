"""Scales and zero points: ``real = scale * (stored - zero_point)``.

Activations are asymmetric and per tensor, and 0 is always exact (padding needs that). Weights are
symmetric int8, biases int32 with scale ``activation scale * weight scale`` (Jacob et al. 2018,
Quantization and Training of Neural Networks, section 2).
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from edgeml.tensors import Array

Range = tuple[float, float]
#: Scheme -> (type, smallest, largest) of stored activations.
STORED: dict[str, tuple[type[np.generic], int, int]] = {
    "u8s8": (np.uint8, 0, 255),
    "s8s8": (np.int8, -128, 127),
}
#: Stored biases stay below this, so that sums in int32 cannot overflow.
_BIAS_LIMIT = 2.0**30


class Activation(msgspec.Struct, frozen=True):
    """Parameters of an activation."""

    scale: float
    zero_point: int


class Weights(msgspec.Struct, frozen=True):
    """Stored weights: int8 values, and one float32 scale per channel [c], or one for all []."""

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]


def activation(low: float, high: float, scheme: str = "u8s8") -> Activation:
    """Return the parameters that cover [low, high] and 0 with 256 steps."""
    _, smallest, largest = STORED[scheme]
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / (largest - smallest)))
    if scale < np.finfo(np.float32).tiny:
        return Activation(1.0, 0)
    zero = int(np.clip(round(smallest - low / scale), smallest, largest))
    return Activation(scale, zero)


def stored(array: Array, found: Activation, scheme: str = "u8s8") -> Array:
    """Return an array as it is stored."""
    kind, smallest, largest = STORED[scheme]
    steps = np.rint(np.asarray(array, np.float64) / found.scale) + found.zero_point
    return np.asarray(np.clip(steps, smallest, largest), kind)


def weights(
    array: npt.NDArray[np.float32],
    axis: int | None,
    *,
    reduce_range: bool = False,
    input_scale: float = 0.0,
    bias: Array | None = None,
) -> Weights:
    """Quantise weights symmetrically.

    Args:
        array: The weights.
        axis: The axis of output channels for one scale per channel; None for one scale.
        reduce_range: Use [-64, 64] only: sums of two products then fit into the 16 bits of
            ``vpmaddubsw``, which processors without VNNI use.
        input_scale: Of the activation that they meet; 0 when the bias stays float.
        bias: [channels] or None; a scale is raised when the bias would not fit into int32.
    """
    limit = 64 if reduce_range else 127
    if axis is None:
        largest = np.abs(array).max(initial=0.0).reshape(())
    else:
        others = tuple(i for i in range(array.ndim) if i != axis)
        largest = np.abs(array).max(axis=others, initial=0.0)
    largest = np.asarray(largest, np.float64)
    scale = np.where(largest > 0, largest / limit, 1.0)
    if bias is not None and input_scale > 0:
        need = np.abs(np.asarray(bias, np.float64)) / (_BIAS_LIMIT * input_scale)
        scale = np.maximum(scale, need if axis is not None else need.max(initial=0.0))
    scale32 = np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)
    shape = [1] * array.ndim
    if axis is not None:
        shape[axis] = -1
    values = np.rint(array / scale32.reshape(shape))
    return Weights(np.clip(values, -limit, limit).astype(np.int8), scale32)


def bias(
    array: Array, input_scale: float, weight_scale: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return a stored bias [c] and its scales, shaped as those of the weights."""
    scale = (np.float32(input_scale) * weight_scale).astype(np.float32)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    steps = np.rint(np.asarray(array, np.float64) / scale)
    info = np.iinfo(np.int32)
    return np.clip(steps, info.min, info.max).astype(np.int32), scale


class Groups:
    """Tensors that must share one scale (union by name)."""

    def __init__(self) -> None:
        """Start with every tensor on its own."""
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        """Return the name that stands for a tensor's group."""
        while self._parent.get(name, name) != name:
            name = self._parent[name]
        return name

    def join(self, first: str, second: str) -> None:
        """Put two tensors into one group."""
        a, b = self.find(first), self.find(second)
        if a != b:
            self._parent[b] = a
