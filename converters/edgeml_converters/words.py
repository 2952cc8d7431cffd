"""Figures as words, the same in the report and on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeml.manifest import Score
from edgeml.report import figures
from edgeml.report.figures import NOTHING, milliseconds, ratio, size
from edgeml_converters.results import SQNR_CEILING, AtThreads, Candidate, Speedup

__all__ = ["NOTHING", "size"]

_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smh]?)")


def latency(candidate: Candidate) -> str:
    """Return the median latency in milliseconds, three significant digits."""
    return milliseconds(candidate.latency_ms.p50) if candidate.latency_ms else NOTHING


def gain(ratio: Speedup) -> str:
    """Return ``2.31 x [2.28, 2.35]``."""
    low, high = ratio.interval
    return f"{ratio.value:.2f} x [{low:.2f}, {high:.2f}]"


def threads(one: AtThreads) -> str:
    """Return how the winner does with another number of threads or samples in a run."""
    how = f"{one.threads} thread{'s' if one.threads != 1 else ''}"
    how += f", batch {one.batch}" if one.batch != 1 else ""
    best = f"; best there: {one.best}" if one.best else ""
    return (
        f"{how}: {one.latency_ms.p50:.3g} ms, {gain(one.speedup)} of the source with as many{best}"
    )


def tail(candidate: Candidate) -> str:
    """Return the 99th percentile of the latency in milliseconds."""
    return milliseconds(candidate.latency_ms.p99) if candidate.latency_ms else NOTHING


def speedup(candidate: Candidate) -> str:
    """Return ``2.31 [2.28, 2.35]``."""
    if candidate.speedup is None:
        return NOTHING
    return ratio(candidate.speedup.value, candidate.speedup.interval)


def metric_name(candidates: Sequence[Candidate]) -> str:
    """Return what the scores are called; ``metric`` when nothing has one."""
    return next((c.metric.name for c in candidates if c.metric), "metric")


def metric(candidate: Candidate) -> str:
    """Return the score with its interval's half width."""
    return NOTHING if candidate.metric is None else score(candidate.metric)


def score(one: Score) -> str:
    """Return a score with its interval's half width."""
    return figures.score(one.value, one.interval)


def drop(candidate: Candidate) -> str:
    """Return the drop and its upper bound."""
    if candidate.drop is None:
        return NOTHING
    return f"{candidate.drop.value + 0.0:+.4f} (≤ {candidate.drop.upper:.4f})"


def sqnr(candidate: Candidate) -> str:
    """Return the SQNR in decibels; ``same`` for outputs that are the same bit for bit."""
    if candidate.sqnr_db is None:
        return NOTHING
    return "same" if candidate.sqnr_db >= SQNR_CEILING else f"{candidate.sqnr_db:.1f}"


def decibels(value: float) -> str:
    """Return a signal-to-noise ratio in a sentence."""
    return "infinite (equal bit for bit)" if value >= SQNR_CEILING else f"{value:.1f} dB"


def load(candidate: Candidate) -> str:
    """Return the time from the file to the first answer in milliseconds."""
    return NOTHING if candidate.load_ms is None else f"{candidate.load_ms:.3g}"


def energy(candidate: Candidate) -> str:
    """Return the energy of a run in millijoules."""
    return NOTHING if candidate.energy_mj is None else f"{candidate.energy_mj:.3g}"


def coverage(candidate: Candidate) -> str:
    """Return ``26 of 26``: products in 8 bits, and all; nothing for a float file."""
    seen = candidate.coverage
    if seen is None or not (seen.int8 or seen.converts):
        return NOTHING
    return f"{seen.int8} of {seen.weighted}"


def read_seconds(text: str) -> float:
    """Return the seconds of ``90``, ``90s``, ``10m`` or ``1.5h``; 0 when it is no time."""
    found = _TIME.fullmatch(text.strip())
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
