"""All families of recipes, and which of their recipes a profile tries."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edgeml.hardware import HardwareProfile
from edgeml_converters.recipes import (
    accelerators,
    dynamic,
    formats,
    mixed,
    plain,
    portable,
    pruned,
    static,
    weights,
)
from edgeml_converters.recipes.base import EFFORTS, SOURCE, Plan, Recipe
from edgeml_converters.source.checks import quantisation

#: A family yields the recipes that make sense for a plan, in the order of their worth.
FAMILIES: tuple[Callable[[Plan], Iterable[Recipe]], ...] = (
    plain.recipes,
    static.recipes,
    dynamic.recipes,
    weights.recipes,
    portable.recipes,
    accelerators.recipes,
    formats.recipes,
    mixed.recipes,
    pruned.recipes,
)
#: Passes that a model which is quantised already goes through.
_HARMLESS = frozenset({"upgrade_opset", "fix_shapes", "fix_batch"})
#: Target of a profile -> targets of the recipes that its devices can run.
_TARGETS = {
    "cpu": {"cpu", "tflite-cpu", *formats.FORMS},
    "openvino-device": {"openvino-device", "openvino-device-f16"},
}


def recipes_for(plan: Plan) -> tuple[tuple[Recipe, tuple[str, ...]], ...]:
    """Return the recipes that make sense, each with the runtimes to try it on.

    The source as it is on onnxruntime is always there, to compare with, also where the profile
    cannot use it.
    """
    profile = plan.profile
    quantised = bool(quantisation(plan.ops))
    targets = _TARGETS.get(profile.target, {profile.target})
    found: list[tuple[Recipe, tuple[str, ...]]] = []
    given = (recipe for family in FAMILIES for recipe in family(plan))
    for recipe in (form for one in given for form in formats.as_asked(one, profile)):
        sensible = (
            recipe.precision in profile.precisions
            and (recipe.precision == "fp32" or plan.has_data)
            and recipe.target in targets
            and EFFORTS.index(recipe.effort) <= EFFORTS.index(plan.effort)
            and (not quantised or _leaves_weights(recipe))
        )
        names = [name for name in profile.runtimes if name in recipe.options and sensible]
        if recipe.name == SOURCE and "onnxruntime" not in names:
            names = ["onnxruntime", *names]
        if names:
            found.append((recipe, tuple(names)))
    return tuple(found)


def _leaves_weights(recipe: Recipe) -> bool:
    """Tell whether a recipe only targets: what is quantised already is not quantised again."""
    return {call.name for call in recipe.passes} <= _HARMLESS


def baseline_allowed(profile: HardwareProfile) -> bool:
    """Tell whether a device of this profile can run the source as it is.

    One with an NVIDIA GPU can, on its processor: that is what it falls back to.
    """
    return (
        "onnxruntime" in profile.runtimes
        and "fp32" in profile.precisions
        and profile.target in ("cpu", "gpu")
    )
