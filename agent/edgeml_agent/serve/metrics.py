"""What ``/metrics`` says, in the text format of Prometheus (version 0.0.4).

docs/reference/metrics.md explains every name; a test compares the two.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edgeml.stats.buckets import LATENCY_BOUNDS
from edgeml_agent.serve.generation import Generation
from edgeml_agent.serve.window import Totals

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

#: name -> (type, help)
METRICS: dict[str, tuple[str, str]] = {
    "edgeml_inference_requests_total": (
        "counter",
        "Inference requests by outcome: success, or the kind of the error.",
    ),
    "edgeml_inference_duration_seconds": (
        "histogram",
        "Seconds from a whole request to its outputs, for requests that succeeded.",
    ),
    "edgeml_inference_batch_size": ("histogram", "Rows per run of the model."),
    "edgeml_inference_run_seconds_total": ("counter", "Seconds spent running the model."),
    "edgeml_inference_queue_seconds_total": ("counter", "Seconds that requests waited to be run."),
    "edgeml_inference_queue_depth": ("gauge", "Requests that wait now."),
    "edgeml_inference_fallback_total": ("counter", "Requests answered by a fallback variant."),
    "edgeml_inference_degraded": ("gauge", "1 while a fallback variant serves, else 0."),
    "edgeml_feedback_labels_total": (
        "counter",
        "Labels joined to a prediction, by whether they agreed with it.",
    ),
    "edgeml_model_info": ("gauge", "Always 1; the labels say what serves, and where it runs."),
    "edgeml_process_resident_bytes": ("gauge", "Resident memory of the serving process."),
}
#: Every fourth bound (powers of two from 10 microseconds) is exact and enough here.
_STEP = 4
_BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128)

Labels = Mapping[str, str]


class _Text:
    """Collects samples by metric, so that each metric's lines stand together."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {name: [] for name in METRICS}

    def add(self, metric: str, labels: Labels, value: float, suffix: str = "") -> None:
        """Add a sample."""
        pairs = ",".join(f'{name}="{_escape(text)}"' for name, text in labels.items())
        shown = f"{{{pairs}}}" if pairs else ""
        self._lines[metric].append(f"{metric}{suffix}{shown} {_number(value)}\n")

    def histogram(
        self, metric: str, labels: Labels, steps: Iterable[tuple[float, int]], n: int, total: float
    ) -> None:
        """Add the samples of a histogram."""
        for bound, cumulative in steps:
            self.add(metric, {**labels, "le": _number(bound)}, cumulative, "_bucket")
        self.add(metric, {**labels, "le": "+Inf"}, n, "_bucket")
        self.add(metric, labels, total, "_sum")
        self.add(metric, labels, n, "_count")

    def text(self) -> bytes:
        """Return the page."""
        parts: list[str] = []
        for name, lines in self._lines.items():
            kind, words = METRICS[name]
            parts += (f"# HELP {name} {words}\n", f"# TYPE {name} {kind}\n", *lines)
        return "".join(parts).encode()


def render(totals: Mapping[tuple[str, str], Totals], generations: Sequence[Generation]) -> bytes:
    """Return the page.

    Args:
        totals: (slot, version) -> what it did since this process began: a counter never ends.
        generations: What serves now.
    """
    text = _Text()
    for (slot, version), total in sorted(totals.items()):
        _counters(text, {"model": slot, "version": version}, total)
    for generation in generations:
        _gauges(text, generation)
    text.add("edgeml_process_resident_bytes", {}, resident_bytes())
    return text.text()


def _counters(text: _Text, labels: Labels, total: Totals) -> None:
    requests = "edgeml_inference_requests_total"
    text.add(requests, {**labels, "outcome": "success"}, total.requests)
    for kind, n in sorted(total.errors.items()):
        text.add(requests, {**labels, "outcome": kind}, n)
    latency = total.latency
    text.histogram(
        "edgeml_inference_duration_seconds",
        labels,
        _cumulative(LATENCY_BOUNDS, latency.counts),
        latency.n,
        latency.total,
    )
    runs = total.runs
    steps = [(b, sum(n for rows, n in runs.items() if rows <= b)) for b in _BATCH_BOUNDS]
    rows = sum(rows * n for rows, n in runs.items())
    text.histogram("edgeml_inference_batch_size", labels, steps, sum(runs.values()), rows)
    text.add("edgeml_inference_run_seconds_total", labels, total.run_seconds)
    text.add("edgeml_inference_queue_seconds_total", labels, total.queue_seconds)
    text.add("edgeml_inference_fallback_total", labels, total.fallbacks)
    agreed = "edgeml_feedback_labels_total"
    text.add(agreed, {**labels, "agreed": "true"}, total.correct)
    text.add(agreed, {**labels, "agreed": "false"}, total.labelled - total.correct)


def _gauges(text: _Text, generation: Generation) -> None:
    labels = {"model": generation.slot, "version": generation.ref.version}
    text.add("edgeml_inference_queue_depth", labels, generation.batcher.depth)
    text.add("edgeml_inference_degraded", labels, int(generation.on_fallback))
    variant = generation.chain.variant
    info = {
        "variant": variant.id,
        "runtime": variant.runtime,
        "precision": variant.precision,
        "placement": generation.chain.placement,
    }
    text.add("edgeml_model_info", {**labels, **info}, 1)


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> Iterable[tuple[float, int]]:
    """Yield every fourth bound with the number of observations at or below it."""
    seen = 0
    for i, (bound, count) in enumerate(zip(bounds, counts, strict=False)):
        seen += count
        if i % _STEP == 0:
            yield bound, seen


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
