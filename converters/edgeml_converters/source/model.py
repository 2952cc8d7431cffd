"""Source: the checked model that a conversion starts from."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from edgeml.digest import sha256_bytes, sha256_file
from edgeml.errors import ModelError
from edgeml.manifest import Step
from edgeml.runtime.base import ProgramOptions
from edgeml.runtime.onnxruntime import OnnxRuntime
from edgeml.tensors import TensorSpec
from edgeml_converters.passes import shapes as shaping  # these modules need each other
from edgeml_converters.passes.base import Pass, PassContext
from edgeml_converters.source import checks, torch_export
from edgeml_converters.source.external import load_external
from edgeml_converters.source.files import model_digest, outline, save_model
from edgeml_converters.source.sniff import cut_short, read_model_file
from edgeml_converters.source.stale import drop_stale
from edgeml_converters.source.stored import is_large

logger = logging.getLogger(__name__)

#: How the checker of onnx objects to a tensor whose number of axes is not known.
_NO_SHAPE = "Field 'shape' of 'type' is required but missing"


class Source:
    """An ONNX model that is whole, finite and loads in onnxruntime.

    Attributes:
        path: The file that was given; for an exported model, what was asked for.
        model: The model; nobody changes it. Weights of a large one stay in their files.
        digest: Of the file, or of all its files when it has external data.
        inputs: What it really asks for (stored tensors that are listed as inputs are not).
        outputs: What it gives.
        opset: Version of the standard operator set.
        ops: Operator -> how often, graphs inside nodes included.
        quantised: How it is quantised already (``QDQ``, ``QOperator``, ``dynamic``,
            ``weights only``); empty when it is not.
        steps: What was done to it since it was read.
        classes: Names of its classes, where processing gave them.
        warnings: What a user should know.
    """

    def __init__(
        self,
        path: Path,
        model: onnx.ModelProto,
        digest: str,
        specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
        warnings: tuple[str, ...],
        steps: tuple[Step, ...] = (),
        classes: tuple[str, ...] = (),
    ) -> None:
        """Take what ``open`` found; use ``Source.open``."""
        self.path = path
        self.model = model
        self.digest = digest
        self.inputs, self.outputs = specs
        self.opset = checks.opset_of(model)
        self.ops = checks.count_ops(model)
        self.quantised = checks.quantisation(self.ops)
        self.steps = steps
        self.classes = classes
        self.warnings = warnings

    @classmethod
    def open(cls, path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Source:
        """Read and check a model.

        Args:
            path: A file ``.onnx``; or ``module:function`` (also ``file.py:function``), which
                returns a torch module and is exported first.
            shapes: Input name -> shape to fix it to; -1 leaves an axis variable.

        Raises:
            ModelError: The model cannot be used; the message says why.
            UsageError: There is no such function, or it failed.
            MissingPackageError: It needs a package that is not here.
        """
        if torch_export.is_callable(path):
            path, data, said = torch_export.export(str(path))
        else:
            path, said = Path(path), ()
            data = read_model_file(path, "onnx")
        model = parse(data, path)
        checks.check_structure(model, path)
        extra = load_external(model, path)
        digest = _digest(data, extra, path.parent)
        checks.check_operators(model, path)
        warnings = [*said, *checks.check_weights(model, path), *drop_stale(model)]
        steps: tuple[Step, ...] = ()
        if shapes:
            before = model_digest(model)
            model = shaping.fix_shapes(model, shapes)
            told = {"shapes": {name: list(shape) for name, shape in shapes.items()}}
            steps = (Step("fix_shapes", told, before, model_digest(model)),)
        try:
            inputs, outputs, objections = load_check(model, path)
        except ModelError as error:
            if not shapes:
                raise
            raise ModelError(
                f"with these shapes, {error.message}",
                "leave --shape out, and give --data with inputs of the size that you mean",
            ) from error
        warnings += objections
        stored = {i.name for i in model.graph.initializer}
        listed = sum(i.name in stored for i in model.graph.input)
        if listed:
            warnings.append(f"{listed} stored tensors are listed as inputs too (old exporter)")
        if not inputs:
            raise ModelError(f"'{path}' has no inputs", "there is nothing to run it on")
        logger.debug("opened %s: opset %d", path, checks.opset_of(model))
        found = cls(path, model, digest, (inputs, outputs), tuple(warnings), steps)
        if found.quantised:
            note = (
                f"the model is quantised already ({found.quantised}): it is not quantised again, "
                "only run as it is; the float model gives more to choose from"
            )
            found.warnings = (*found.warnings, note)
        return found

    def apply(self, passes: Iterable[Pass], classes: tuple[str, ...] = ()) -> Source:
        """Return the source with passes applied, which become part of its lineage.

        Args:
            passes: In order.
            classes: Names of the classes, when the passes made them known.

        Raises:
            ModelError: A pass does not fit the model, or the result does not load.
        """
        model, steps = self.model, list(self.steps)
        before = model_digest(model)
        for one in passes:
            result = one.run(model, PassContext())
            model = result.model
            after = model_digest(model) if result.changed else before
            steps.append(Step(one.name, one.options, before, after, result.notes))
            before = after
        inputs, outputs, said = load_check(model, self.path)
        warnings = (*self.warnings, *(one for one in said if one not in self.warnings))
        return Source(
            self.path, model, self.digest, (inputs, outputs), warnings, tuple(steps), classes
        )


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
    # Shapes and the specification are checked without the bytes of a large model.
    bare = outline(model)[0] if is_large(model) else model
    against = checks.check_shapes(bare)
    try:
        with tempfile.TemporaryDirectory(prefix="edgeml-") as folder:
            file = Path(folder) / f"{path.stem}.onnx"
            save_model(model, file)
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
        onnx.checker.check_model(bare)
    except onnx.checker.ValidationError as error:
        first = str(error).strip().splitlines()[0]
        if _NO_SHAPE in first:  # a number of axes that nobody can know is no fault of the file
            return inputs, outputs, ["an input or output has no known number of axes"]
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
    home = folder.resolve()
    lines += [f"{sha256_file(p)}  {p.relative_to(home).as_posix()}\n" for p in extra]
    return sha256_bytes("".join(lines).encode())
