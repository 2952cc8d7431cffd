"""Recipes with weights alone in 8 bits, and recipes of the second stage that mend static ones."""

import msgspec
import pytest

from edgeml.hardware import load_profile
from edgeml.plugins import load
from edgeml_converters.layers.coverage import coverage
from edgeml_converters.layers.executed import executed
from edgeml_converters.passes.base import PassContext
from edgeml_converters.recipes import Plan, recipes_for
from edgeml_converters.recipes import mixed as mending
from edgeml_converters.recipes import weights as packing
from edgeml_converters.results import Candidate, Drop, Speedup, Standing
from tests.support.models import block, cnn


def plan(*ops, **changes):
    profile = load_profile("cpu-x86-64")
    isa = ("vnni", "bf16")
    made = Plan(profile, profile.int8_rule(isa), isa, frozenset(ops), effort="normal")
    return msgspec.structs.replace(made, **changes)


def names(recipes):
    return [recipe.name for recipe in recipes]


def after(first, **found):
    """A plan of the second stage: every static candidate was found to be like this."""
    tried = [recipe for recipe, _ in recipes_for(first)]
    seen = [Candidate("onnxruntime", "fp32", "fp32", speedup=Speedup(1.0, (1.0, 1.0)))]
    seen += [
        Candidate(runtime, "int8", recipe.name, sqnr_db=21.0, **found)
        for recipe, runtimes in recipes_for(first)
        for runtime in runtimes
        if any(call.name == "quantize_static" for call in recipe.passes)
    ]
    return msgspec.structs.replace(first, seen=tuple(seen), tried=tuple(tried))


LOST = {"verdict": Standing.FAILED, "drop": Drop(0.02, 0.03, 0.01)}
FINE = {"verdict": Standing.PASSED, "drop": Drop(0.0, 0.005, 0.01)}


def test_weights_are_offered_where_matrix_products_count():
    assert names(packing.recipes(plan("MatMul", "Add"))) == ["int8-weights-b1", "int8-weights-bf16"]
    assert names(packing.recipes(plan("Conv", "Gemm"))) == []
    assert names(packing.recipes(plan("Gemm", "Relu", isa=("vnni",)))) == ["int8-weights-b1"]
    quick = [recipe.name for recipe, _ in recipes_for(plan("MatMul", effort="quick"))]
    assert not [name for name in quick if name.startswith("int8-weights")]


def test_for_size_they_are_offered_everywhere():
    found = names(packing.recipes(plan("Conv", objective="size")))
    assert found == ["int8-weights-b1", "int8-weights"]
    assert names(packing.recipes(plan("Relu", objective="size"))) == []


def test_onnxruntime_unpacks_weights_at_load_and_not_in_runs(tmp_path):
    """Without the recipe's option it unpacks in every run, or takes MatMulNBits: both slower."""
    recipe = next(
        one
        for one in packing.recipes(plan("MatMul", objective="size"))
        if one.name == "int8-weights"
    )
    model = load("passes", "quantize_weights")().run(cnn(channels=32), PassContext()).model
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString())
    packed = coverage(file, "onnxruntime")
    found = coverage(file, "onnxruntime", options=recipe.options["onnxruntime"])
    assert packed.dequantize >= 2
    assert (found.dequantize, found.weighted) == (0, 3)
    model = load("passes", "quantize_weights")().run(block(hidden=64), PassContext()).model
    file.write_bytes(model.SerializeToString())
    kinds = {node.kind for node in executed(file, "onnxruntime")}
    unpacked = {
        node.kind for node in executed(file, "onnxruntime", 1, recipe.options["onnxruntime"])
    }
    assert "MatMulNBits" in kinds - unpacked


def test_the_first_stage_mends_nothing():
    assert names(mending.recipes(plan("Conv", "MatMul"))) == []


def test_what_lost_too_much_is_mended_on_its_runtime():
    second = after(plan("Conv", "MatMul", "LayerNormalization"), **LOST)
    found = {recipe.name: (recipe, runtimes) for recipe, runtimes in recipes_for(second)}
    for runtime in ("onnxruntime", "openvino"):
        mine = {
            n: r for n, (r, runtimes) in found.items() if runtimes == (runtime,) and "static" in n
        }
        (corrected,) = [r for n, r in mine.items() if n.endswith("-corrected")]
        (mixed,) = [r for n, r in mine.items() if n.endswith("-mixed")]
        assert [call.name for call in corrected.passes[-2:]] == ["correct_bias", "quantize_static"]
        assert corrected.passes[-2].options["static"] == corrected.passes[-1].options
        options = mixed.passes[-1].options
        assert options["runtime"] == runtime
        assert options["runtime_options"] == mixed.options[runtime]
        assert options["static"] == corrected.passes[-1].options
        assert (options["least_db"], options["latency"], options["correct"]) == (24.0, True, True)
        load("passes", "quantize_mixed")(**options)
    thorough = msgspec.structs.replace(second, effort="thorough")
    more = {recipe.name for recipe, _ in recipes_for(thorough)} - set(found)
    assert {n.rpartition("-")[2] for n in more} >= {"smooth", "equalized"}


def test_what_passed_is_mixed_only_for_speed_and_only_when_thorough():
    first = plan("Conv")
    slow = after(first, **FINE, speedup=Speedup(1.1, (1.0, 1.2)))
    assert {recipe.effort for recipe in mending.recipes(slow)} == {"thorough"}
    assert all(r.passes[-1].options["least_db"] == 0 for r in mending.recipes(slow))
    fast = after(first, **FINE, speedup=Speedup(2.5, (2.4, 2.6)))
    assert names(mending.recipes(fast)) == []


@pytest.mark.parametrize("verdict", [Standing.ERROR, Standing.SKIPPED])
def test_what_was_never_judged_is_not_mended(verdict):
    broken = after(plan("Conv"), verdict=verdict)
    assert names(mending.recipes(broken)) == []


def test_no_time_is_measured_on_a_machine_that_is_no_such_device():
    second = after(plan("Conv"), **LOST)
    base = msgspec.structs.replace(second.seen[0], speedup=None)
    elsewhere = msgspec.structs.replace(second, seen=(base, *second.seen[1:]))
    mixed = [r for r in mending.recipes(elsewhere) if r.name.endswith("-mixed")]
    assert mixed
    assert all(recipe.passes[-1].options["latency"] is False for recipe in mixed)
