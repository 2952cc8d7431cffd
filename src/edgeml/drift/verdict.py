"""DriftVerdict: whether a window differs from the reference, in evidence and in effect.

Evidence: a two-sample G-test per feature (Sokal and Rohlf, Biometry, chapter 17, with Williams'
correction), Bonferroni over all features. Effect: a lower bound of the total variation distance.
An alarm needs both. The samples are taken as independent: on a stream that repeats itself, judge
windows that are long against its memory.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import msgspec
import numpy as np
import numpy.typing as npt

from edgeml.drift.reference import SLOTS
from edgeml.drift.window import DriftWindow
from edgeml.stats.chi2 import chi2_sf
from edgeml.stats.proportion import newcombe

#: Fewest samples of a window that are judged.
MIN_SAMPLES = 50
_MIN_EXPECTED = 5.0

Counts = npt.NDArray[np.int64]


class FeatureDrift(msgspec.Struct, frozen=True):
    """How one feature differs.

    Attributes:
        name: The feature, or ``<output>.class`` and ``<output>.confidence``.
        p: Probability of such counts without drift, times the number of features (at most 1).
        effect: Total variation distance of the counts, in [0, 1].
        effect_low: Lower 95 % bound of the true distance.
        shift: Change of the mean in standard deviations of the reference; 0 where there is none.
    """

    name: str
    p: float
    effect: float
    effect_low: float
    shift: float = 0.0


class DriftVerdict(msgspec.Struct, frozen=True):
    """The verdict on a window.

    Attributes:
        state: ``ok``, ``drift`` or ``not_enough``.
        n: Samples of the window.
        n_reference: Samples of the reference.
        worst: Features that drifted, the largest effect first; the nearest one when none did.
    """

    state: str
    n: int
    n_reference: int
    worst: tuple[FeatureDrift, ...] = ()

    def __str__(self) -> str:
        """Return one line for people."""
        head = f"{self.state} (n={self.n}, reference n={self.n_reference})"
        parts = [
            f"{f.name}: effect {f.effect:.2f} (at least {f.effect_low:.2f})" for f in self.worst
        ]
        return f"{head}: {'; '.join(parts)}" if parts and self.state == "drift" else head


def judge(
    window: DriftWindow, *, alpha: float = 0.01, tolerance: float = 0.05, worst: int = 5
) -> DriftVerdict:
    """Judge a window against its reference.

    Args:
        window: The window, or several merged.
        alpha: Probability of any alarm without drift, over all features together.
        tolerance: Total variation distance that does no harm.
        worst: How many features to name.
    """
    reference = window.reference
    if window.n < MIN_SAMPLES or reference.n < MIN_SAMPLES:
        return DriftVerdict("not_enough", window.n, reference.n)
    tables = _tables(window)
    shifts = _shifts(window)
    found = []
    for number, (name, old, new, ordered) in enumerate(tables):
        p = min(1.0, g_test(old, new) * len(tables))
        shift = shifts[number] if number < len(shifts) else 0.0
        effect = 0.5 * float(np.abs(old / max(1, old.sum()) - new / max(1, new.sum())).sum())
        low = effect_low(old, new, ordered) if p < alpha else 0.0
        found.append(FeatureDrift(name, p, effect, low, shift))
    drifted = [f for f in found if f.p < alpha and f.effect_low > tolerance]
    drifted.sort(key=lambda f: (-f.effect_low, f.name))
    nearest = tuple(sorted(found, key=lambda f: (f.p, f.name))[:1])
    state = "drift" if drifted else "ok"
    return DriftVerdict(state, window.n, reference.n, tuple(drifted[:worst]) or nearest)


def _tables(window: DriftWindow) -> list[tuple[str, Counts, Counts, bool]]:
    """Return name, reference counts, window counts, and whether the cells have an order."""
    reference = window.reference
    tables = [
        (f.name, np.array(f.counts, np.int64), row, True)
        for f, row in zip(reference.features, window.counts, strict=True)
    ]
    for s, classes, confidence in zip(
        reference.scores, window.classes, window.confidence, strict=True
    ):
        tables.append((f"{s.plan.name}.class", np.array(s.classes, np.int64), classes, False))
        tables.append(
            (f"{s.plan.name}.confidence", np.array(s.confidence, np.int64), confidence, True)
        )
    return tables


def _shifts(window: DriftWindow) -> list[float]:
    """Return the change of each feature's mean inside the grid, in standard deviations."""
    shifts = []
    for f, row, total in zip(
        window.reference.features, window.counts, window.sums.tolist(), strict=True
    ):
        inside = int(row[1 : SLOTS - 2].sum())
        mean = f.lo + (total / inside + 0.5) / f.scale if inside else f.mean
        shifts.append((mean - f.mean) / f.std if f.std > 0 else 0.0)
    return shifts


def g_test(old: Counts, new: Counts) -> float:
    """Return the p-value of the two-sample G-test, neighbouring sparse cells taken together."""
    a, b = int(old.sum()), int(new.sum())
    if not a or not b:
        return 1.0
    table = _dense(old, new, min(a, b) / (a + b))
    if table.shape[1] < 2:
        return 1.0
    sums = table.sum(axis=0)
    expected = np.outer([a, b], sums) / (a + b)
    g = 2 * float((table * np.log(np.where(table > 0, table, 1) / expected)).sum())
    n, df = a + b, table.shape[1] - 1
    rows = n / a + n / b - 1
    columns = float((n / sums).sum()) - 1
    return chi2_sf(g / (1 + rows * columns / (6 * n * df)), df)


def _dense(old: Counts, new: Counts, share: float) -> npt.NDArray[np.float64]:
    """Return [2, groups]: neighbours joined until the smaller sample expects enough in each."""
    groups: list[list[int]] = []
    here = [0, 0]
    for x, y in zip(old.tolist(), new.tolist(), strict=True):
        here = [here[0] + x, here[1] + y]
        if sum(here) * share >= _MIN_EXPECTED:
            groups.append(here)
            here = [0, 0]
    if sum(here):
        if groups:
            groups[-1] = [groups[-1][0] + here[0], groups[-1][1] + here[1]]
        else:
            groups.append(here)
    return np.array(groups, np.float64).reshape(-1, 2).T


def effect_low(old: Counts, new: Counts, ordered: bool) -> float:
    """Return a lower 95 % bound of the total variation distance.

    The distance is at least the difference of the shares of any set of cells; the sets tried are
    all beginnings (of cells that have an order) and all single cells. Newcombe's interval for
    each, Bonferroni over the sets.
    """
    a, b = int(old.sum()), int(new.sum())
    pairs = list(zip(old.tolist(), new.tolist(), strict=True))
    if ordered:
        pairs += list(zip(np.cumsum(old).tolist(), np.cumsum(new).tolist(), strict=True))[:-1]
    z = NormalDist().inv_cdf(1 - 0.05 / (2 * len(pairs)))
    best = 0.0
    for x, y in pairs:
        low, high = newcombe(y, b, x, a, z)
        best = max(best, low, -high)
    return best if math.isfinite(best) else 0.0
