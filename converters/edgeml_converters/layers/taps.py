"""Run a model and look at tensors inside it, a bounded number of samples at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx

from edgeml.errors import ModelError
from edgeml.runtime.base import ProgramOptions
from edgeml.runtime.onnxruntime import OnnxRuntime
from edgeml.tensors import Array
from edgeml_converters.passes.shapes import real_inputs
from edgeml_converters.source.files import save_model

#: At most this many values of the largest input are fed in one run.
_CHUNK_VALUES = 1 << 17


class Tap(Protocol):
    """One run: input name -> array in, tensor name -> array out."""

    def __call__(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run on a feed."""
        ...


@contextmanager
def tapped(model: onnx.ModelProto, names: Iterable[str], threads: int = 1) -> Iterator[Tap]:
    """Open a model whose inner tensors can be seen; yields the function that runs it.

    Args:
        model: The model; it is run as it stands, without optimisation.
        names: Tensors to return, made by nodes of the main graph, or outputs.
        threads: Of every run.

    Raises:
        ModelError: The model does not load.
    """
    wanted = list(dict.fromkeys(names))
    watching = onnx.ModelProto()
    watching.CopyFrom(model)
    have = {o.name for o in watching.graph.output}
    # Outputs without a type: the runtime fills in what it infers.
    watching.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n not in have)
    with tempfile.TemporaryDirectory(prefix="edgeml-") as folder:
        file = Path(folder) / "tapped.onnx"
        save_model(watching, file)
        options = ProgramOptions(threads, extra={"graph_optimization_level": "disable"})
        with closing(OnnxRuntime().prepare(file, options)) as program, closing(
            program.session()
        ) as session:  # fmt: skip

            def run(feed: Mapping[str, Array]) -> dict[str, Array]:
                outputs = session.run(feed)
                return {name: outputs[name] for name in wanted}

            yield run


def feeds(
    model: onnx.ModelProto, data: Mapping[str, Array], samples: int = 0
) -> Iterator[dict[str, Array]]:
    """Yield calibration samples as feeds of bounded size, whole batches where the batch is fixed.

    Args:
        model: The model.
        data: Input name -> array, samples on axis 0; for an input without axes, one value each.
        samples: Use at most so many, spread evenly over the data; 0 for all.

    Raises:
        ModelError: An input has no data.
    """
    inputs = real_inputs(model)
    for info in inputs:
        if info.name not in data or not len(data[info.name]):
            raise ModelError(
                f"calibration data for input '{info.name}' is missing",
                "give evaluation data by --data",
            )
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in inputs}
    if all(shape and not shape[0] for shape in shapes.values()):
        count = min(len(data[name]) for name in shapes)
        taken = np.arange(count)
        if samples and samples < count:
            taken = np.unique(np.linspace(0, count - 1, samples).astype(int))
        largest = max(int(data[name][:1].size) for name in shapes)
        step = max(1, _CHUNK_VALUES // max(1, largest))
        for start in range(0, len(taken), step):
            yield {name: data[name][taken[start : start + step]] for name in shapes}
        return
    steps = {name: (shape[0] or 1) if shape else 1 for name, shape in shapes.items()}
    count = min(len(data[name]) // step for name, step in steps.items())
    if not count:
        raise ModelError("the calibration data holds not one whole batch of the model")
    widest = max(steps.values())
    taken = np.arange(count)
    if samples and samples < count * widest:
        taken = np.unique(np.linspace(0, count - 1, max(1, samples // widest)).astype(int))
    for i in taken:
        yield {
            name: data[name][i * step : (i + 1) * step]
            if shapes[name]
            else np.asarray(data[name][i])
            for name, step in steps.items()
        }
