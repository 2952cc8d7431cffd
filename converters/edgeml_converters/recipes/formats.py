"""Other forms of the same network: quicker to load, or what a device's build can read.

``onnx-optimised`` and ``ort`` are for onnxruntime, ``openvino-ir`` for OpenVINO (see
``edgeml_converters.targets``). A profile that names one of them as its target gets every recipe in
that form. Otherwise the best of a search are written in those too whose bytes are a function of
the model (``ort`` is not): of equally fast candidates the one that loads in clearly less time wins
(``edgeml_converters.choose``).
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterator

import msgspec

from edgeml.hardware import HardwareProfile
from edgeml.runtime.facts import machine_name
from edgeml_converters.choose import MIN_GAIN
from edgeml_converters.recipes.base import PREPARE, SOURCE, Plan, Recipe
from edgeml_converters.results import Candidate, Standing

#: Target -> the runtime that reads it, and what a recipe's name gets.
FORMS = {
    "onnx-optimised": ("onnxruntime", "opt"),
    "ort": ("onnxruntime", "ort"),
    "openvino-ir": ("openvino", "ir"),
}
#: Those that a search offers by itself.
_OFFERED = ("onnx-optimised", "openvino-ir")
#: A runtime's best is written in other forms when it is within this factor of the best of all.
_NEAR = 1.1


def recipes(plan: Plan) -> Iterator[Recipe]:
    """Yield the forms of each runtime's best candidate so far, where it may still win."""
    if plan.profile.target != "cpu" or not plan.seen:
        return
    tried = {recipe.name: recipe for recipe in plan.tried}
    standing = [c for c in plan.seen if _may_win(c)]
    # An undecided candidate wins only when no decided one gains.
    sure = [c for c in standing if c.verdict == Standing.PASSED and _gains(c)]
    standing = sure or standing
    best = min((_latency(c) for c in standing), default=0.0)
    for target in _OFFERED:
        runtime, _short = FORMS[target]
        mine = [c for c in standing if c.runtime == runtime and c.recipe in tried]
        first = min(mine, key=_latency, default=None)
        if first is None or _latency(first) > best * _NEAR or not _writable(target, plan.profile):
            continue
        recipe = tried[first.recipe]
        if recipe.target == "cpu":
            yield msgspec.structs.replace(_formed(recipe, target), effort="normal")


def as_asked(recipe: Recipe, profile: HardwareProfile) -> tuple[Recipe, ...]:
    """Return a recipe in the form that the profile's target names.

    The source stays beside its form: everything is compared with it.
    """
    form = FORMS.get(profile.target)
    if form is None or recipe.target != "cpu":
        return (recipe,)
    kept = (recipe,) if recipe.name == SOURCE else ()
    if form[0] not in recipe.options or not _writable(profile.target, profile):
        return kept
    return (*kept, _formed(recipe, profile.target))


def _formed(recipe: Recipe, target: str) -> Recipe:
    runtime, short = FORMS[target]
    return msgspec.structs.replace(
        recipe,
        name=f"{recipe.name}-{short}",
        summary=f"{recipe.summary}; written as {target}",
        options={runtime: recipe.options[runtime]},
        passes=recipe.passes or PREPARE,
        target=target,
    )


def _may_win(candidate: Candidate) -> bool:
    known = candidate.latency_ms is not None
    return known and candidate.verdict in (Standing.PASSED, Standing.UNDECIDED)


def _gains(candidate: Candidate) -> bool:
    return candidate.speedup is not None and candidate.speedup.interval[0] > MIN_GAIN


def _latency(candidate: Candidate) -> float:
    return candidate.latency_ms.p50 if candidate.latency_ms else float("inf")


def _writable(target: str, profile: HardwareProfile) -> bool:
    """Tell whether this machine can write a form for the profile's machines.

    What onnxruntime fuses depends on the machine type; OpenVINO's representation does not.
    """
    here = machine_name(platform.machine(), 8 * struct.calcsize("P"))
    return FORMS[target][0] != "onnxruntime" or here in profile.match.machine
