"""From samples to features: a few numbers per sample that tell whether the world has changed.

A small input is watched value by value; a large one (an image, a sound) by statistics of the whole
sample. Outputs with scores per class are watched as class and confidence; others value by value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edgeml.errors import DataError
from edgeml.tensors import Array

#: Inputs with more values per sample than this are summarised.
MAX_VALUES = 64
#: What is watched of a large input, per sample. The gradient is between neighbours in memory
#: order; ``low`` and ``high`` are the shares of values at or beyond the reference's extremes.
SUMMARY = ("mean", "std", "min", "max", "gradient", "zero", "low", "high")
CONFIDENCE_BINS = 20
#: So many values are looked at in one piece.
_PART_VALUES = 1 << 21

Matrix = npt.NDArray[np.float64]


class TensorPlan(msgspec.Struct, frozen=True):
    """How one tensor is watched.

    Attributes:
        name: Name of the input or output.
        size: Values per sample.
        kind: ``values``, ``summary`` or ``scores``.
        low: Smallest finite value of the reference.
        high: Largest finite value of the reference.
        softmax: Whether scores must go through softmax to be probabilities.
    """

    name: str
    size: int
    kind: Literal["values", "summary", "scores"]
    low: float = 0.0
    high: float = 0.0
    softmax: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that come from this tensor."""
        if self.kind == "summary":
            return tuple(f"{self.name}.{what}" for what in SUMMARY)
        if self.kind == "scores":
            return ()
        if self.size == 1:
            return (self.name,)
        return tuple(f"{self.name}[{i}]" for i in range(self.size))


def plan_tensor(name: str, array: Array, output: bool) -> TensorPlan:
    """Decide how a tensor is watched.

    Args:
        name: Its name.
        array: Its reference values, samples on axis 0.
        output: Whether it is an output of the model.
    """
    low, high = _range(array)
    size = _size(array)
    scores = output and array.ndim == 2 and size > 1 and np.issubdtype(array.dtype, np.floating)
    if scores:
        sums = _flat(array).sum(axis=1)
        sure = low >= 0 and high <= 1.001 and bool(np.all(np.abs(sums - 1) < 0.01))
        return TensorPlan(name, size, "scores", low, high, softmax=not sure)
    return TensorPlan(name, size, "values" if size <= MAX_VALUES else "summary", low, high)


def _size(array: Array) -> int:
    """Return the values per sample."""
    if array.ndim == 0:
        raise DataError("a tensor without a batch axis cannot be watched for drift")
    return int(np.prod(array.shape[1:], dtype=np.int64))


def _flat(array: Array) -> Matrix:
    """Return [samples, values] in float64."""
    size = _size(array)
    with np.errstate(all="ignore"):
        return array.reshape(array.shape[0], size).astype(np.float64)


def _parts(array: Array) -> Iterator[Array]:
    """Yield the samples in parts that are small in float64 too: images take much memory."""
    step = max(1, _PART_VALUES // max(_size(array), 1))
    for start in range(0, max(len(array), 1), step):
        yield array[start : start + step]


def _range(array: Array) -> tuple[float, float]:
    """Return the smallest and the largest finite value; zeros when there is none."""
    ranges = []
    for part in _parts(array):
        flat = _flat(part)
        finite = flat[np.isfinite(flat)]
        if finite.size:
            ranges.append((float(finite.min()), float(finite.max())))
    if not ranges:
        return 0.0, 0.0
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def extract(plan: TensorPlan, arrays: Mapping[str, Array]) -> Matrix:
    """Return the features [samples, features] of one tensor.

    Raises:
        DataError: The tensor is missing, or has another size.
    """
    array = _array(plan, arrays)
    if plan.kind != "summary":
        return _flat(array)
    return np.concatenate([_summary(plan, _flat(part)) for part in _parts(array)])


def scores(plan: TensorPlan, arrays: Mapping[str, Array]) -> tuple[npt.NDArray[np.int64], Matrix]:
    """Return class and confidence of each sample, without those that have a NaN or infinite score.

    Raises:
        DataError: The tensor is missing, or has another size.
    """
    flat = _flat(_array(plan, arrays))
    flat = flat[np.isfinite(flat).all(axis=1)]
    top = flat.max(axis=1) if len(flat) else np.zeros(0)
    if plan.softmax and len(flat):
        top = 1 / np.exp(flat - top[:, None]).sum(axis=1)
    return flat.argmax(axis=1).astype(np.int64), np.clip(top, 0, 1)


def _array(plan: TensorPlan, arrays: Mapping[str, Array]) -> Array:
    """Return the tensor of a plan, when it is as planned."""
    if plan.name not in arrays:
        raise DataError(f"tensor '{plan.name}' of the drift reference is missing")
    array = arrays[plan.name]
    if _size(array) != plan.size:
        raise DataError(
            f"tensor '{plan.name}' has {_size(array)} values per sample, expected {plan.size}"
        )
    return array


def _summary(plan: TensorPlan, flat: Matrix) -> Matrix:
    with np.errstate(all="ignore"):  # infinities give NaN, which is counted as NaN
        return np.stack(
            [
                flat.mean(axis=1),
                flat.std(axis=1),
                flat.min(axis=1),
                flat.max(axis=1),
                np.abs(np.diff(flat, axis=1)).mean(axis=1),
                (flat == 0).mean(axis=1),
                (flat <= plan.low).mean(axis=1),
                (flat >= plan.high).mean(axis=1),
            ],
            axis=1,
        )
