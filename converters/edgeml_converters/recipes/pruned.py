"""Fewer channels, units and heads, on top of the best that was found: the second stage.

Pruning multiplies with what a recipe gains, because the smaller network is quantised as the larger
one was; it costs accuracy, and the gates decide how far it may go. Weights set to zero one by one
(``prune_weights``) are no recipe: no runtime here gains time by them, and nothing that carries a
bundle compresses it, so that they would save nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeml_converters.recipes.base import BASELINE, PREPARE, Plan, Recipe
from edgeml_converters.results import Candidate, Standing
from edgeml_converters.worker import PassCall

#: Passes that come before the pruning of a recipe.
_FIRST = frozenset({"upgrade_opset", "simplify", "fix_batch", "fix_shapes"})
#: Share of the multiplications to save, and the least effort at which it is tried.
_AMOUNTS = ((0.15, "thorough"), (0.3, "normal"), (0.5, "normal"), (0.7, "thorough"))
#: Layers are fitted anew on hundreds of runs: for a source that takes longer than this many
#: milliseconds, that is for thorough searches only.
_QUICK_MS = 2.0
#: Instruction sets that compute 16 channels at once; others compute 8.
_WIDE = frozenset({"avx512", "vnni", "amx_int8"})
_DENSE = frozenset({"MatMul", "Gemm"})


def recipes(plan: Plan) -> Iterator[Recipe]:
    """Yield shares to prune for the best candidates; none in the first stage."""
    pruning = _pass(plan.ops)
    if not plan.has_data or not pruning:
        return
    tried = {recipe.name: recipe for recipe in plan.tried}
    bases = _bases(plan, tried)
    names = [candidate.recipe for candidate in bases]
    for number, candidate in enumerate(bases):
        recipe = tried[candidate.recipe]
        for amount, effort in _AMOUNTS:
            least = effort if number == 0 and _light(plan) else "thorough"
            runtime = candidate.runtime
            # Two runtimes may build on recipes of one name.
            whose = f"-{runtime}" if names.count(recipe.name) > 1 else ""
            yield _pruned(plan, recipe, runtime, pruning, amount, least, whose)


def _pass(ops: frozenset[str]) -> str:
    """Return the pass that fits a model with these operators; empty when none does."""
    normalised = ops & {"LayerNormalization", "Erf", "Gelu"}
    if {"MatMul", "Softmax", "Transpose"} <= ops and (normalised or "Conv" not in ops):
        return "prune_hidden"
    return "prune_channels" if ops & (_DENSE | {"Conv"}) else ""


def _bases(plan: Plan, tried: dict[str, Recipe]) -> list[Candidate]:
    """Return the best candidate of each runtime, the best of all first.

    Only what was measured counts: where no speed is known, none can be gained.
    """
    found: dict[str, Candidate] = {}
    for candidate in plan.seen:
        fits = (
            candidate.recipe in tried
            and candidate.verdict in (Standing.PASSED, Standing.UNDECIDED)
            and (candidate.speedup is not None or candidate.id == BASELINE)
            and candidate.latency_ms is not None
        )
        best = found.get(candidate.runtime)
        if fits and (best is None or _gain(candidate) > _gain(best)):
            found[candidate.runtime] = candidate
    return sorted(found.values(), key=lambda one: (-_gain(one), one.id))


def _gain(candidate: Candidate) -> float:
    return candidate.speedup.value if candidate.speedup is not None else 1.0


def _light(plan: Plan) -> bool:
    """Tell whether the source runs quickly enough to be fitted in a normal search."""
    base = next((one for one in plan.seen if one.id == BASELINE), None)
    return base is not None and base.latency_ms is not None and base.latency_ms.p50 <= _QUICK_MS


def _pruned(
    plan: Plan,
    recipe: Recipe,
    runtime: str,
    pruning: str,
    amount: float,
    effort: str,
    whose: str,
) -> Recipe:
    """Return a recipe with pruning before whatever else it does."""
    given = recipe.passes or PREPARE
    at = next((i for i, call in enumerate(given) if call.name not in _FIRST), len(given))
    multiple = 16 if _WIDE & set(plan.isa) else 8
    call = PassCall(pruning, {"amount": amount, "multiple": multiple})
    what = "heads and hidden units" if pruning == "prune_hidden" else "channels"
    return Recipe(
        f"{recipe.name}-pruned{amount * 100:.0f}{whose}",
        recipe.precision,
        f"{recipe.summary}; {what} removed to save {amount:.0%} of the multiplications",
        {runtime: recipe.options[runtime]},
        (*given[:at], call, *given[at:]),
        recipe.target,
        effort,
        {name: device for name, device in recipe.devices.items() if name == runtime},
    )
