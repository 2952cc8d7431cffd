"""The source as it is, and with fewer bits per float."""

from __future__ import annotations

from collections.abc import Iterator

from edgeml_converters.recipes.base import F32, ONE, PREPARE, SOURCE, Plan, Recipe


def recipes(plan: Plan) -> Iterator[Recipe]:
    """Yield fp32, and bf16 where the processor has it."""
    yield Recipe(SOURCE, "fp32", "the source as it is", {"onnxruntime": {}, "openvino": F32})
    if "bf16" in plan.isa:
        yield Recipe(
            "bf16",
            "bf16",
            "computed in bfloat16, one sample in a run; needs no calibration",
            {"openvino": {"INFERENCE_PRECISION_HINT": "bf16"}},
            (*PREPARE, ONE),
        )
