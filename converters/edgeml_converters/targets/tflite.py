"""The target ``tflite``: one int8 TFLite file, for LiteRT and for the compilers that take it."""

from __future__ import annotations

from pathlib import Path

import onnx

from edgeml.tensors import TensorSpec
from edgeml_converters.targets.base import Product

_NAME = "model.tflite"


class TfliteTarget:
    """Writes ``model.tflite``."""

    name = "tflite"

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

        made = writer.write(model)
        (folder / _NAME).write_bytes(made.data)
        return Product((_NAME,), _NAME, made.inputs, made.outputs, made.notes)
