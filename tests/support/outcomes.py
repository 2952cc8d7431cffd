"""Outcomes of conversions for tests of what is told about them: made up, but possible."""

import numpy as np

from edgeml.manifest import Lineage, Score, Step
from edgeml_converters.results import (
    Candidate,
    Drop,
    Latency,
    ProfileResult,
    Speedup,
    Standing,
)

HOST = "AMD EPYC, 2 cores, 23.5 GiB, avx2 avx512 vnni bf16, Debian GNU/Linux 12 x86_64"
_P, _U, _F = Standing.PASSED, Standing.UNDECIDED, Standing.FAILED
#: Runtime, recipe, precision, p50 in ms, drop, SQNR, KiB, verdict.
_ROWS = (
    ("onnxruntime", "fp32", "fp32", 3.96, 0.0, 150.0, 13600, _P),
    ("openvino", "fp32", "fp32", 3.60, 0.0, 118.2, 13600, _P),
    ("openvino", "bf16", "bf16", 2.02, 0.0010, 38.4, 13600, _P),
    ("onnxruntime", "int8-static", "int8", 1.83, 0.0042, 24.1, 3550, _U),
    ("openvino", "int8-static", "int8", 1.52, 0.0031, 25.6, 3550, _P),
    ("openvino", "int8-mixed", "int8", 1.61, 0.0012, 30.2, 5200, _P),
    ("onnxruntime", "int8-dynamic", "int8", 39.1, 0.0021, 31.0, 3600, _P),
    ("onnxruntime", "int8-tensor", "int8", 1.71, 0.3130, 4.2, 3500, _F),
    ("litert", "int8-portable", "int8", 2.40, 0.0051, 23.9, 3600, _U),
    ("openvino", "weights-int8", "int8", 3.55, 0.0003, 44.0, 3700, _P),
)


def candidate(row, limit=0.01, rng=None):
    runtime, recipe, precision, p50, drop, sqnr, kib, verdict = row
    base = _ROWS[0][3]
    reason = f"loses {drop:.4g} of top1, allowed is {limit}" if verdict == _F else "openvino wins"
    gain = base / p50
    value = 0.972 - drop
    return Candidate(
        runtime=runtime,
        precision=precision,
        recipe=recipe,
        size_bytes=kib << 10,
        latency_ms=Latency(p50, p50 * 1.2, p50 * 1.5),
        metric=Score("top1", value, 719, (value - 0.013, min(1.0, value + 0.011))),
        sqnr_db=sqnr,
        evidence="measured",
        verdict=verdict,
        reason=reason,
        speedup=Speedup(gain, (gain * 0.96, gain * 1.05)),
        drop=Drop(drop, drop + 0.005 if drop else 0.0, limit),
        memory_bytes=kib * 1500,
        pareto=recipe in ("fp32", "int8-static", "int8-mixed"),
    )


def profile_result(name="cpu-x86-64", rows=_ROWS):
    """A result with many candidates, one that lost much, one that is slow, one that crashed."""
    candidates = tuple(candidate(row) for row in rows)
    broken = Candidate(
        "litert", "fp32", "plain", verdict=Standing.ERROR,
        reason="could not be built: operator 'Einsum' of node '/attn/scores' is not known",
    )  # fmt: skip
    winner = candidates[4]
    return ProfileResult(
        profile=name,
        host=HOST,
        baseline=candidates[0],
        winner=winner,
        speedup=winner.speedup,
        candidates=(*candidates, broken),
        warnings=("no calibration data: the first 100 of 819 test samples are set aside for it",),
        seconds=31.5,
        reason="best latency of what passes: 2.61 x faster than the source",
    )


def rounds(result, count=40):
    """Latencies of rounds that fit the medians, with some that other work disturbed."""
    rng = np.random.default_rng(0)
    found = {}
    for c in result.candidates:
        if c.latency_ms:
            noise = rng.normal(0, 0.02, count) + (rng.random(count) > 0.94) * rng.random(count)
            found[c.id] = tuple(float(v) for v in c.latency_ms.p50 * (1 + np.abs(noise)))
    return found


def lineage(result):
    """Where it comes from."""
    digests = [f"sha256:{letter * 64}" for letter in "abc"]
    steps = (
        Step("simplify", {}, digests[0], digests[1], ("52 BatchNormalization were folded",)),
        Step("quantize_static", {"placement": "openvino", "calibration": "minmax"}, digests[1],
             digests[2]),
    )  # fmt: skip
    tools = {"edgeml-kit": "0.1.0", "onnx": "1.23.2", "onnxruntime": "1.31.1"}
    made = {f"{result.profile}.{result.winner.id}": steps, f"{result.profile}.onnxruntime.fp32": ()}
    return Lineage("mobilenet.onnx", digests[0], digests[2], 0, tools, made)
