"""Source: the checked model that a conversion starts from."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from edgeml.digest import sha256_bytes, sha256_file
from edgeml.errors import ModelError
from edgeml.runtime.base import ProgramOptions
from edgeml.runtime.onnxruntime import OnnxRuntime
from edgeml.tensors import TensorSpec
from edgeml_converters.passes.shapes import fix_shapes
from edgeml_converters.source import checks
from edgeml_converters.source.external import LIMIT, load_external
from edgeml_converters.source.sniff import cut_short, read_model_file

logger = logging.getLogger(__name__)


class Source:
    """An ONNX model that is whole, finite and loads in onnxruntime.

    Attributes:
        path: The file that was given.
        model: The model with all its weights in memory; nobody changes it.
        digest: Of the file, or of all its files when it has external data.
        inputs: What it really asks for (stored tensors that are listed as inputs are not).
        outputs: What it gives.
        opset: Version of the standard operator set.
        ops: Operator -> how often, graphs inside nodes included.
        warnings: What a user should know.
    """

    def __init__(
        self,
        path: Path,
        model: onnx.ModelProto,
        digest: str,
        specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
        warnings: tuple[str, ...],
    ) -> None:
        """Take what ``open`` found; use ``Source.open``."""
        self.path = path
        self.model = model
        self.digest = digest
        self.inputs, self.outputs = specs
        self.opset = checks.opset_of(model)
        self.ops = checks.count_ops(model)
        self.warnings = warnings

    @classmethod
    def open(cls, path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Source:
        """Read and check a model.

        Args:
            path: A file ``.onnx``.
            shapes: Input name -> shape to fix it to; -1 leaves an axis variable.

        Raises:
            ModelError: The file cannot be used; the message says why.
            MissingPackageError: It needs a package that is not here.
        """
        data = read_model_file(path, "onnx")
        model = parse(data, path)
        checks.check_structure(model, path)
        extra = load_external(model, path)
        digest = _digest(data, extra, path.parent)
        checks.check_operators(model, path)
        warnings = checks.check_weights(model, path)
        if shapes:
            model = fix_shapes(model, shapes)
        try:
            inputs, outputs, said = load_check(model, path)
        except ModelError as error:
            if not shapes:
                raise
            raise ModelError(
                f"with these shapes, {error.message}",
                "leave --shape out, and give --data with inputs of the size that you mean",
            ) from error
        warnings += said
        stored = {i.name for i in model.graph.initializer}
        listed = sum(i.name in stored for i in model.graph.input)
        if listed:
            warnings.append(f"{listed} stored tensors are listed as inputs too (old exporter)")
        if not inputs:
            raise ModelError(f"'{path}' has no inputs", "there is nothing to run it on")
        logger.debug("opened %s: opset %d", path, checks.opset_of(model))
        return cls(path, model, digest, (inputs, outputs), tuple(warnings))


def parse(data: bytes, path: Path) -> onnx.ModelProto:
    """Decode a model.

    Raises:
        ModelError: The bytes are cut short, or damaged.
    """
    try:
        return onnx.load_model_from_string(data)
    except DecodeError as error:
        whole = cut_short(data)
        if whole is not None:
            raise ModelError(
                f"'{path}' is truncated: it has {len(data)} bytes, expected at least {whole}",
                "copy or download it again",
            ) from error
        raise ModelError(
            f"'{path}' is damaged: its {len(data)} bytes cannot be decoded as an ONNX model",
            "copy or download it again",
        ) from error


def load_check(
    model: onnx.ModelProto, path: Path
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], list[str]]:
    """Check a model against the specification, and by loading it in onnxruntime.

    Returns:
        Inputs, outputs and warnings.

    Raises:
        ModelError: It is against the specification, or does not load.
    """
    if model.ByteSize() > LIMIT:
        raise ModelError(f"'{path}' has {model.ByteSize()} bytes with its weights, limit 2 GiB")
    against = checks.check_shapes(model)
    try:
        with tempfile.TemporaryDirectory(prefix="edgeml-") as folder:
            file = Path(folder) / f"{path.stem}.onnx"
            file.write_bytes(model.SerializeToString(deterministic=True))
            program = OnnxRuntime().prepare(file, ProgramOptions())
            inputs, outputs = program.inputs, program.outputs
            program.close()
    except ModelError as error:
        if against:
            raise ModelError(
                f"'{path}': the shapes of the model contradict each other: {against}",
                "the file is damaged, or its exporter is wrong: export it again",
            ) from error
        raise
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"'{path}' is against the ONNX specification: {first}", "export it again"
        ) from error
    return inputs, outputs, [f"strict shape inference objects: {against}"] if against else []


def _digest(data: bytes, extra: tuple[Path, ...], folder: Path) -> str:
    """Return the digest of the model file, or of it and its external data."""
    own = sha256_bytes(data)
    if not extra:
        return own
    lines = [f"{own}  model\n"]
    lines += [f"{sha256_file(p)}  {p.relative_to(folder).as_posix()}\n" for p in extra]
    return sha256_bytes("".join(lines).encode())
