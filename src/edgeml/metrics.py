"""Metrics, their intervals, and the paired test on a drop.

``--max-drop D`` is absolute for scores (``top1``, ``top5``, ``auc``, ``r2``, ``agreement``) and
relative for errors (``mae``, ``mse``). The rule of a verdict, with *drop* the estimate of how much
worse the candidate is than the reference on the same samples, and *upper* its one-sided 95 %
upper bound:

* ``ok``: upper <= D.
* ``fails``: upper > D and drop > D.
* ``undecided``: drop <= D < upper; the data are too few to tell.

For the share of right answers the bound is Tango's score bound for a paired difference (Tango
1998, Statistics in Medicine 17:891); when no answer differs it is the exact
``1 - 0.05 ** (1/n)`` (the rule of three), so equal answers on 500 samples prove only 0.6 %. For
``auc`` it is DeLong's (DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837); for the rest
the percentile bootstrap over samples, with a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
import numpy as np

from edgeml.errors import DataError, UsageError, nearest
from edgeml.manifest import Score
from edgeml.plugins import load_user_object, user_code
from edgeml.stats.proportion import wilson
from edgeml.tensors import Array

Outputs = Mapping[str, Array]

_Z_ONE = 1.6448536269514722  # one-sided 95 %
_Z_TWO = 1.959963984540054  # two-sided 95 %
_RESAMPLES = 1000
_SEED = 20240229


class DropVerdict(msgspec.Struct, frozen=True):
    """How much worse a candidate is, and whether that is too much.

    Attributes:
        state: ``ok``, ``fails`` or ``undecided``; the module gives the rule.
        drop: Estimate; negative when the candidate is better.
        upper: One-sided 95 % upper bound.
        lower: One-sided 95 % lower bound.
    """

    state: str
    drop: float
    upper: float
    lower: float


class Metric(Protocol):
    """A number that says how good outputs are."""

    name: str
    higher_is_better: bool

    def score(self, outputs: Outputs, labels: Array | None, reference: Outputs) -> Score:
        """Return the value with its two-sided 95 % interval.

        Args:
            outputs: Output name -> array, samples on axis 0.
            labels: One per sample; None where there are none.
            reference: Outputs of the source model on the same samples.

        Raises:
            DataError: The labels are missing, or do not fit the outputs.
        """
        ...

    def drop(
        self, reference: Outputs, candidate: Outputs, labels: Array | None, max_drop: float
    ) -> DropVerdict:
        """Compare a candidate with the reference, sample by sample.

        Raises:
            DataError: The labels are missing, or do not fit the outputs.
        """
        ...


def verdict(drop: float, lower: float, upper: float, max_drop: float) -> DropVerdict:
    """Apply the rule of the module."""
    if upper <= max_drop:
        return DropVerdict("ok", drop, upper, lower)
    # Written so that a drop that is not a number fails.
    return DropVerdict("undecided" if drop <= max_drop else "fails", drop, upper, lower)


def paired_bounds(losses: int, gains: int, n: int) -> tuple[float, float]:
    """Return one-sided 95 % bounds of ``(losses - gains) / n``.

    Args:
        losses: Samples that only the reference has right.
        gains: Samples that only the candidate has right.
        n: All samples.
    """
    upper = _tango(losses, gains, n)
    lower = -_tango(gains, losses, n)
    if losses == 0 and gains == 0:
        exact = 1 - 0.05 ** (1 / n)
        return min(lower, -exact), max(upper, exact)
    return lower, upper


def _tango(b: int, c: int, n: int) -> float:
    """Return the upper bound of ``(b - c) / n``: where Tango's statistic meets -1.645."""

    def statistic(delta: float) -> float:
        p, q = -b - c + (2 * n - b + c) * delta, -c * delta * (1 - delta)
        share = (math.sqrt(max(p * p - 8 * n * q, 0.0)) - p) / (4 * n)
        variance = n * (2 * share + delta * (1 - delta))
        return (b - c - n * delta) / math.sqrt(max(variance, 1e-300))

    low, high = (b - c) / n, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if statistic(middle) > -_Z_ONE:
            low = middle
        else:
            high = middle
    return high


