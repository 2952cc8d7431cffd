"""Recipes: what may be tried for a profile, and why it may be worth it.

No recipe wins everywhere (docs/decisions/0010-how-a-winner-is-chosen.md has the figures), so all
that a profile allows are built, and the measurement decides. A recipe is a value: passes with
options, a target, and options of the runtimes.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from edgeml.hardware import HardwareProfile, Int8Rule
from edgeml_converters.worker import PassCall

#: The recipe that leaves the source as it is; on onnxruntime it is the baseline.
SOURCE = "fp32"
BASELINE = f"onnxruntime.{SOURCE}"

_PREPARE = (PassCall("upgrade_opset"), PassCall("simplify"))
_DENSE = frozenset({"MatMul", "Gemm"})


#: Target of a profile -> targets of the recipes that its devices can run.
_TARGETS = {"cpu": {"cpu", "tflite-cpu"}}


class Recipe(msgspec.Struct, frozen=True):
    """One way to prepare a model.

    Attributes:
        name: Unique; part of a variant's id.
        precision: ``fp32``, ``bf16`` or ``int8``.
        summary: What it does, for the report.
        passes: In order.
        target: What writes the files.
        options: Runtime -> its options. The runtimes named here are those that it is for.
    """

    name: str
    precision: str
    summary: str
    options: dict[str, dict[str, str]]
    passes: tuple[PassCall, ...] = ()
    target: str = "cpu"


def known_recipes(rule: Int8Rule) -> tuple[Recipe, ...]:
    """Return all recipes.

    Args:
        rule: How the profile quantises to 8 bits on the processor at hand.
    """
    scheme = {"uint8": "u8", "int8": "s8"}[rule.activations] + "s8"
    options = {"per_channel": rule.per_channel, "reduce_range": rule.reduce_range}
    static = PassCall("quantize_static", {"scheme": scheme, **options})
    f32 = {"INFERENCE_PRECISION_HINT": "f32"}
    both = {"onnxruntime": {}, "openvino": f32}
    one = PassCall("fix_batch", {"batch": 1})
    return (
        Recipe(SOURCE, "fp32", "the source as it is", both),
        Recipe(
            "bf16",
            "bf16",
            "computed in bfloat16, one sample in a run; needs no calibration",
            {"openvino": {"INFERENCE_PRECISION_HINT": "bf16"}},
            (*_PREPARE, one),
        ),
        Recipe(
            "int8-static",
            "int8",
            f"weights and activations in 8 bits ({scheme.upper()}), ranges from calibration data",
            {"onnxruntime": {}},
            (*_PREPARE, static),
        ),
        # OpenVINO pays 10 to 25 us per run for a batch that may vary: much, for a small model.
        Recipe(
            "int8-static-b1",
            "int8",
            f"8 bits as int8-static ({scheme.upper()}), one sample in a run",
            {"openvino": f32},
            (*_PREPARE, one, static),
        ),
        Recipe(
            "int8-dynamic",
            "int8",
            "MatMul and Gemm in 8 bits, ranges of activations found at every run",
            both,
            (*_PREPARE, PassCall("quantize_dynamic", {"reduce_range": rule.reduce_range})),
        ),
        Recipe(
            "int8-portable",
            "int8",
            "one full-int8 network for every runtime and compiler, here as TFLite",
            {"litert": {}},
            (*_PREPARE, one, PassCall("quantize_portable")),
            target="tflite",
        ),
        Recipe(
            "int8-portable-f32",
            "int8",
            "the same int8 network as TFLite, float32 at its edges",
            {"litert": {}},
            (*_PREPARE, one, PassCall("quantize_portable")),
            target="tflite-cpu",
        ),
    )


def recipes_for(
    profile: HardwareProfile, isa: Collection[str], ops: Collection[str], has_data: bool
) -> tuple[tuple[Recipe, tuple[str, ...]], ...]:
    """Return the recipes that make sense, each with the runtimes to try it on.

    The baseline is always there, to compare with, also where the profile cannot use it.

    Args:
        profile: What it says of runtimes, precisions and target.
        isa: Instruction sets of the device.
        ops: Operators of the model.
        has_data: Without evaluation data nothing can be judged that changes values: only the
            source itself is tried.
    """
    rule = profile.int8_rule(isa) or Int8Rule()
    found: list[tuple[Recipe, tuple[str, ...]]] = []
    for recipe in known_recipes(rule):
        usable = [name for name in profile.runtimes if name in recipe.options]
        sensible = (
            recipe.precision in profile.precisions
            and (recipe.precision == "fp32" or has_data)
            and (recipe.precision != "bf16" or "bf16" in isa)
            and (recipe.name != "int8-dynamic" or bool(_DENSE & set(ops)))
            and recipe.target in _TARGETS.get(profile.target, {profile.target})
        )
        names = usable if sensible else []
        if recipe.name == SOURCE and "onnxruntime" not in names:
            names = ["onnxruntime", *names]
        if names:
            found.append((recipe, tuple(names)))
    return tuple(found)


def baseline_allowed(profile: HardwareProfile) -> bool:
    """Tell whether a device of this profile can run the source as it is."""
    return (
        "onnxruntime" in profile.runtimes
        and "fp32" in profile.precisions
        and profile.target == "cpu"
    )
