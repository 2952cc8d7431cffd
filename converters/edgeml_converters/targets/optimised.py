"""The targets ``onnx-optimised`` and ``ort``: what onnxruntime makes of a model, done beforehand.

Both hold the graph after the *extended* level: constants folded, nodes fused, QDQ patterns turned
into 8-bit operators. The level above it (``all``) also lays convolutions out for the instruction
sets of the very processor (NCHWc, in blocks of 8 or 16 channels), and a file of it would be wrong
or slow on another machine of the same profile. That level stays for the device: onnxruntime does
it at load for ``onnx-optimised``, and never for ``ort``, whose float convolutions are therefore
slower; its load is the shortest and needs no ONNX parser.

The fusions depend on the machine type and use operators of onnxruntime's own domains: such a file
is for devices with the same machine type and an onnxruntime not older than the one that wrote it.

onnxruntime (1.31) writes one list of ``.ort`` in the random order of a hash table: the content is
a function of the model, the bytes are not. So a search does not offer ``ort`` by itself; a profile
that needs it names it as its target.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from edgeml.tensors import TensorSpec
from edgeml_converters.targets.base import Product
from edgeml_converters.targets.cpu import bindings, onnx_bytes


class OptimisedTarget:
    """Writes ``model.onnx`` as onnxruntime has optimised it."""

    name = "onnx-optimised"
    file = "model.onnx"
    format = "ONNX"

    def write(
        self,
        model: onnx.ModelProto,
        folder: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> Product:
        """Write the file; see ``Target``.

        Raises:
            ModelError: onnxruntime cannot load the model, or it has over 2 GiB.
            MissingPackageError: onnxruntime is not installed.
        """
        from edgeml.runtime.onnxruntime import save_optimised

        with tempfile.TemporaryDirectory(prefix="edgeml-optimise-") as name:
            source = Path(name) / "model.onnx"
            source.write_bytes(onnx_bytes(model))
            version = save_optimised(source, folder / self.file, self.format)
        taken, given = bindings(model, inputs, outputs)
        note = f"graph optimised beforehand (extended level) by onnxruntime {version}"
        return Product((self.file,), self.file, taken, given, (note,))


class OrtTarget(OptimisedTarget):
    """Writes ``model.ort``, onnxruntime's own format."""

    name = "ort"
    file = "model.ort"
    format = "ORT"