def squeeze(array: Array) -> Array:
    """Drop axes of length 1 behind axis 0."""
    return array.reshape(len(array), *(n for n in array.shape[1:] if n != 1))


def need_labels(labels: Array | None, outputs: Outputs, name: str) -> Array:
    """Return the labels, one per sample.

    Raises:
        DataError: There are none, or another number than samples.
    """
    if labels is None:
        raise DataError(
            f"metric '{name}' needs labels, and the data has none",
            "add test/labels, or use the metric agreement",
        )
    n = len(next(iter(outputs.values())))
    if len(labels) != n or n == 0:
        raise DataError(f"metric '{name}': {len(labels)} labels for {n} samples")
    return labels


class _Shares:
    """The share of samples that are right: top1, top5."""

    higher_is_better = True

    def __init__(self, k: int) -> None:
        self.name = f"top{k}"
        self._k = k

    def _right(self, outputs: Outputs, labels: Array | None) -> Array:
        wanted = squeeze(need_labels(labels, outputs, self.name))
        if wanted.ndim != 1:
            raise DataError(
                f"metric '{self.name}': labels have shape {list(wanted.shape)}, expected one class "
                "number per sample"
            )
        for array in outputs.values():
            values = squeeze(array)
            if values.ndim == 1 and values.dtype.kind in "iu" and self._k == 1:
                return np.asarray(values == wanted)
            if values.ndim == 2 and values.dtype.kind in "iu" and values.shape[1] >= self._k:
                # Class numbers, best first, as the top classes of postprocessing are.
                return np.asarray((values[:, : self._k] == wanted[:, None]).any(axis=1))
            if values.ndim == 2 and values.dtype.kind == "f":
                self._check(wanted, values.shape[1])
                # Of equal scores the lower class number wins, on every machine.
                mine = np.take_along_axis(values, wanted[:, None].astype(np.int64), axis=1)
                lower = np.arange(values.shape[1]) < wanted[:, None]
                before = ((values > mine) | ((values == mine) & lower)).sum(axis=1)
                return np.asarray((before < self._k) & np.isfinite(values).all(axis=1))
        shapes = {n: list(a.shape) for n, a in outputs.items()}
        raise DataError(
            f"metric '{self.name}' needs an output with one score per class, got {shapes}",
            "choose another metric",
        )

    def _check(self, labels: Array, classes: int) -> None:
        low, high = labels.min(), labels.max()
        if low < 0 or high >= classes:
            raise DataError(
                f"metric '{self.name}': labels go from {low} to {high}, expected 0 to {classes - 1}"
            )

    def score(self, outputs: Outputs, labels: Array | None, reference: Outputs) -> Score:
        """Return the share of right answers with Wilson's interval."""
        right = self._right(outputs, labels)
        hits, n = int(right.sum()), len(right)
        return Score(self.name, hits / n, n, wilson(hits, n))

    def drop(
        self, reference: Outputs, candidate: Outputs, labels: Array | None, max_drop: float
    ) -> DropVerdict:
        """Compare right and wrong answers pair by pair."""
        first, second = self._right(reference, labels), self._right(candidate, labels)
        losses, gains = int((first & ~second).sum()), int((~first & second).sum())
        lower, upper = paired_bounds(losses, gains, len(first))
        return verdict((losses - gains) / len(first), lower, upper, max_drop)


