"""8 bits with ranges from calibration data."""

from __future__ import annotations

from collections.abc import Iterator

from edgeml_converters.recipes.base import F32, ONE, PREPARE, Plan, Recipe
from edgeml_converters.worker import PassCall


def recipes(plan: Plan) -> Iterator[Recipe]:
    """Yield one recipe per runtime."""
    options = {"per_channel": plan.rule.per_channel, "reduce_range": plan.rule.reduce_range}
    static = PassCall("quantize_static", {"scheme": plan.scheme, **options})
    scheme = plan.scheme.upper()
    yield Recipe(
        "int8-static",
        "int8",
        f"weights and activations in 8 bits ({scheme}), ranges from calibration data",
        {"onnxruntime": {}},
        (*PREPARE, static),
    )
    # OpenVINO pays 10 to 25 us per run for a batch that may vary: much, for a small model.
    yield Recipe(
        "int8-static-b1",
        "int8",
        f"8 bits as int8-static ({scheme}), one sample in a run",
        {"openvino": F32},
        (*PREPARE, ONE, static),
    )
