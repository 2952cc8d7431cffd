"""Whose accuracy is judged: the whole test set is run only for those that may still win.

To run the test set takes longer than to measure. A candidate that is surely no gain over the source
cannot win by its speed, whatever its accuracy; nor can one that is surely slower than another that
gains and passed. They are left out with that reason, and nothing is said of their accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeml.errors import ModelError
from edgeml_converters.candidates import Bench, Trial
from edgeml_converters.choose import MIN_GAIN
from edgeml_converters.judge import Judge
from edgeml_converters.results import Standing
from edgeml_converters.search.prepare import NO_TIME, check, each
from edgeml_converters.search.progress import Progress

#: Share of the budget after which no further test is begun: the rest is for measuring.
_UNTIL = 0.85
#: Name of this work, for the news.
STEP = "accuracy"


class Jury:
    """Runs the test set and judges, the likeliest winner first."""

    def __init__(
        self, bench: Bench, judge: Judge, progress: Progress, base: Trial, *, everyone: bool
    ) -> None:
        """Take what all share.

        Args:
            bench: What all trials share.
            judge: Compares with the source.
            progress: Takes the news.
            base: The baseline; its test is run with ``begin``.
            everyone: Speed alone does not say who may win: judge all.
        """
        self._bench, self._judge, self._progress = bench, judge, progress
        self._base, self._everyone = base, everyone

    def begin(self) -> None:
        """Run the test set on the source, and score it.

        Raises:
            ModelError: It ran before, and now it does not.
            DataError: Labels and outputs do not fit the metric.
        """
        base = self._base
        if base.results is None and check(base, self._bench, self._progress) is None:
            raise ModelError(f"the source does not run on all samples: {base.reason}")
        base.outputs = base.recall()
        self._judge.score(base)

    def judge(self, trials: Sequence[Trial], known: Sequence[Trial]) -> None:
        """Judge those of some trials that may win; the others are skipped, and wait.

        Args:
            trials: What became of them is in their verdict and reason.
            known: All trials of the search: one of them may be surely faster.
        """
        waiting = [t for t in trials if t.checked is not None and (t.alive or t.waits)]
        for trial in waiting:
            trial.verdict, trial.reason, trial.waits = Standing.PASSED, "", False
        for trial in [t for t in waiting if t.results is not None]:
            self.compare(trial)
        waiting = sorted((t for t in waiting if t.results is None), key=_hope)
        total = len(waiting)
        while waiting:
            waiting = [t for t in waiting if not self._left_out(t, known, waiting)]
            now, waiting = waiting[: self._bench.jobs], waiting[self._bench.jobs :]
            done = total - len(waiting) - len(now)
            self._progress.step(STEP, done / total, f"{done} of {total}")
            each(lambda trial: check(trial, self._bench, self._progress), now, self._bench)
            for trial in now:
                self.compare(trial)
        self._progress.step(STEP, 1.0, f"{total} of {total}")

    def _left_out(self, trial: Trial, known: Sequence[Trial], waiting: Sequence[Trial]) -> bool:
        """Tell whether a trial is not judged, and say so in its reason."""
        if self._progress.used() > _UNTIL:
            trial.fail(Standing.SKIPPED, NO_TIME)
            return True
        if self._everyone or trial.measured is None:
            return False
        value, low, high = trial.measured.speedup
        figures = f"{value:.2f} x [{low:.2f}, {high:.2f}]"
        reason = ""
        if high <= MIN_GAIN:
            told = "slower than the source" if high < 1.0 else "no gain over the source"
            reason = f"{told}: {figures}"
        else:
            passed = [t for t in known if t not in waiting and _decided(t)]
            best = max(passed, key=_least, default=None)
            if best is not None and _least(best) > max(high, MIN_GAIN):
                reason = f"surely slower than {best.id}, which passed: {figures}"
        if reason:
            trial.fail(Standing.SKIPPED, f"{reason}; its accuracy was not judged")
            trial.waits = True
        return bool(reason)

    def compare(self, trial: Trial) -> None:
        """Compare with the source; the outputs are then only on the disk."""
        if trial.alive and trial.results is not None and trial.sqnr_db is None:
            trial.outputs = trial.recall()
            self._judge.judge([trial], self._base)
            trial.outputs = {}


def _hope(trial: Trial) -> float:
    """Return what trials are tested in order of: the middle of the interval, largest first."""
    return -sum(trial.measured.speedup[1:]) if trial.measured else 0.0


def _least(trial: Trial) -> float:
    """Return the gain that is sure."""
    return trial.measured.speedup[1] if trial.measured else 0.0


def _decided(trial: Trial) -> bool:
    """Tell whether a trial was judged, and passed."""
    return trial.verdict == Standing.PASSED and trial.results is not None
