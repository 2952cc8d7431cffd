"""DriftReference: what the data looked like when the model was converted, as counts.

Per feature: 16 quantile bins on a grid of 256 cells, a bin below and one above the grid, and a
count of NaN. The edges are snapped to the grid when the reference is made, and both sides share
them, so that binning costs a multiplication and a look-up and is exact by construction.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import msgspec
import numpy as np
import numpy.typing as npt

from edgeml.digest import sha256_bytes
from edgeml.drift.features import (
    CONFIDENCE_BINS,
    MAX_VALUES,
    Matrix,
    TensorPlan,
    extract,
    plan_tensor,
    scores,
)
from edgeml.errors import DataError
from edgeml.tensors import Array

SCHEMA = 1
CELLS = 256
BINS = 16
#: Slots of a feature: below, the bins, above, NaN.
SLOTS = BINS + 3
BELOW, ABOVE, NAN = 0, BINS + 1, BINS + 2
_MAX_BYTES = 64 << 20


class Feature(msgspec.Struct, frozen=True):
    """The reference of one feature.

    Attributes:
        name: For example ``x[3]`` or ``image.mean``.
        lo: Where the grid begins.
        scale: Cells per unit.
        cuts: First cell of bins 1 to 15, ascending.
        counts: Samples per slot: below, 16 bins, above, NaN.
        mean: Of the finite values inside the grid.
        std: Of the finite values inside the grid.
    """

    name: str
    lo: float
    scale: float
    cuts: tuple[int, ...]
    counts: tuple[int, ...]
    mean: float
    std: float


class Scores(msgspec.Struct, frozen=True):
    """The reference of an output with scores per class.

    Attributes:
        plan: How it is watched.
        classes: Samples per predicted class.
        confidence: Samples per equal part of [0, 1] that the highest probability fell in.
    """

    plan: TensorPlan
    classes: tuple[int, ...]
    confidence: tuple[int, ...]


class DriftReference(msgspec.Struct, frozen=True):
    """What the data looked like.

    Attributes:
        n: Number of samples.
        inputs: How each input is watched.
        outputs: How each output without scores is watched.
        features: In the order of the plans.
        scores: Outputs with scores per class.
        schema: Version of this format.
    """

    n: int
    inputs: tuple[TensorPlan, ...]
    outputs: tuple[TensorPlan, ...]
    features: tuple[Feature, ...]
    scores: tuple[Scores, ...]
    schema: int = SCHEMA

    def encode(self) -> bytes:
        """Return the reference as bytes; equal references give equal bytes."""
        return zlib.compress(msgspec.msgpack.encode(self), 9)

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of the content: what a window says that it belongs to."""
        return sha256_bytes(msgspec.msgpack.encode(self))


def decode(data: bytes) -> DriftReference:
    """Read a reference, in bounded memory.

    Raises:
        DataError: It is broken, or of a later format.
    """
    try:
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(data, _MAX_BYTES)
        if not unpacker.eof:
            raise DataError(f"drift reference is cut short, or larger than {_MAX_BYTES} bytes")
        found = msgspec.msgpack.decode(plain, type=DriftReference)
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"drift reference is broken: {error}") from error
    _check(found)
    return found


def _check(reference: DriftReference) -> None:
    if reference.schema > SCHEMA:
        raise DataError(
            f"drift reference has schema {reference.schema}, this release reads {SCHEMA}",
            "upgrade edgeml-kit",
        )
    plans = (*reference.inputs, *reference.outputs)
    names = tuple(f.name for f in reference.features)
    right = all((p.size > MAX_VALUES) == (p.kind == "summary") and p.size >= 0 for p in plans)
    if not right or names != tuple(name for p in plans for name in p.features):
        raise DataError("drift reference: the features are not those of its plans")
    for f in reference.features:
        cuts_ok = len(f.cuts) == BINS - 1 and all(0 <= c <= CELLS for c in f.cuts)
        if not cuts_ok or len(f.counts) != SLOTS or min(f.counts) < 0 or not f.scale > 0:
            raise DataError(f"drift reference: feature '{f.name}' is broken")
    for s in reference.scores:
        if len(s.classes) != s.plan.size or len(s.confidence) != CONFIDENCE_BINS:
            raise DataError(f"drift reference: scores '{s.plan.name}' are broken")


