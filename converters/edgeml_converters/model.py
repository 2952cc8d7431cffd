"""What every part of the converter does with a model in memory: bytes, digest, counts, runs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx

from edgeml.errors import DataError, ModelError
from edgeml.runtime.base import ProgramOptions
from edgeml.runtime.onnxruntime import OnnxRuntime
from edgeml.tensors import Array, TensorSpec
from edgeml_converters.source.checks import count_ops as op_counts
from edgeml_converters.source.files import (
    inlined,
    model_bytes,
    model_digest,
    read_model,
    save_model,
)

__all__ = [
    "inlined",
    "model_bytes",
    "model_digest",
    "op_counts",
    "read_model",
    "run_model",
    "save_model",
    "signature",
]

#: At most this many input values are fed in one run.
_CHUNK_VALUES = 1 << 20


def signature(model: onnx.ModelProto) -> tuple[tuple[str, int, tuple[int | str, ...]], ...]:
    """Return name, type and axes of every real input, then of every output."""
    stored = {i.name for i in model.graph.initializer}
    values = [i for i in model.graph.input if i.name not in stored]
    return tuple(
        (
            v.name,
            v.type.tensor_type.elem_type,
            tuple(
                d.dim_value if d.HasField("dim_value") else -1 for d in v.type.tensor_type.shape.dim
            ),
        )
        for v in [*values, *model.graph.output]
    )


def run_model(
    model: onnx.ModelProto, feed: Mapping[str, Array], threads: int = 1
) -> dict[str, Array]:
    """Run a model on many samples, a bounded number at a time, without graph optimisation.

    Args:
        model: The model.
        feed: Input name -> array, samples on axis 0; for a model with a fixed batch, as many
            whole batches as there are; for an input without axes, one value per sample.
        threads: Threads inside one run.

    Returns:
        Output name -> array, samples on axis 0.

    Raises:
        ModelError: The model does not load.
        RequestError: The feed does not fit.
        DataError: There is not one whole batch.
    """
    with tempfile.TemporaryDirectory(prefix="edgeml-") as folder:
        file = Path(folder) / "model.onnx"
        save_model(model, file)
        options = ProgramOptions(threads, extra={"graph_optimization_level": "disable"})
        with closing(OnnxRuntime().prepare(file, options)) as program:
            missing = [s.name for s in program.inputs if s.name not in feed]
            if missing:
                raise ModelError(f"no data for input '{missing[0]}' of the model")
            steps = {s.name: _step(s, program.inputs, feed) for s in program.inputs}
            count = min(len(feed[name]) // step for name, step in steps.items())
            if not count:
                raise DataError("the data holds not one whole batch of the model")
            parts: list[dict[str, Array]] = []
            with closing(program.session()) as session:
                for i in range(count):
                    chunk = {
                        s.name: _cut(s, feed[s.name], i, steps[s.name]) for s in program.inputs
                    }
                    parts.append(session.run(chunk))
                if all(s.batched for s in program.inputs):
                    done = count * next(iter(steps.values()))
                    rest = {s.name: feed[s.name][done:] for s in program.inputs}
                    if len(next(iter(rest.values()))):
                        parts.append(session.run(rest))
    return {n: np.concatenate([np.atleast_1d(p[n]) for p in parts]) for n in parts[0]}


def _step(spec: TensorSpec, inputs: tuple[TensorSpec, ...], feed: Mapping[str, Array]) -> int:
    """Return how many rows of an input one run takes."""
    if spec.shape and spec.shape[0] > 0:
        return spec.shape[0]
    if not all(s.batched for s in inputs):
        return 1
    values = max(int(feed[s.name][:1].size) for s in inputs)
    rows = min(len(feed[s.name]) for s in inputs)
    return max(1, min(rows, _CHUNK_VALUES // max(1, values)))


def _cut(spec: TensorSpec, rows: Array, index: int, step: int) -> Array:
    """Return the part of an input for one run."""
    if not spec.shape:
        return np.asarray(rows[index])
    return rows[index * step : (index + 1) * step]