class _Auc:
    """Area under the ROC curve; labels 0 and 1, the larger score means 1."""

    name = "auc"
    higher_is_better = True

    def _parts(self, outputs: Outputs, labels: Array | None) -> tuple[Array, Array]:
        """Return the placement of each positive and of each negative."""
        wanted = squeeze(need_labels(labels, outputs, self.name))
        values = {int(v) for v in np.unique(wanted)} if wanted.dtype.kind in "iufb" else set()
        if values != {0, 1} or wanted.ndim != 1:
            raise DataError(
                f"metric 'auc' needs labels 0 and 1, both, got {sorted(values)[:5]}",
                "give such labels, or another metric: top1 takes class numbers",
            )
        for array in outputs.values():
            scores = squeeze(array)
            if scores.ndim == 2 and scores.shape[1] == 2 and scores.dtype.kind == "f":
                # The second class against the first: the same order as its probability.
                scores = scores[:, 1].astype(np.float64) - scores[:, 0]
            if scores.ndim == 1 and scores.dtype.kind == "f":
                if not np.isfinite(scores).all():
                    scores = np.nan_to_num(scores, nan=0.0)
                return _placements(scores[wanted == 1], scores[wanted == 0])
        raise DataError("metric 'auc' needs an output with one score (or two) per sample")

    def score(self, outputs: Outputs, labels: Array | None, reference: Outputs) -> Score:
        """Return the area with DeLong's interval, within [0, 1]."""
        ups, downs = self._parts(outputs, labels)
        value = float(ups.mean())
        half = _Z_TWO * _delong(ups, downs)
        interval = (max(0.0, value - half), min(1.0, value + half))
        return Score(self.name, value, len(ups) + len(downs), interval)

    def drop(
        self, reference: Outputs, candidate: Outputs, labels: Array | None, max_drop: float
    ) -> DropVerdict:
        """Compare two areas on the same samples (DeLong)."""
        first, second = self._parts(reference, labels), self._parts(candidate, labels)
        ups, downs = first[0] - second[0], first[1] - second[1]
        drop, half = float(ups.mean()), _Z_ONE * _delong(ups, downs)
        return verdict(drop, drop - half, drop + half, max_drop)


def _placements(positive: Array, negative: Array) -> tuple[Array, Array]:
    """Return the share of negatives below each positive, and of positives above each negative."""
    low, high = np.sort(negative), np.sort(positive)
    ups = np.searchsorted(low, positive, "left") + np.searchsorted(low, positive, "right")
    above = np.searchsorted(high, negative, "left") + np.searchsorted(high, negative, "right")
    return ups / (2 * len(low)), 1 - above / (2 * len(high))


def _delong(ups: Array, downs: Array) -> float:
    """Return the standard error of an area (or of a difference) from its placements."""
    return math.sqrt(
        sum(float(v.var(ddof=1)) / len(v) if len(v) > 1 else 0.25 for v in (ups, downs))
    )


