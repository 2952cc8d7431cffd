"""DriftWindow: what a device saw in a stretch of time, as counts that merge by addition."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import msgspec
import numpy as np

from edgeml.drift.features import CONFIDENCE_BINS, extract, scores
from edgeml.drift.reference import SLOTS, Binner, DriftReference, confidence_counts
from edgeml.errors import DataError
from edgeml.stats import varint
from edgeml.tensors import Array

SCHEMA = 1
_MAX_COUNT_BYTES = 9


class _Wire(msgspec.Struct, frozen=True, array_like=True):
    """A window on the wire: counts as variable-length integers, compressed."""

    schema: int
    reference: str
    n: int
    counts: bytes


class DriftWindow:
    """Counts since it was made. Not safe for two threads at once.

    Attributes:
        reference: What the counts are held against.
        n: Number of samples.
        counts: [features, slots].
        sums: [features], sums of grid cells; they give the mean to 1/256 of the range.
        classes: Per output with scores: samples per predicted class.
        confidence: Per output with scores: samples per part of [0, 1].
    """

    def __init__(self, reference: DriftReference) -> None:
        """Start empty."""
        self.reference = reference
        self._binner = Binner(reference.features)
        self._digest = reference.digest
        self.n = 0
        self.counts = np.zeros((len(reference.features), SLOTS), np.int64)
        self.sums = np.zeros(len(reference.features), np.int64)
        self.classes = [np.zeros(s.plan.size, np.int64) for s in reference.scores]
        self.confidence = [np.zeros(CONFIDENCE_BINS, np.int64) for _ in reference.scores]

    def add(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Count a batch.

        Args:
            inputs: One array per input, samples on axis 0.
            outputs: The model's outputs, samples on axis 0.

        Raises:
            DataError: A tensor is missing, of another size, or of another number of samples.
        """
        found = [extract(plan, inputs) for plan in self.reference.inputs]
        found += [extract(plan, outputs) for plan in self.reference.outputs]
        rows = {len(part) for part in found}
        rows |= {len(outputs[s.plan.name]) for s in self.reference.scores if s.plan.name in outputs}
        if len(rows) > 1:
            raise DataError(f"tensors have {sorted(rows)} samples, expected one number")
        pairs = [scores(s.plan, outputs) for s in self.reference.scores]
        if found:
            counts, sums = self._binner.count(np.concatenate(found, axis=1))
            self.counts += counts
            self.sums += sums
        for i, (classes, confidence) in enumerate(pairs):
            self.classes[i] += np.bincount(classes, minlength=len(self.classes[i]))
            self.confidence[i] += confidence_counts(confidence)
        self.n += rows.pop() if rows else 0

    def merge(self, other: DriftWindow) -> None:
        """Add the counts of another window of the same reference.

        Raises:
            DataError: It belongs to another reference.
        """
        if other._digest != self._digest:
            raise DataError(f"window belongs to reference {other._digest}, not {self._digest}")
        self.n += other.n
        for mine, theirs in zip(self._parts(), other._parts(), strict=True):
            mine += theirs

    def _parts(self) -> list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
        return [self.counts, self.sums, *self.classes, *self.confidence]

    def encode(self) -> bytes:
        """Return the window for the wire; 14 to 16 bytes per feature at 200 to 1,000 samples."""
        flat = np.concatenate([part.ravel() for part in self._parts()])
        packed = zlib.compress(varint.encode(flat), 9)
        return msgspec.msgpack.encode(_Wire(SCHEMA, self._digest, self.n, packed))


def decode(data: bytes, reference: DriftReference) -> DriftWindow:
    """Read a window that a device sent, in bounded memory.

    Raises:
        DataError: It is broken, of a later format, or belongs to another reference.
    """
    window = DriftWindow(reference)
    parts = window._parts()
    total = sum(part.size for part in parts)
    try:
        wire = msgspec.msgpack.decode(data, type=_Wire)
        if wire.schema > SCHEMA or wire.reference != reference.digest:
            raise DataError(
                f"window of schema {wire.schema} belongs to {wire.reference[:80]}, "
                f"expected {SCHEMA} and {reference.digest}"
            )
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(wire.counts, total * _MAX_COUNT_BYTES + 1)
        flat = varint.decode(plain, total)
    except (zlib.error, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DataError(f"drift window is broken: {error}") from error
    at = 0
    for part in parts:
        part += flat[at : at + part.size].reshape(part.shape)
        at += part.size
    bad = any(int(row.sum()) != wire.n for row in window.counts) or any(
        int(c.sum()) > wire.n or int(c.sum()) != int(k.sum())
        for c, k in zip(window.classes, window.confidence, strict=True)
    )
    if bad or wire.n < 0:
        raise DataError(f"drift window is broken: its counts do not add up to {wire.n}")
    window.n = wire.n
    return window
