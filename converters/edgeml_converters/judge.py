"""Judge: how far a candidate is from the source, and whether that is too far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from edgeml.errors import DataError
from edgeml.manifest import Score
from edgeml.metrics import Metric
from edgeml.tensors import Array
from edgeml_converters.candidates import Trial
from edgeml_converters.results import SQNR_CEILING, Drop, Standing

#: Above this, in dB, two float networks differ by rounding only (1e-4 of the signal): no number
#: of samples is needed to call them the same.
SAME_DB = 80.0
_STANDINGS = {"ok": Standing.PASSED, "undecided": Standing.UNDECIDED, "fails": Standing.FAILED}


class Judge:
    """Compares candidates with the source on the same samples."""

    def __init__(self, metric: Metric | None, labels: Array | None, max_drop: float) -> None:
        """Take what counts.

        Args:
            metric: What counts as good; None without data: then only sameness passes.
            labels: One per sample; None without.
            max_drop: Most that may be lost.
        """
        self.metric = metric
        self.labels = labels
        self.max_drop = max_drop

    def score(self, base: Trial) -> Score | None:
        """Score the source itself, which is compared with nothing.

        Raises:
            DataError: Labels and outputs do not fit the metric.
        """
        base.sqnr_db = SQNR_CEILING
        if self.metric is None:
            return None
        base.score = self.metric.score(base.outputs, self.labels, base.outputs)
        base.drop = Drop(0.0, 0.0, self.max_drop)
        return base.score

    def judge(self, trials: Iterable[Trial], base: Trial) -> None:
        """Fill in SQNR, score, drop and verdict of every trial that ran."""
        for trial in trials:
            if trial is not base and trial.checked is not None:
                self._one(trial, base)

    def _one(self, trial: Trial, base: Trial) -> None:
        problem = mismatch(base.outputs, trial.outputs)
        if problem:
            trial.fail(Standing.FAILED, problem)
            return
        trial.sqnr_db = sqnr_db(base.outputs, trial.outputs)
        same = trial.sqnr_db >= SAME_DB and _integers_equal(base.outputs, trial.outputs)
        if self.metric is None:
            if not same:
                reason = f"differs from the source by {trial.sqnr_db:.1f} dB on random inputs"
                trial.fail(Standing.FAILED, reason)
            return
        try:
            trial.score = self.metric.score(trial.outputs, self.labels, base.outputs)
            found = self.metric.drop(base.outputs, trial.outputs, self.labels, self.max_drop)
        except DataError as error:
            trial.fail(Standing.FAILED, error.message)
            return
        trial.drop = Drop(found.drop, found.upper, self.max_drop)
        trial.verdict = Standing.PASSED if same else _STANDINGS[found.state]
        if trial.verdict == Standing.FAILED:
            trial.reason = (
                f"loses {found.drop:.4g} of {self.metric.name} (bound {found.upper:.4g}), "
                f"allowed is {self.max_drop:g}"
            )
        elif trial.verdict == Standing.UNDECIDED:
            trial.reason = (
                f"{trial.score.n} samples cannot tell: it loses {found.drop:.4g} of "
                f"{self.metric.name}, up to {found.upper:.4g}, allowed is {self.max_drop:g}"
            )


def mismatch(reference: Mapping[str, Array], outputs: Mapping[str, Array]) -> str:
    """Return why outputs cannot be compared; empty when they can."""
    for name, want in reference.items():
        got = outputs.get(name)
        if got is None:
            return f"output '{name}' is missing"
        if got.shape != want.shape:
            return f"output '{name}' has shape {list(got.shape)}, the source {list(want.shape)}"
        if want.dtype.kind == "f" and not np.isfinite(got[np.isfinite(want)]).all():
            return f"output '{name}' is not finite where the source's is"
    return ""


def sqnr_db(reference: Mapping[str, Array], outputs: Mapping[str, Array]) -> float:
    """Return the signal to noise ratio in dB of the worst float output, at most SQNR_CEILING.

    ``10 log10(sum(y^2) / sum((y - x)^2))`` over the values that are finite in the source.
    """
    worst = SQNR_CEILING
    for name, want in reference.items():
        if want.dtype.kind != "f":
            continue
        finite = np.isfinite(want)
        y = want[finite].astype(np.float64)
        noise = float(np.square(outputs[name][finite].astype(np.float64) - y).sum())
        if noise == 0.0:
            continue
        signal = float(np.square(y).sum())
        ratio = 10.0 * np.log10(max(signal, 1e-300) / noise)
        worst = min(worst, float(ratio))
    return round(worst, 2)


def _integers_equal(reference: Mapping[str, Array], outputs: Mapping[str, Array]) -> bool:
    return all(
        np.array_equal(want, outputs[name])
        for name, want in reference.items()
        if want.dtype.kind != "f"
    )
