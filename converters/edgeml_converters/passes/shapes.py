"""FixShapes and FixBatch: variable axes of the inputs become numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from edgeml.errors import ModelError, nearest
from edgeml_converters.passes.base import (
    IDEMPOTENT,
    STANDARD,
    VALUES,
    WEIGHTS,
    PassContext,
    PassResult,
)
from edgeml_converters.source.files import outline
from edgeml_converters.source.stored import is_large


def real_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that are not stored tensors as well."""
    stored = {i.name for i in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in stored]


def fix_shapes(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Return a copy whose inputs have the given shapes.

    An axis name that several tensors share is fixed everywhere. Inferred shapes of inner tensors
    are dropped, because they may contradict the new ones; those of the outputs are inferred anew.

    Args:
        model: The model; not changed.
        shapes: Input name -> shape; -1 leaves an axis as it is.

    Raises:
        ModelError: No such input, another number of axes, or an axis that is fixed to something
            else already.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    inputs = {i.name: i for i in real_inputs(fixed)}
    names: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise ModelError(f"the model has no input '{name}'", nearest(name, inputs))
        _fix(inputs[name], shape, names)
    for value in [*inputs.values(), *fixed.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_value = names[dim.dim_param]
    del fixed.graph.value_info[:]
    return _refresh_outputs(fixed)


def _fix(value: onnx.ValueInfoProto, shape: tuple[int, ...], names: dict[str, int]) -> None:
    """Fix one input; note what its axis names mean."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        for _ in shape:
            tensor.shape.dim.add()
    dims = tensor.shape.dim
    old = [d.dim_value if d.HasField("dim_value") else -1 for d in dims]
    if len(dims) != len(shape):
        raise ModelError(
            f"input '{value.name}' has {len(dims)} axes {old}, got {len(shape)}: {list(shape)}",
            f"give {len(dims)} numbers, for example "
            f"{value.name}={','.join(str(n if n > 0 else 1) for n in old)}",
        )
    for axis, (dim, number) in enumerate(zip(dims, shape, strict=True)):
        if number == -1:
            continue
        if number < 1:
            raise ModelError(f"input '{value.name}', axis {axis}: got {number}, expected 1 or more")
        known = names.get(dim.dim_param) if dim.dim_param else None
        if (dim.HasField("dim_value") and dim.dim_value not in (0, number)) or known not in (
            None,
            number,
        ):
            raise ModelError(
                f"input '{value.name}', axis {axis} is {known or dim.dim_value} in the model, "
                f"got {number}",
                "only variable axes can be fixed",
            )
        if dim.dim_param:
            names[dim.dim_param] = number
        dim.dim_value = number


def _refresh_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fill in the outputs' axes that now follow from the inputs."""
    bare = outline(model)[0] if is_large(model) else model
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(
            f"the model does not allow these shapes: {error}", "give other shapes"
        ) from error
    for mine, found in zip(model.graph.output, inferred.graph.output, strict=True):
        mine.CopyFrom(found)
    return model


class FixShapes:
    """Fix the inputs to given shapes."""

    name = "fix_shapes"
    needs: frozenset[str] = frozenset()
    promises: frozenset[str] = frozenset({VALUES, STANDARD, IDEMPOTENT, WEIGHTS})

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take input name -> shape; -1 leaves an axis as it is."""
        self._shapes = {name: tuple(int(n) for n in shape) for name, shape in shapes.items()}

    @property
    def options(self) -> dict[str, Any]:
        """The shapes."""
        return {"shapes": {name: list(shape) for name, shape in self._shapes.items()}}

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: The shapes do not fit the model.
        """
        fixed = fix_shapes(model, self._shapes)
        changed = fixed.graph.input != model.graph.input
        return PassResult(fixed if changed else model, changed)


class FixBatch:
    """Fix axis 0 of every input where it is variable."""

    name = "fix_batch"
    needs: frozenset[str] = frozenset()
    promises: frozenset[str] = frozenset({VALUES, STANDARD, IDEMPOTENT, WEIGHTS})

    def __init__(self, batch: int = 1) -> None:
        """Take the number of samples per run."""
        self._batch = batch

    @property
    def options(self) -> dict[str, Any]:
        """The batch."""
        return {"batch": self._batch}

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: The batch is not 1 or more, or the model does not allow it.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for value in real_inputs(model):
            dims = value.type.tensor_type.shape.dim
            if dims and not dims[0].dim_value:
                shapes[value.name] = (self._batch, *(-1 for _ in dims[1:]))
        if not shapes:
            return PassResult(model, False, ("no input has a variable batch",))
        return PassResult(fix_shapes(model, shapes), True)
