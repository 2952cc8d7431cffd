"""Streams of what flows through models: some samples at a time, in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgeml.errors import DataError, ModelError
from edgeml.runtime.base import ProgramOptions
from edgeml.runtime.onnxruntime import OnnxRuntime
from edgeml.tensors import Array, TensorSpec
from edgeml_converters.model import model_bytes

#: At most this many bytes of tapped tensors are held at once.
_CHUNK_BYTES = 64 << 20
_MOST_ROWS = 64

Tapped = dict[str, Array]


def tapped(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy whose outputs are the given inner tensors (float32)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {o.name: o for o in model.graph.output}
    del copy.graph.output[:]
    for name in names:
        value = known.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        copy.graph.output.append(value)
    return copy


def lockstep(
    models: Sequence[tuple[onnx.ModelProto, Sequence[str]]],
    data: Mapping[str, Array],
    samples: int,
    threads: int = 1,
) -> Iterator[list[Tapped]]:
    """Run several models on the same samples and yield inner tensors of each.

    Args:
        models: Each with the names of the tensors to yield; all have the same inputs.
        data: Input name -> array, samples on axis 0.
        samples: At most this many are run.
        threads: Threads inside one run.

    Yields:
        For each chunk of samples, one dictionary per model.

    Raises:
        ModelError: A model does not load, or an input has no data.
        DataError: There is not one whole batch.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeml-")))
        sessions = []
        inputs: tuple[TensorSpec, ...] = ()
        for number, (model, names) in enumerate(models):
            file = folder / f"{number}.onnx"
            file.write_bytes(model_bytes(tapped(model, names)))
            program = stack.enter_context(
                closing(OnnxRuntime().prepare(file, ProgramOptions(threads)))
            )
            inputs = inputs or program.inputs
            sessions.append(stack.enter_context(closing(program.session())))
        rows = _rows(inputs, data, samples)
        free = all(spec.batched for spec in inputs)
        step = 1 if free else max(s.shape[0] if s.shape and s.shape[0] > 0 else 1 for s in inputs)
        at = 0
        while at + step <= rows:
            feed = {spec.name: _cut(spec, data[spec.name], at, step) for spec in inputs}
            found = [session.run(feed) for session in sessions]
            yield found
            at += step
            if free:
                size = sum(a.nbytes for part in found for a in part.values()) // step
                step = max(1, min(_MOST_ROWS, _CHUNK_BYTES // max(size, 1), max(rows - at, 1)))


def _rows(inputs: tuple[TensorSpec, ...], data: Mapping[str, Array], samples: int) -> int:
    """Return how many samples there are to run.

    Raises:
        ModelError: An input has no data.
        DataError: There is not one whole batch.
    """
    absent = [spec.name for spec in inputs if spec.name not in data]
    if absent:
        raise ModelError(
            f"pruning needs calibration data for input '{absent[0]}'",
            "give evaluation data by --data",
        )
    batch = max((s.shape[0] for s in inputs if s.shape and s.shape[0] > 0), default=1)
    rows = min(len(data[spec.name]) for spec in inputs)
    if rows < batch:
        raise DataError(f"the calibration data hold {rows} samples, the model takes {batch}")
    return max(batch, min(rows, samples))


def _cut(spec: TensorSpec, rows: Array, at: int, step: int) -> Array:
    """Return the part of an input for one run, in the input's type."""
    part = np.asarray(rows[at]) if not spec.shape else rows[at : at + step]
    return np.asarray(part).astype(spec.dtype, copy=False)
