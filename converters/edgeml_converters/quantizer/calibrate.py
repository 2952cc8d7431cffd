"""Ranges of inner tensors over the calibration data, in bounded memory.

The float model is run with some of its inner tensors as further outputs: as many at a time, and
on as many samples at a time, as stay below ``BUDGET``. What comes out is folded into one
histogram per tensor at once, or into two numbers, and dropped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgeml.errors import ModelError
from edgeml.tensors import Array
from edgeml_converters.passes.shapes import real_inputs
from edgeml_converters.quantizer.histogram import Histogram
from edgeml_converters.quantizer.parameters import Range
from edgeml_converters.quantizer.prepare import infer, light
from edgeml_converters.quantizer.ranges import METHODS
from edgeml_converters.source.files import save_model

#: Bytes of inner tensors that one run may give back.
BUDGET = 24 << 20
#: What a tensor of unknown shape is taken for, in values of one sample.
_UNKNOWN = 1 << 18


class Extremes:
    """The smallest and the largest value, for the method that needs no more."""

    def __init__(self) -> None:
        """Start empty."""
        self.low, self.high = np.inf, -np.inf

    def add(self, array: Array) -> None:
        """Extend by the values of an array; they are all finite."""
        self.low = min(self.low, float(array.min()))
        self.high = max(self.high, float(array.max()))


def observe(
    model: onnx.ModelProto,
    names: Iterable[str],
    data: Mapping[str, Array],
    method: str = "minmax",
    threads: int = 1,
) -> dict[str, Range]:
    """Return the range that each tensor needs.

    Args:
        model: A prepared float model.
        names: float32 tensors, inputs of the model or inner ones.
        data: Input name -> samples on axis 0.
        method: A key of ``METHODS``.
        threads: Threads of the runs.

    Raises:
        ModelError: The model does not run on the data, or a tensor is not finite on it.
    """
    wanted = sorted(set(names))
    found: dict[str, Any] = {n: (Extremes if method == "minmax" else Histogram)() for n in wanted}
    given = {value.name for value in real_inputs(model)}
    inner = [name for name in wanted if name not in given]
    sizes = _sizes(model, inner, data)
    per_run = feeds(model, data, max(1, BUDGET // (4 * max(1, sum(sizes.values())))))
    for name in wanted:
        if name in given:
            for feed in per_run:
                if feed[name].dtype == np.float32:
                    _fold(found[name], name, feed[name])
    rows = max((len(a) for a in per_run[0].values() if a.ndim), default=1)
    with tempfile.TemporaryDirectory(prefix="edgeml-") as folder:
        file = Path(folder) / "watching.onnx"
        save_model(model, file)
        size = file.stat().st_size
        for group in _groups(inner, sizes, rows):
            _watch(file, size, group)
            for outputs in _outputs(file, group, per_run, threads):
                for name in group:
                    _fold(found[name], name, outputs.pop(name))
    choose = METHODS[method] if method != "minmax" else None
    return {
        name: choose(one) if choose else (min(one.low, 0.0), max(one.high, 0.0))
        for name, one in found.items()
        if one.low <= one.high
    }


def feeds(model: onnx.ModelProto, data: Mapping[str, Array], most: int) -> list[dict[str, Array]]:
    """Return views of the data, one feed per run.

    Args:
        model: When one of its inputs fixes the batch, so many samples go into each run, and a
            rest that fills no batch is left out.
        data: Input name -> samples on axis 0.
        most: Samples per run where the batch is free.

    Raises:
        ModelError: There is not one whole batch.
    """
    fixed = {}
    for value in real_inputs(model):
        dims = value.type.tensor_type.shape.dim
        fixed[value.name] = dims[0].dim_value if dims else 0
        if dims and not dims[0].dim_value:
            del fixed[value.name]
    count = min(len(array) for array in data.values())
    if not fixed:
        return [
            {name: array[start : min(start + most, count)] for name, array in data.items()}
            for start in range(0, count, most)
        ]
    # A free axis beside a fixed one is no batch: such an input gets one row per run.
    steps = {name: fixed.get(name, 1) or 1 for name in data}
    runs = min(len(array) // steps[name] for name, array in data.items())
    if not runs:
        raise ModelError("the calibration data holds not one whole batch of the model")
    return [
        {
            name: array[i * steps[name] : (i + 1) * steps[name]]
            if fixed.get(name, 1)
            else np.asarray(array[i])
            for name, array in data.items()
        }
        for i in range(runs)
    ]


def _sizes(model: onnx.ModelProto, names: list[str], data: Mapping[str, Array]) -> dict[str, int]:
    """Return how many values of one sample each tensor holds, guessed where it is not known."""
    bare = light(model)
    batch = 1
    for value in real_inputs(bare):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.dim_value and value.name in data:
                dim.dim_value = data[value.name].shape[axis] if axis else 1
            if axis == 0:
                batch = dim.dim_value or 1
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        known = {v.name: v for v in infer(bare)}
    except ModelError:
        return dict.fromkeys(names, _UNKNOWN)
    return {name: _size(known.get(name), batch) for name in names}


def _size(info: onnx.ValueInfoProto | None, batch: int) -> int:
    """Return the values of one sample of a tensor."""
    if info is None or not info.type.tensor_type.HasField("shape"):
        return _UNKNOWN
    dims = [d.dim_value for d in info.type.tensor_type.shape.dim]
    return max(1, int(np.prod([d or 64 for d in dims])) // batch)


def _groups(names: list[str], sizes: Mapping[str, int], rows: int) -> Iterator[list[str]]:
    """Yield groups of tensors that stay below the budget together, or are alone."""
    group: list[str] = []
    total = 0
    for name in names:
        size = 4 * rows * sizes[name]
        if group and total + size > BUDGET:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


def _watch(file: Path, size: int, names: list[str]) -> None:
    """Give the model in a file further outputs, without reading it.

    Parts of one protobuf message may follow each other: they are merged when it is read.

    Args:
        file: The model's file.
        size: Of the file without further outputs.
        names: Of float32 tensors.
    """
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    further = onnx.ModelProto(graph=onnx.GraphProto(output=infos))
    with file.open("r+b") as stream:
        stream.truncate(size)
        stream.seek(size)
        stream.write(further.SerializeToString())


def _outputs(
    file: Path, names: list[str], data: Iterable[dict[str, Array]], threads: int
) -> Iterator[dict[str, Array]]:
    """Run a model on each feed; yield the named tensors.

    Raises:
        ModelError: It does not load or does not run.
    """
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for feed in data:
            yield dict(zip(names, session.run(names, feed), strict=True))
    except (
        state.Fail, state.InvalidGraph, state.InvalidArgument, state.NotImplemented,
        state.RuntimeException, ValueError,
    ) as error:  # fmt: skip
        said = " ".join(str(error).split())
        raise ModelError(f"the model does not run on the calibration data: {said}") from error


def _fold(found: Any, name: str, array: Array) -> None:
    """Fold an array into what is known of its tensor."""
    if not array.size:
        return
    if not np.isfinite(array).all():
        raise ModelError(f"tensor '{name}' is not finite on the calibration data")
    found.add(np.ascontiguousarray(array, np.float32))
