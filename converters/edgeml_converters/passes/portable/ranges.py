"""The range of every float tensor over the calibration data, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgeml.errors import ModelError
from edgeml.tensors import Array

#: At most this many calibration values are fed in one run.
_CHUNK_VALUES = 1 << 20

Range = tuple[float, float]


def observe(
    model: onnx.ModelProto, names: Iterable[str], calibration: dict[str, Array], threads: int
) -> dict[str, Range]:
    """Return the smallest and the largest value of each tensor.

    Args:
        model: The float model.
        names: Tensors to watch; inputs of the model may be among them.
        calibration: Input name -> array, samples on axis 0.
        threads: Threads of the runs.

    Raises:
        ModelError: A tensor is never finite.
    """
    import onnxruntime as ort

    inputs = {info.name for info in model.graph.input}
    watched = sorted(set(names) - inputs)
    watching = onnx.ModelProto()
    watching.CopyFrom(model)
    del watching.graph.output[:]
    watching.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in watched
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # The watched tensors must be those of the given graph, not of an optimised one.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        watching.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: dict[str, Range] = {}
    for feed in _chunks(model, calibration):
        outputs = dict(zip(watched, session.run(watched, feed), strict=True)) if watched else {}
        for name, array in [*feed.items(), *outputs.items()]:
            if array.dtype == np.float32 and array.size:
                _widen(found, name, array)
    return found


def _widen(found: dict[str, Range], name: str, array: Array) -> None:
    """Extend a tensor's range by one array."""
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise ModelError(f"tensor '{name}' is not finite on the calibration data")
    before = found.get(name, (low, high))
    found[name] = (min(before[0], low), max(before[1], high))


def _chunks(model: onnx.ModelProto, calibration: dict[str, Array]) -> Iterable[dict[str, Array]]:
    """Yield feeds: as many samples as fit at once, or one by one when the batch is fixed to 1."""
    first = next(iter(calibration.values()))
    size = max(1, _CHUNK_VALUES // max(1, int(first[0].size)))
    fixed = False  # a model with a fixed batch cannot take a short last chunk
    for info in model.graph.input:
        dims = info.type.tensor_type.shape.dim
        if info.name not in calibration:
            continue
        if not dims:
            raise ModelError(f"input '{info.name}' has no axes, and so no batch to quantise with")
        if dims[0].dim_value > 0:
            size = dims[0].dim_value
            fixed = fixed or size > 1
    for start in range(0, len(first), size):
        if fixed and start + size > len(first) and start > 0:
            break
        yield {name: array[start : start + size] for name, array in calibration.items()}
