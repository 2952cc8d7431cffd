"""The targets ``cpu`` and ``gpu``: one ONNX file.

``cpu`` is for onnxruntime and OpenVINO on the processor, ``gpu`` for onnxruntime's providers.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from edgeml.errors import ModelError
from edgeml.manifest import Binding
from edgeml.runtime.bind import binding_identity
from edgeml.tensors import TensorSpec
from edgeml_converters.targets.base import Product

_NAME = "model.onnx"


class CpuTarget:
    """Writes ``model.onnx``, weights inside."""

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
            ModelError: The model is larger than one protobuf message can be (2 GiB).
        """
        (folder / _NAME).write_bytes(onnx_bytes(model))
        taken, given = bindings(model, inputs, outputs)
        return Product((_NAME,), _NAME, taken, given)


class GpuTarget(CpuTarget):
    """The same file, for onnxruntime's CUDA and TensorRT providers, which compile it at load."""

    name = "gpu"


def onnx_bytes(model: onnx.ModelProto) -> bytes:
    """Return a model as one ONNX file, weights inside.

    Raises:
        ModelError: It is larger than one protobuf message can be (2 GiB).
    """
    try:
        data: bytes = model.SerializeToString(deterministic=True)
    except ValueError as error:
        raise ModelError(
            f"the model cannot be written as one ONNX file: {error}",
            "models above 2 GiB are not handled yet",
        ) from error
    return data


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
