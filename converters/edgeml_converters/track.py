"""A conversion as the Record that trackers keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgeml.bundle import Bundle
from edgeml.report import Report, render
from edgeml.tracking import Record
from edgeml_converters.results import ConvertResult, ProfileResult


def record(
    result: ConvertResult, bundle: Bundle, report: Report, asked: Mapping[str, object]
) -> Record:
    """Return the record of a conversion.

    Args:
        result: What was found.
        bundle: What was written.
        report: Its report.
        asked: Option -> value, as the user gave them; None for what was left out.
    """
    manifest = bundle.manifest
    lineage = manifest.lineage
    params = {name: _plain(value) for name, value in asked.items() if value is not None}
    metrics: dict[str, float] = {}
    for one in result.results:
        params |= {
            f"{one.profile}.winner": one.winner.id,
            f"{one.profile}.precision": one.winner.precision,
            f"{one.profile}.host": one.host,
        }
        metrics |= {f"{one.profile}.{name}": value for name, value in _figures(one).items()}
    tags = {
        "digest": bundle.digest,
        "source": lineage.source,
        "source_digest": lineage.source_digest,
        "profiles": ", ".join(one.profile for one in result.results),
        "evidence": ", ".join(dict.fromkeys(v.evidence.state.value for v in manifest.variants)),
    }
    if lineage.data_digest:
        tags["data_digest"] = lineage.data_digest
    return Record(
        name=result.name,
        version=result.version,
        bundle=Path(result.bundle),
        digest=bundle.digest,
        params=params,
        metrics=metrics,
        tags=tags,
        lineage=msgspec.to_builtins(lineage),
        files=render(report),
    )


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{k}={','.join(map(str, v))}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)


def _figures(one: ProfileResult) -> dict[str, float]:
    """Return the numbers of a profile: of the winner, and of the source where it differs."""
    winner, base = one.winner, one.baseline
    found: dict[str, float | None] = {
        "speedup": one.speedup.value if one.speedup else None,
        "speedup_low": one.speedup.interval[0] if one.speedup else None,
        "drop": winner.drop.value if winner.drop else None,
        "drop_upper": winner.drop.upper if winner.drop else None,
        "sqnr_db": winner.sqnr_db,
        "candidates": float(len(one.candidates)),
        "seconds": one.seconds,
    }
    for prefix, c in (("", winner), ("source.", base)):
        if c.latency_ms:
            for name in ("p50", "p95", "p99"):
                found[f"{prefix}latency_{name}_ms"] = getattr(c.latency_ms, name)
        if c.metric:
            found[f"{prefix}{c.metric.name}"] = c.metric.value
        found[f"{prefix}size_bytes"] = float(c.size_bytes) or None
        found[f"{prefix}memory_bytes"] = None if c.memory_bytes is None else float(c.memory_bytes)
    return {name: float(value) for name, value in found.items() if value is not None}
