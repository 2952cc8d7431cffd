"""Weights in 8 bits, everything else as it was: free of calibration, and hardly any loss.

OpenVINO computes matrix products with such weights faster than with float ones, convolutions not;
onnxruntime computes nothing faster, but the file is a quarter of the size (decision record 18).
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeml_converters.recipes.base import F32, ONE, PREPARE, Plan, Recipe
from edgeml_converters.worker import PassCall

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gather", "Gemm", "MatMul"})
#: Weights are made float once, when the model is loaded; without it onnxruntime does so each run.
_UNPACK = {"session.disable_quant_qdq": "1"}
_PASS = PassCall("quantize_weights")


def recipes(plan: Plan) -> Iterator[Recipe]:
    """Yield a recipe for OpenVINO where there are matrix products, and for size everywhere."""
    small = plan.objective == "size" and bool(_WEIGHTED & plan.ops)
    # The last layer of a convolutional network is a matrix product too, but a small part of it.
    dense = "MatMul" in plan.ops or ("Gemm" in plan.ops and "Conv" not in plan.ops)
    if dense or small:
        yield Recipe(
            "int8-weights-b1",
            "int8",
            "weights in 8 bits, one sample in a run; needs no calibration",
            {"openvino": F32},
            (*PREPARE, ONE, _PASS),
            effort="quick" if small else "normal",
        )
    if dense and "bf16" in plan.isa and "bf16" in plan.profile.precisions:
        yield Recipe(
            "int8-weights-bf16",
            "int8",
            "weights in 8 bits, the rest in bfloat16, one sample in a run; needs no calibration",
            {"openvino": {"INFERENCE_PRECISION_HINT": "bf16"}},
            (*PREPARE, ONE, _PASS),
            effort="normal",
        )
    if small:
        yield Recipe(
            "int8-weights",
            "int8",
            "weights stored in 8 bits and made float when the model is loaded: smaller, not faster",
            {"onnxruntime": _UNPACK},
            (*PREPARE, _PASS),
        )
