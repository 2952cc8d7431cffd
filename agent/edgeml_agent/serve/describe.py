"""What a model says of itself over HTTP: metadata, configuration and statistics.

Metadata is the Open Inference Protocol's; configuration and statistics have the form that the
clients of Triton read (its model configuration and statistics extensions).
"""

from __future__ import annotations

from typing import Any

from edgeml.tensors import TensorSpec
from edgeml_agent.serve.generation import Generation

_NS = 1e9


def metadata(generation: Generation) -> dict[str, Any]:
    """Return name, versions, platform, inputs and outputs."""
    manifest = generation.manifest
    return {
        "name": generation.slot,
        "versions": [generation.ref.version],
        "platform": _platform(generation),
        "inputs": [_tensor(spec) for spec in manifest.inputs],
        "outputs": [_tensor(spec) for spec in manifest.outputs],
        "parameters": {
            "model": manifest.name,
            "digest": generation.ref.digest,
            "variant": generation.chain.variant.id,
            "placement": generation.chain.placement,
            "degraded": generation.chain.degraded,
        },
    }


def config(generation: Generation) -> dict[str, Any]:
    """Return the configuration; shapes without the batch axis when the model has one."""
    manifest = generation.manifest
    batched = all(spec.batched for spec in (*manifest.inputs, *manifest.outputs))
    return {
        "name": generation.slot,
        "platform": _platform(generation),
        "backend": generation.chain.variant.runtime,
        "max_batch_size": max(generation.batcher.hard, 1) if batched else 0,
        "input": [_config_tensor(spec, batched) for spec in manifest.inputs],
        "output": [_config_tensor(spec, batched) for spec in manifest.outputs],
    }


def statistics(generation: Generation) -> dict[str, Any]:
    """Return counts and times since the generation was loaded."""
    counts, stats = generation.counts, generation.batcher.stats
    runs = dict(stats.runs)
    run_ns = {rows: int(s * _NS) for rows, s in dict(stats.run_seconds).items()}
    queue_ns = int(stats.queue_seconds * _NS)
    failed = sum(counts.errors.values())
    infer = {"count": sum(runs.values()), "ns": sum(run_ns.values())}
    nothing = {"count": 0, "ns": 0}
    return {
        "name": generation.slot,
        "version": generation.ref.version,
        "last_inference": int(counts.last * 1000),
        "inference_count": sum(rows * n for rows, n in runs.items()),
        "execution_count": sum(runs.values()),
        "inference_stats": {
            "success": {"count": counts.requests, "ns": int(counts.latency.total * _NS)},
            "fail": {"count": failed, "ns": 0},
            "queue": {"count": stats.taken, "ns": queue_ns},
            "compute_input": nothing,
            "compute_infer": infer,
            "compute_output": nothing,
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": nothing,
                "compute_infer": {"count": n, "ns": run_ns[rows]},
                "compute_output": nothing,
            }
            for rows, n in sorted(runs.items())
        ],
    }


def _platform(generation: Generation) -> str:
    return f"edgeml_{generation.chain.variant.runtime}"


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _config_tensor(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    dims = spec.shape[1:] if batched else spec.shape
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": dims}
