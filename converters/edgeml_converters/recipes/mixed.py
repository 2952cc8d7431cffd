"""What mends static 8 bits where it lost too much, or gained too little: the second stage.

Every recipe here builds on a static one that was tried and judged: it repeats its passes and puts
something before or in the place of the quantiser.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgeml_converters.recipes.base import Plan, Recipe
from edgeml_converters.results import Candidate, Standing
from edgeml_converters.worker import PassCall

_RUNTIMES = ("onnxruntime", "openvino")
_STATIC = "quantize_static"
#: How much more exact leaving layers float must make it: half the power of the noise.
_MORE_DB = 3.0
#: Seconds after which mixing tries no other number of layers, by the effort of the search.
_SECONDS = {"normal": 20.0, "thorough": 120.0}
#: A static candidate that gains less than this may hold layers that are slower in 8 bits.
_HOPED = 1.5


def recipes(plan: Plan) -> Iterator[Recipe]:
    """Yield recipes for the best static candidate of each runtime; none in the first stage."""
    for runtime in _RUNTIMES:
        found = _best(plan, runtime)
        if found is None:
            continue
        candidate, recipe = found
        if _lost(candidate):
            yield from _exacter(plan, candidate, recipe, runtime)
        elif candidate.speedup is not None and candidate.speedup.value < _HOPED:
            yield _mixed(plan, candidate, recipe, runtime, 0.0, "thorough")


def _best(plan: Plan, runtime: str) -> tuple[Candidate, Recipe] | None:
    """Return the static candidate to build on: one that passed, else the most exact."""
    tried = {recipe.name: recipe for recipe in plan.tried}
    found = [
        (candidate, tried[candidate.recipe])
        for candidate in plan.seen
        if candidate.runtime == runtime
        and candidate.recipe in tried
        and _static(tried[candidate.recipe]) is not None
        and tried[candidate.recipe].passes[-1].name == _STATIC
        and runtime not in tried[candidate.recipe].devices
        and candidate.sqnr_db is not None
    ]
    return max(
        found,
        key=lambda pair: (not _lost(pair[0]), pair[0].sqnr_db, pair[0].recipe),
        default=None,
    )


def _static(recipe: Recipe) -> PassCall | None:
    return next((call for call in recipe.passes if call.name == _STATIC), None)


def _lost(candidate: Candidate) -> bool:
    """Tell whether a candidate is, or may be, less accurate than it must be."""
    drop = candidate.drop
    worse = drop is not None and drop.upper > drop.limit
    return worse and candidate.verdict in (Standing.FAILED, Standing.UNDECIDED)


def _exacter(plan: Plan, candidate: Candidate, recipe: Recipe, runtime: str) -> Iterator[Recipe]:
    """Yield what makes a static candidate more exact, the cheapest first."""
    options = _options(recipe)
    corrected = PassCall("correct_bias", {"static": options})
    yield _with(recipe, runtime, "corrected", "biases corrected", (corrected,), "normal")
    yield _mixed(plan, candidate, recipe, runtime, (candidate.sqnr_db or 0.0) + _MORE_DB, "normal")
    if "LayerNormalization" in plan.ops and "MatMul" in plan.ops:
        smooth = PassCall("smooth", {"reduce_range": plan.rule.reduce_range})
        what = "large channels moved into weights, biases corrected"
        yield _with(recipe, runtime, "smooth", what, (smooth, corrected), "thorough")
    if "Conv" in plan.ops:
        equal = PassCall("equalize", {"by": "activations"})
        what = "channels equalised, biases corrected"
        yield _with(recipe, runtime, "equalized", what, (equal, corrected), "thorough")


def _options(recipe: Recipe) -> dict[str, Any]:
    call = _static(recipe)
    return dict(call.options) if call is not None else {}


def _with(
    recipe: Recipe,
    runtime: str,
    name: str,
    what: str,
    passes: tuple[PassCall, ...],
    effort: str,
) -> Recipe:
    """Return a static recipe with passes before the quantiser."""
    at = [call.name for call in recipe.passes].index(_STATIC)
    return Recipe(
        f"{recipe.name}-{name}",
        recipe.precision,
        f"{recipe.summary}; {what}",
        {runtime: recipe.options[runtime]},
        (*recipe.passes[:at], *passes, *recipe.passes[at:]),
        recipe.target,
        effort,
    )


def _mixed(
    plan: Plan, candidate: Candidate, recipe: Recipe, runtime: str, least_db: float, effort: str
) -> Recipe:
    """Return a static recipe with layers left float.

    Time is measured only where it counts: not on a workstation that is no such device.
    """
    here = any(one.speedup is not None for one in plan.seen)
    settings = recipe.options[runtime]
    mixed = PassCall(
        "quantize_mixed",
        {
            "runtime": runtime,
            "runtime_options": settings,
            "static": _options(recipe),
            "least_db": round(min(max(least_db, 0.0), 100.0), 1),
            "latency": here,
            "correct": least_db > 0,
            "budget_s": _SECONDS.get(plan.effort, 20.0),
        },
    )
    at = [call.name for call in recipe.passes].index(_STATIC)
    return Recipe(
        f"{recipe.name}-mixed",
        recipe.precision,
        f"{recipe.summary}; layers left float by measured time and noise",
        {runtime: settings},
        (*recipe.passes[:at], mixed, *recipe.passes[at + 1 :]),
        recipe.target,
        effort,
    )
