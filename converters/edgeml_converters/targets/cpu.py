"""The target ``cpu``: one ONNX file, for onnxruntime and OpenVINO."""

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
        try:
            data = model.SerializeToString(deterministic=True)
        except ValueError as error:
            raise ModelError(
                f"the model cannot be written as one ONNX file: {error}",
                "models above 2 GiB are not handled yet",
            ) from error
        (folder / _NAME).write_bytes(data)
        fixed = {i.name: _shape(i) for i in [*model.graph.input, *model.graph.output]}
        return Product(
            files=(_NAME,),
            entry=_NAME,
            inputs=tuple(_binding(spec, fixed) for spec in inputs),
            outputs=tuple(_binding(spec, fixed) for spec in outputs),
        )


def _binding(spec: TensorSpec, shapes: dict[str, tuple[int, ...]]) -> Binding:
    """Return the identity, with the shape that the file itself states."""
    same = binding_identity(spec)
    return Binding(same.name, same.tensor, same.dtype, shapes.get(spec.name, spec.shape))


def _shape(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    dims = info.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)
