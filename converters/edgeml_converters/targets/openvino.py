"""The targets of OpenVINO: its intermediate representation, ``model.xml`` with ``model.bin``.

``openvino-ir`` is for its CPU, ``openvino-device`` for its GPU and NPU; ``openvino-device-f16``
stores weights in float16. Reading a model sends no telemetry: only ``convert_model`` of OpenVINO
does, and it is not used. The precision that a device computes in is not in the file: the recipe's
options say it (``INFERENCE_PRECISION_HINT``), because OpenVINO would choose one by itself.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from edgeml.tensors import TensorSpec
from edgeml_converters.targets.base import Product
from edgeml_converters.targets.cpu import bindings, onnx_bytes

_FILES = ("model.xml", "model.bin")


class IrTarget:
    """Writes ``model.xml`` and ``model.bin``, weights as they are."""

    name = "openvino-ir"
    half = False

    def write(
        self,
        model: onnx.ModelProto,
        folder: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> Product:
        """Write the files; see ``Target``.

        Raises:
            ModelError: OpenVINO cannot read the model, or it has over 2 GiB.
            MissingPackageError: OpenVINO is not installed.
        """
        from edgeml.runtime.openvino import save_ir

        with tempfile.TemporaryDirectory(prefix="edgeml-ir-") as name:
            source = Path(name) / "model.onnx"
            source.write_bytes(onnx_bytes(model))
            version = save_ir(source, folder / _FILES[0], half=self.half)
        taken, given = bindings(model, inputs, outputs)
        how = "weights in float16" if self.half else "weights as they are"
        notes = (f"intermediate representation written by OpenVINO {version}, {how}",)
        return Product(_FILES, _FILES[0], taken, given, notes)


class DeviceTarget(IrTarget):
    """The same, for OpenVINO's accelerators."""

    name = "openvino-device"


class HalfTarget(IrTarget):
    """The same with weights in float16, for accelerators that compute in it."""

    name = "openvino-device-f16"
    half = True
