"""One full-int8 network for every runtime and compiler."""

from __future__ import annotations

from collections.abc import Iterator

from edgeml_converters.recipes.base import ONE, PREPARE, Plan, Recipe
from edgeml_converters.worker import PassCall

#: Form -> target and what it is.
_FORMS = {
    "int8-portable": ("tflite", "one full-int8 network for every runtime and compiler, as TFLite"),
    "int8-portable-f32": ("tflite-cpu", "the same int8 network as TFLite, float32 at its edges"),
}
#: Calibrations that may mend what minmax loses to outliers.
_OTHERS = ("percentile", "mse")


def recipes(plan: Plan) -> Iterator[Recipe]:
    """Yield the network with int8 and with float32 at its edges.

    In the second stage: with other calibrations, where the first lost, or may have lost, more
    accuracy than allowed.
    """
    for name, (target, summary) in _FORMS.items():
        passes = (*PREPARE, ONE, PassCall("quantize_portable"))
        yield Recipe(name, "int8", summary, {"litert": {}}, passes, target=target)
    for name in (c.recipe for c in plan.seen if c.recipe in _FORMS):
        if not _may_have_lost(plan, name):
            continue
        target, summary = _FORMS[name]
        for calibration in _OTHERS:
            quantise = PassCall("quantize_portable", {"calibration": calibration})
            yield Recipe(
                f"{name}-{calibration}",
                "int8",
                f"{summary}; ranges by {calibration}",
                {"litert": {}},
                (*PREPARE, ONE, quantise),
                target=target,
                effort="normal",
            )


def _may_have_lost(plan: Plan, recipe: str) -> bool:
    """Tell whether a candidate that was tried lost, or may have lost, more than allowed."""
    drops = [c.drop for c in plan.seen if c.recipe == recipe and c.drop is not None]
    return any(drop.upper > drop.limit for drop in drops)
