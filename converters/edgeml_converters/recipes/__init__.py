"""Recipes: what may be tried for a profile, and why it may be worth it.

No recipe wins everywhere (docs/decisions/0010-how-a-winner-is-chosen.md has the figures), so all
that a profile allows are built, and the measurement decides. A recipe is a value: passes with
options, a target, and options of the runtimes. One file per family; ``known`` lists them.
"""

from edgeml_converters.recipes.base import BASELINE, PRECISIONS, SOURCE, Plan, Recipe
from edgeml_converters.recipes.known import baseline_allowed, recipes_for

__all__ = ["BASELINE", "PRECISIONS", "SOURCE", "Plan", "Recipe", "baseline_allowed", "recipes_for"]
