"""Scales and zero points, as every consumer of the portable recipe can take them.

Activations are int8, asymmetric, per tensor, and 0 is always exact. Weights are int8, symmetric,
in [-127, 127]; per output channel for convolutions, per tensor for dense layers (older TFLite
interpreters know nothing else there). Biases are int32 with scale ``input * weight``. Rules of
TFLite's operators are kept here, at quantisation, so that no consumer has to bend them later:
operators that only move values share one scale, and Softmax, Sigmoid and Tanh have fixed ones
(quantisation specification of TensorFlow Lite).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeml_converters.quantizer.parameters import Activation, Range, Weights
from edgeml_converters.quantizer.parameters import activation as stored_activation

#: Operator -> (scale, zero point) of its output.
FIXED: dict[str, tuple[float, int]] = {
    "Softmax": (1 / 256, -128),
    "Sigmoid": (1 / 256, -128),
    "Tanh": (1 / 128, 0),
}
#: Operators whose output has the scale of their first input.
MOVERS = frozenset(
    {"AveragePool", "Dropout", "Flatten", "Identity", "MaxPool", "Pad", "Reshape", "Squeeze",
     "Transpose", "Unsqueeze"}
)  # fmt: skip
#: Operators whose inputs and output all share one scale.
JOINERS = frozenset({"Concat"})
_BIAS_LIMIT = 2.0**30


def activation(low: float, high: float) -> Activation:
    """Return the parameters that cover [low, high] and 0 with the 256 steps of int8."""
    return stored_activation(low, high, "s8s8")


def weights(
    array: npt.NDArray[np.float32],
    axis: int | None,
    input_scale: float,
    bias: npt.NDArray[np.float32] | None,
) -> Weights:
    """Quantise weights symmetrically.

    Args:
        array: The weights.
        axis: The output-channel axis for one scale per channel; None for one scale.
        input_scale: Scale of the activation that they meet.
        bias: [channels] or None; a scale is raised when the bias would not fit into int32.
    """
    moved = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) if axis is not None else None
    largest = np.abs(moved).max(axis=1) if moved is not None else np.abs(array).max(keepdims=True)
    largest = np.atleast_1d(np.asarray(largest, np.float64).ravel())
    scale = np.where(largest > 0, largest / 127, 1.0)
    if bias is not None and input_scale > 0:
        need = np.abs(bias.astype(np.float64)) / (_BIAS_LIMIT * input_scale)
        scale = np.maximum(scale, need if axis is not None else need.max(initial=0.0))
    scale32 = scale.astype(np.float32)
    shape = [1] * array.ndim
    if axis is not None:
        shape[axis] = -1
    stored = np.clip(np.rint(array / scale32.reshape(shape)), -127, 127).astype(np.int8)
    return Weights(stored, scale32)


def bias(
    array: npt.NDArray[np.float32], input_scale: float, weight_scale: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return the stored bias [channels] and its scales."""
    scale = (np.float32(input_scale) * weight_scale).astype(np.float32)
    return np.rint(array.astype(np.float64) / scale).astype(np.int32), scale


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
        self._parent[self.find(second)] = self.find(first)

    def ranges(self, observed: dict[str, Range]) -> dict[str, Range]:
        """Return group -> the range of all its members."""
        merged: dict[str, Range] = {}
        for name, (low, high) in observed.items():
            group = self.find(name)
            before = merged.get(group, (low, high))
            merged[group] = (min(before[0], low), max(before[1], high))
        return merged
