"""8 bits with ranges from calibration data."""

from __future__ import annotations

from collections.abc import Iterator

from edgeml_converters.recipes.base import F32, ONE, PREPARE, Plan, Recipe
from edgeml_converters.worker import PassCall

#: Effort -> calibrations that are tried beside minmax. They are as fast as it: only accuracy
#: can differ.
_CALIBRATIONS = (("thorough", "mse"), ("thorough", "percentile"))


def recipes(plan: Plan) -> Iterator[Recipe]:
    """Yield one recipe per runtime, each with the placement that its runtime gains by."""
    scheme = plan.scheme.upper()
    yield Recipe(
        "int8-static",
        "int8",
        f"weights and activations in 8 bits ({scheme}), ranges from calibration data",
        {"onnxruntime": {}},
        (*PREPARE, _static(plan, "onnxruntime")),
    )
    # OpenVINO pays 10 to 25 us per run for a batch that may vary: much, for a small model.
    yield Recipe(
        "int8-static-b1",
        "int8",
        f"8 bits as int8-static ({scheme}), placed for OpenVINO, one sample in a run",
        {"openvino": F32},
        (*PREPARE, ONE, _static(plan, "openvino")),
    )
    for effort, calibration in _CALIBRATIONS:
        what = f"ranges by {calibration}: outliers are cut off where that helps the rest"
        yield Recipe(
            f"int8-static-{calibration}",
            "int8",
            f"as int8-static, {what}",
            {"onnxruntime": {}},
            (*PREPARE, _static(plan, "onnxruntime", calibration)),
            effort=effort,
        )
        yield Recipe(
            f"int8-static-b1-{calibration}",
            "int8",
            f"as int8-static-b1, {what}",
            {"openvino": F32},
            (*PREPARE, ONE, _static(plan, "openvino", calibration)),
            effort=effort,
        )


def _static(plan: Plan, placement: str, calibration: str = "minmax") -> PassCall:
    """Return the quantiser's call for a plan."""
    return PassCall(
        "quantize_static",
        {
            "scheme": plan.scheme,
            "per_channel": plan.rule.per_channel,
            "reduce_range": plan.rule.reduce_range,
            "placement": placement,
            "calibration": calibration,
        },
    )
