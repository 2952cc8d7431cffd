"""The targets ``cpu`` and ``gpu``: one ONNX file.

``cpu`` is for onnxruntime and OpenVINO on the processor, ``gpu`` for onnxruntime's providers.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from edgeml.manifest import Binding
from edgeml.runtime.bind import binding_identity
from edgeml.tensors import TensorSpec
from edgeml_converters.source.files import check_written, model_bytes, save_model
from edgeml_converters.targets.base import Product

_NAME = "model.onnx"


class CpuTarget:
    """Writes ``model.onnx``; the weights of a large model in ``model.onnx.data`` beside it."""

    name = "cpu"

    def write(
        self,
        model: onnx.ModelProto,
        folder: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> Product:
        """Write the file; see ``Target``.

        Raises:
            ModelError: What was written is not what was meant.
        """
        files = save_model(model, folder / _NAME)
        check_written(model, folder / _NAME)
        taken, given = bindings(model, inputs, outputs)
        return Product(tuple(file.name for file in files), _NAME, taken, given)


class GpuTarget(CpuTarget):
    """The same file, for onnxruntime's CUDA and TensorRT providers, which compile it at load."""

    name = "gpu"


def onnx_bytes(model: onnx.ModelProto) -> bytes:
    """Return a model as one ONNX file, weights inside.

    Raises:
        ModelError: It is larger than one protobuf message can be (2 GiB).
    """
    return model_bytes(model)


def bindings(
    model: onnx.ModelProto, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> tuple[tuple[Binding, ...], tuple[Binding, ...]]:
    """Return the bindings of a file that keeps the tensors of the model that it is written from."""
    shapes = {i.name: _shape(i) for i in [*model.graph.input, *model.graph.output]}
    return (
        tuple(_binding(spec, shapes) for spec in inputs),
        tuple(_binding(spec, shapes) for spec in outputs),
    )


def _binding(spec: TensorSpec, shapes: dict[str, tuple[int, ...]]) -> Binding:
    """Return the identity, with the shape that the file itself states."""
    same = binding_identity(spec)
    return Binding(same.name, same.tensor, same.dtype, shapes.get(spec.name, spec.shape))


def _shape(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    dims = info.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)