class _Sampled:
    """A metric that is a function of the samples; bounds by bootstrap."""

    def __init__(
        self,
        name: str,
        value: Callable[[Outputs, Array | None, Outputs], float],
        higher_is_better: bool,
        labelled: bool = True,
        resamples: int = _RESAMPLES,
    ) -> None:
        self.name, self.higher_is_better = name, higher_is_better
        self._value, self._labelled, self._resamples = value, labelled, resamples

    def score(self, outputs: Outputs, labels: Array | None, reference: Outputs) -> Score:
        """Return the value with the bootstrap's interval."""
        wanted = need_labels(labels, outputs, self.name) if self._labelled else labels
        n = len(next(iter(outputs.values())))
        value = float(self._value(outputs, wanted, reference))
        if not math.isfinite(value):
            raise DataError(f"metric '{self.name}' is {value} on these {n} samples")
        values = [
            self._value(_take(outputs, rows), _rows(wanted, rows), _take(reference, rows))
            for rows in self._resample(n)
        ]
        # On a resample without one of the classes a metric may be undefined.
        defined = [v for v in values if math.isfinite(v)] or [value]
        low, high = np.quantile(defined, [0.025, 0.975])
        return Score(self.name, value, n, (min(float(low), value), max(float(high), value)))

    def drop(
        self, reference: Outputs, candidate: Outputs, labels: Array | None, max_drop: float
    ) -> DropVerdict:
        """Compare on the same resamples of the samples."""
        wanted = need_labels(labels, reference, self.name) if self._labelled else labels
        n = len(next(iter(reference.values())))

        def gap(rows: Array) -> float:
            ref, want = _take(reference, rows), _rows(wanted, rows)
            before = self._value(ref, want, ref)
            after = self._value(_take(candidate, rows), want, ref)
            if self.higher_is_better:
                return before - after
            if before == 0:
                return 0.0 if after == 0 else math.inf
            return (after - before) / before

        gaps = np.array([gap(rows) for rows in self._resample(n)])
        drop = float(gap(np.arange(n)))
        ordered = np.sort(np.where(np.isnan(gaps), np.inf, gaps))
        last = len(ordered) - 1
        lower, upper = ordered[int(0.05 * last)], ordered[math.ceil(0.95 * last)]
        return verdict(drop, min(float(lower), drop), max(float(upper), drop), max_drop)

    def _resample(self, n: int) -> list[Array]:
        rng = np.random.default_rng(_SEED)
        return [rng.integers(0, n, n) for _ in range(self._resamples)]


def _take(outputs: Outputs, rows: Array) -> dict[str, Array]:
    return {name: array[rows] for name, array in outputs.items()}


def _rows(labels: Array | None, rows: Array) -> Array | None:
    return None if labels is None else labels[rows]


def _pair(outputs: Outputs, labels: Array | None) -> tuple[Array, Array]:
    """Return the first output that has the labels' shape, and the labels, in double precision.

    Raises:
        DataError: No output fits.
    """
    assert labels is not None  # need_labels was called
    wanted = squeeze(labels).astype(np.float64)
    for array in outputs.values():
        if squeeze(array).shape == wanted.shape:
            return squeeze(array).astype(np.float64), wanted
    raise DataError(
        f"no output has the shape of the labels {list(labels.shape)}, "
        f"got {[list(a.shape) for a in outputs.values()]}"
    )


def _mae(outputs: Outputs, labels: Array | None, _: Outputs) -> float:
    got, want = _pair(outputs, labels)
    return float(np.abs(got - want).mean())


def _mse(outputs: Outputs, labels: Array | None, _: Outputs) -> float:
    got, want = _pair(outputs, labels)
    return float(np.square(got - want).mean())


def _r2(outputs: Outputs, labels: Array | None, _: Outputs) -> float:
    """Return 1 - (squared error) / (squared deviation from the mean); 0 for constant labels."""
    got, want = _pair(outputs, labels)
    spread = float(np.square(want - want.mean(axis=0)).sum())
    return 1 - float(np.square(got - want).sum()) / spread if spread else 0.0


class _Agreement:
    """How far a candidate gives what the source model gives, per sample, in [0, 1].

    Where the source gives class numbers or probabilities (rows that sum to one), a sample agrees
    when the class is the same. Elsewhere a sample's agreement is 1 minus the energy of the
    difference over the energy of the source's output (both around the mean of the source's
    outputs), at least 0: a mean of 0.99 is a signal-to-noise ratio of about 20 dB.
    """

    name = "agreement"
    higher_is_better = True

    def _each(self, outputs: Outputs, reference: Outputs) -> tuple[Array, bool]:
        """Return the agreement of each sample (of its worst output), and if it is yes or no."""
        if not reference:
            raise DataError("metric 'agreement' needs the outputs of the source model")
        parts = [_alike(outputs[name], array) for name, array in reference.items()]
        return np.minimum.reduce([each for each, _ in parts]), all(binary for _, binary in parts)

    def score(self, outputs: Outputs, labels: Array | None, reference: Outputs) -> Score:
        """Return the mean agreement with its interval."""
        each, binary = self._each(outputs, reference)
        n, value = len(each), float(each.mean())
        if binary:
            return Score(self.name, value, n, wilson(int(each.sum()), n))
        low, high = np.quantile(_means(each), [0.025, 0.975])
        return Score(self.name, value, n, (float(low), float(high)))

    def drop(
        self, reference: Outputs, candidate: Outputs, labels: Array | None, max_drop: float
    ) -> DropVerdict:
        """Return how much of the agreement is lost; the reference agrees with itself."""
        each, binary = self._each(candidate, reference)
        drop = 1 - float(each.mean())
        if binary:
            lower, upper = paired_bounds(int((each == 0).sum()), 0, len(each))
            return verdict(drop, max(lower, 0.0), upper, max_drop)
        lower, upper = np.quantile(1 - _means(each), [0.05, 0.95])
        return verdict(drop, float(lower), float(upper), max_drop)


