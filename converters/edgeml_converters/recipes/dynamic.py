"""8 bits with ranges that are found at every run."""

from __future__ import annotations

from collections.abc import Iterator

from edgeml_converters.recipes.base import F32, PREPARE, Plan, Recipe
from edgeml_converters.worker import PassCall

_DENSE = frozenset({"MatMul", "Gemm"})


def recipes(plan: Plan) -> Iterator[Recipe]:
    """Yield one recipe, for models that multiply matrices: for convolutions it is a loss."""
    if _DENSE & plan.ops:
        yield Recipe(
            "int8-dynamic",
            "int8",
            "MatMul and Gemm in 8 bits, ranges of activations found at every run",
            {"onnxruntime": {}, "openvino": F32},
            (*PREPARE, PassCall("quantize_dynamic", {"reduce_range": plan.rule.reduce_range})),
        )