def build(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> DriftReference:
    """Make a reference from the data that the model was converted with.

    Args:
        inputs: One array per input, samples on axis 0.
        outputs: What the model made of them, samples on axis 0.

    Raises:
        DataError: There are no samples, or tensors disagree on how many.
    """
    arrays = {**inputs, **outputs}
    counts = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1 or counts == {0}:
        raise DataError(f"drift reference: tensors have {sorted(counts)} samples, expected one n")
    ins = tuple(plan_tensor(name, array, False) for name, array in inputs.items())
    outs = tuple(plan_tensor(name, array, True) for name, array in outputs.items())
    plain = tuple(p for p in outs if p.kind != "scores")
    features: list[Feature] = []
    for plan, source in [*((p, inputs) for p in ins), *((p, outputs) for p in plain)]:
        matrix = extract(plan, source)
        features += [_feature(n, matrix[:, i]) for i, n in enumerate(plan.features)]
    watched = []
    for plan in outs:
        if plan.kind == "scores":
            classes, confidence = scores(plan, outputs)
            watched.append(
                Scores(
                    plan,
                    tuple(np.bincount(classes, minlength=plan.size).tolist()),
                    tuple(confidence_counts(confidence).tolist()),
                )
            )
    return DriftReference(counts.pop(), ins, plain, tuple(features), tuple(watched))


def confidence_counts(confidence: Matrix) -> npt.NDArray[np.int64]:
    """Count confidences in [0, 1] in equal parts."""
    part = np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    return np.bincount(part, minlength=CONFIDENCE_BINS)


def _feature(name: str, values: Matrix) -> Feature:
    finite = values[np.isfinite(values)]
    # Quantiles, not extremes: one broken reading in the reference must not stretch the grid.
    lo, hi = np.quantile(finite, [0.001, 0.999]).tolist() if finite.size else (0.0, 0.0)
    if not hi - lo > 1e-9 * max(abs(lo), abs(hi), 1e-30):
        half = max(abs(lo) * 1e-3, 1e-3)
        lo, hi = lo - half, hi + half
    scale = CELLS / ((hi - lo) * (1 + 1e-9))
    inside = finite[(finite >= lo) & (finite <= hi)]
    cells = np.sort(((inside - lo) * scale).astype(np.int64))
    at = (np.arange(1, BINS) * len(cells)) // BINS
    cuts = cells[at] if len(cells) else np.full(BINS - 1, CELLS)
    mean, std = (float(inside.mean()), float(inside.std())) if inside.size else (0.0, 0.0)
    bare = Feature(name, float(lo), float(scale), tuple(cuts.tolist()), (), mean, std)
    counts = Binner((bare,)).count(values[:, None])[0]
    return msgspec.structs.replace(bare, counts=tuple(counts[0].tolist()))


class Binner:
    """Counts a matrix of features into the slots of a reference."""

    def __init__(self, features: tuple[Feature, ...]) -> None:
        """Make the look-up table: feature and cell -> slot."""
        self._lo = np.array([f.lo for f in features])
        self._scale = np.array([f.scale for f in features])
        cells = np.arange(CELLS)
        # Position 0 is below the grid, CELLS + 1 above it, CELLS + 2 NaN.
        table = np.empty((len(features), CELLS + 3), np.uint8)
        table[:, 0], table[:, CELLS + 1], table[:, CELLS + 2] = BELOW, ABOVE, NAN
        for row, feature in zip(table, features, strict=True):
            row[1 : CELLS + 1] = 1 + np.searchsorted(feature.cuts, cells, side="right")
        self._table = table.ravel()
        self._rows = np.arange(len(features)) * (CELLS + 3)
        self._slots = np.arange(len(features)) * SLOTS
        self._size = len(features)

    def count(self, matrix: Matrix) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the counts [features, slots], and the sum of the cells inside the grid.

        Args:
            matrix: [samples, features]; NaN and infinities are counted, and disturb nothing.
        """
        with np.errstate(all="ignore"):
            place = np.floor((matrix - self._lo) * self._scale) + 1
        place = np.clip(np.where(np.isnan(place), CELLS + 2, np.minimum(place, CELLS + 1)), 0, None)
        # Minus infinity clips to 0, plus infinity to CELLS + 1; only NaN becomes CELLS + 2.
        cells = place.astype(np.int64)
        slots = self._table[cells + self._rows].astype(np.int64) + self._slots
        counts = np.bincount(slots.ravel(), minlength=self._size * SLOTS)
        inside = (cells >= 1) & (cells <= CELLS)
        return counts.reshape(self._size, SLOTS), np.where(inside, cells - 1, 0).sum(axis=0)
