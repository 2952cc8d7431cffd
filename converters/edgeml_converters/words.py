"""Figures as words, the same in the report and on the command line."""

from __future__ import annotations

from edgeml.manifest import Score
from edgeml_converters.results import SQNR_CEILING, AtThreads, Candidate

NOTHING = "-"


def latency(candidate: Candidate) -> str:
    """Return the median latency in milliseconds, three significant digits."""
    return f"{candidate.latency_ms.p50:.3g}" if candidate.latency_ms else NOTHING


def threads(one: AtThreads) -> str:
    """Return how the winner does with another number of threads."""
    low, high = one.speedup.interval
    return (
        f"{one.threads}: {one.latency_ms.p50:.3g} ms, {one.speedup.value:.2f} x "
        f"[{low:.2f}, {high:.2f}] of the source with as many"
    )


def tail(candidate: Candidate) -> str:
    """Return the 99th percentile of the latency in milliseconds."""
    return f"{candidate.latency_ms.p99:.3g}" if candidate.latency_ms else NOTHING


def speedup(candidate: Candidate) -> str:
    """Return ``2.31 [2.28, 2.35]``."""
    if candidate.speedup is None:
        return NOTHING
    low, high = candidate.speedup.interval
    return f"{candidate.speedup.value:.2f} [{low:.2f}, {high:.2f}]"


def metric(candidate: Candidate) -> str:
    """Return the score with its interval's half width."""
    return NOTHING if candidate.metric is None else score(candidate.metric)


def score(one: Score) -> str:
    """Return a score with its interval's half width."""
    low, high = one.interval
    return f"{one.value:.4g} ± {(high - low) / 2:.2g}"


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


def size(count: int | None) -> str:
    """Return a number of bytes with a unit that suits it."""
    if count is None:
        return NOTHING
    if count < 10 << 20:
        return f"{count / 1024:,.0f} KiB" if count >= 10 << 10 else f"{count / 1024:.1f} KiB"
    return f"{count / (1 << 20):,.1f} MiB"
