"""One full-int8 network for every runtime and compiler."""

from __future__ import annotations

from collections.abc import Iterator

from edgeml_converters.recipes.base import ONE, PREPARE, Plan, Recipe
from edgeml_converters.worker import PassCall


def recipes(plan: Plan) -> Iterator[Recipe]:
    """Yield the network as TFLite, with int8 and with float32 at its edges."""
    passes = (*PREPARE, ONE, PassCall("quantize_portable"))
    yield Recipe(
        "int8-portable",
        "int8",
        "one full-int8 network for every runtime and compiler, here as TFLite",
        {"litert": {}},
        passes,
        target="tflite",
    )
    yield Recipe(
        "int8-portable-f32",
        "int8",
        "the same int8 network as TFLite, float32 at its edges",
        {"litert": {}},
        passes,
        target="tflite-cpu",
    )