def _alike(got: Array, want: Array) -> tuple[Array, bool]:
    """Return the agreement of each sample in one output, and if it is only yes or no."""
    a, b = squeeze(got), squeeze(want)
    if a.shape != b.shape:
        raise DataError(f"outputs have shape {list(got.shape)}, the source {list(want.shape)}")
    if b.dtype.kind != "f":
        same = (a == b).reshape(len(b), -1).all(axis=1)
        return same.astype(np.float64), True
    if b.ndim == 2 and b.min(initial=0) >= 0 and np.allclose(b.sum(axis=1), 1, atol=1e-2):
        finite = np.isfinite(a).all(axis=1)
        same = (a.argmax(axis=1) == b.argmax(axis=1)) & finite
        return same.astype(np.float64), True
    x, y = (v.reshape(len(b), -1).astype(np.float64) for v in (a, b))
    power = np.square(y - y.mean(axis=0)).sum(axis=1).mean() if len(y) > 1 else np.square(y).sum()
    noise = np.square(x - y).sum(axis=1)
    if power <= 0:
        return (noise == 0).astype(np.float64), False
    return np.clip(1 - np.nan_to_num(noise / power, nan=np.inf), 0.0, 1.0), False


def _means(values: Array) -> Array:
    """Return the mean of each resample."""
    rng = np.random.default_rng(_SEED)
    n = len(values)
    return np.array([values[rng.integers(0, n, n)].mean() for _ in range(_RESAMPLES)])


_TABLE: dict[str, Callable[[], Metric]] = {
    "top1": lambda: _Shares(1),
    "top5": lambda: _Shares(5),
    "auc": _Auc,
    "r2": lambda: _Sampled("r2", _r2, True),
    "mae": lambda: _Sampled("mae", _mae, False),
    "mse": lambda: _Sampled("mse", _mse, False),
    "agreement": _Agreement,
}


def get_metric(spec: str) -> Metric:
    """Return a metric by its name, or a user's own by ``module:function``.

    The function takes the outputs (name -> array, samples on axis 0) and the labels (or None),
    and returns a number. Higher is better, unless it has an attribute ``higher_is_better`` that
    is False; then it is an error, and its drop is relative.

    Raises:
        UsageError: No such metric; the hint gives the nearest.
    """
    if spec in _TABLE:
        return _TABLE[spec]()
    if ":" not in spec:
        raise UsageError(f"unknown metric '{spec}'", nearest(spec, _TABLE))
    function = load_user_object(spec, "metric")

    def value(outputs: Outputs, labels: Array | None, _: Outputs) -> float:
        with user_code(spec, "metric"):
            result = function(dict(outputs), labels)
        try:
            return float(result)
        except (TypeError, ValueError) as error:
            raise UsageError(f"metric '{spec}' returned {result!r}, expected a number") from error

    better = bool(getattr(function, "higher_is_better", True))
    return _Sampled(spec, value, better, labelled=False, resamples=200)
