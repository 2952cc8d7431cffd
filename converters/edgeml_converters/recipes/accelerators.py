"""Recipes for what computes beside the processor: NVIDIA GPUs, Intel GPUs and NPUs.

Which devices there are is the profile's ``[devices]``. On a workstation without one, a candidate's
values are checked on the processor by the same file, and nothing more is claimed.

There is no 8-bit recipe for TensorRT: it refuses zero points and quantised biases, and what else
it refuses could not be tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from edgeml_converters.recipes.base import ONE, PREPARE, Plan, Recipe
from edgeml_converters.worker import PassCall

_SHORT = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}
#: float32 is computed in float32, and not in TensorFloat-32 with its 10 bits of mantissa.
_NO_TF32 = {"provider.use_tf32": "0"}
_HINT = "INFERENCE_PRECISION_HINT"


def recipes(plan: Plan) -> Iterator[Recipe]:
    """Yield fp32, fp16 and int8 for each device of the profile."""
    makers = {"onnxruntime": _nvidia, "openvino": _openvino}
    for runtime, devices in plan.profile.devices.items():
        for device in devices:
            made = makers[runtime](plan, device) if runtime in makers else ()
            for recipe in made:
                yield msgspec.structs.replace(recipe, devices={runtime: device})


def checked_here(runtime: str, options: Mapping[str, str]) -> dict[str, str]:
    """Return the options with which the processor runs the file of an accelerator's recipe."""
    if runtime == "openvino":
        return {_HINT: "f32"}
    return {key: value for key, value in options.items() if not key.startswith("provider.")}


def _nvidia(_plan: Plan, device: str) -> Iterator[Recipe]:
    """Yield what onnxruntime's provider gets: one ONNX file, which it compiles at load."""
    short = _SHORT.get(device, device.lower())
    options = _NO_TF32 if short == "cuda" else {}
    yield Recipe(
        f"fp32-{short}", "fp32", f"the source on {device}", {"onnxruntime": options}, PREPARE, "gpu"
    )
    yield Recipe(
        f"fp16-{short}",
        "fp16",
        f"weights and activations in float16 on {device}",
        {"onnxruntime": {}},
        (*PREPARE, PassCall("half")),
        "gpu",
    )


def _openvino(plan: Plan, device: str) -> Iterator[Recipe]:
    """Yield what OpenVINO's plug-in for a device gets: its intermediate representation."""
    short = device.lower().replace(".", "-")
    passes = (*PREPARE, ONE) if plan.profile.shapes.batch == 1 else PREPARE
    yield Recipe(
        f"fp32-{short}",
        "fp32",
        f"the source on {device}, computed in float32",
        {"openvino": {_HINT: "f32"}},
        passes,
        "openvino-device",
    )
    yield Recipe(
        f"fp16-{short}",
        "fp16",
        f"weights stored and values computed in float16 on {device}",
        {"openvino": {_HINT: "f16"}},
        passes,
        "openvino-device-f16",
    )
    options = {"per_channel": plan.rule.per_channel, "reduce_range": plan.rule.reduce_range}
    static = {"scheme": plan.scheme, "placement": "openvino", **options}
    yield Recipe(
        f"int8-{short}",
        "int8",
        f"8 bits ({plan.scheme.upper()}), ranges from calibration data, the rest in float16, "
        f"on {device}",
        {"openvino": {_HINT: "f16"}},
        (*passes, PassCall("quantize_static", static)),
        "openvino-device",
    )
