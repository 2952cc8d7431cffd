"""The targets ``tflite`` and ``tflite-cpu``: one int8 TFLite file.

``tflite`` is int8 from edge to edge, as accelerators and their compilers want it. ``tflite-cpu``
takes and gives float32: quantising inside the file costs a processor a tenth of doing it outside.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from edgeml.tensors import TensorSpec
from edgeml_converters.targets.base import Product

_NAME = "model.tflite"


class TfliteTarget:
    """Writes ``model.tflite``, int8 at its edges."""

    name = "tflite"
    float_io = False

    def write(
        self,
        model: onnx.ModelProto,
        folder: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> Product:
        """Write the file; see ``Target``.

        Raises:
            ModelError: An operator has no int8 form; the message names node and reason.
            MissingPackageError: LiteRT, which brings the schema, is not installed.
        """
        from edgeml_converters.tflite import writer

        made = writer.write(model, self.float_io)
        (folder / _NAME).write_bytes(made.data)
        return Product((_NAME,), _NAME, made.inputs, made.outputs, made.notes)


class TfliteCpuTarget(TfliteTarget):
    """Writes ``model.tflite``, float32 at its edges."""

    name = "tflite-cpu"
    float_io = True
