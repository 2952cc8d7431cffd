"""Which pruned recipes are tried, and what comes of them where a model tolerates it."""

import msgspec
import numpy as np
import onnx
import pytest

from edgeml.hardware import load_profile
from edgeml_converters.model import run_model
from edgeml_converters.passes.base import PassContext
from edgeml_converters.passes.prune_hidden import PruneHidden
from edgeml_converters.recipes import Plan, recipes_for
from edgeml_converters.recipes.pruned import recipes
from edgeml_converters.results import Candidate, Latency, Speedup, Standing
from tests.support.corpus import corpus_file

CONV = frozenset({"Conv", "Relu", "Gemm"})
ATTENTION = frozenset({"MatMul", "Softmax", "Transpose", "LayerNormalization"})


def measured(runtime, recipe, gain, milliseconds=1.0, verdict=Standing.PASSED):
    ratio = Speedup(gain, (gain, gain)) if gain else None
    latency = Latency(milliseconds / (gain or 1), 1.0, 1.0)
    return Candidate(runtime, "int8", recipe, speedup=ratio, latency_ms=latency, verdict=verdict)


def plan(*seen, ops=CONV, effort="normal", isa=("avx512", "vnni"), **more):
    first = Plan(load_profile("cpu-x86-64"), ops=ops, effort=effort, isa=isa, **more)
    tried = tuple(recipe for recipe, _ in recipes_for(first))
    return msgspec.structs.replace(first, seen=seen, tried=tried)


BASE = measured("onnxruntime", "fp32", None)


def test_the_first_stage_has_none():
    assert list(recipes(plan())) == []


def test_the_best_of_all_is_pruned_before_it_is_quantised():
    slow, fast = measured("openvino", "fp32", 1.1), measured("onnxruntime", "int8-static", 1.7)
    found = [one for one in recipes(plan(BASE, slow, fast)) if one.effort == "normal"]
    assert [one.name for one in found] == ["int8-static-pruned30", "int8-static-pruned50"]
    names = [call.name for call in found[0].passes]
    assert names == ["upgrade_opset", "simplify", "prune_channels", "quantize_static"]
    assert found[0].passes[2].options == {"amount": 0.3, "multiple": 16}
    assert list(found[0].options) == ["onnxruntime"]


def test_a_thorough_search_prunes_more_and_for_each_runtime():
    seen = BASE, measured("openvino", "fp32", 1.1), measured("onnxruntime", "int8-static", 1.7)
    chosen = recipes_for(plan(*seen, effort="thorough"))
    pruned = {one.name: names for one, names in chosen if "pruned" in one.name}
    assert len(pruned) == 8
    assert pruned["fp32-pruned15"] == ("openvino",)


def test_recipes_of_one_name_stay_apart():
    found = [one.name for one in recipes(plan(BASE, measured("openvino", "fp32", 1.1)))]
    assert len(set(found)) == len(found) == 8


def test_attention_is_pruned_by_heads():
    seen = BASE, measured("onnxruntime", "int8-dynamic", 2.0)
    calls = next(iter(recipes(plan(*seen, ops=ATTENTION, isa=())))).passes
    assert calls[2].name == "prune_hidden"
    assert calls[2].options["multiple"] == 8


@pytest.mark.parametrize("changes", [{"has_data": False}, {"ops": frozenset({"TreeEnsemble"})}])
def test_none_without_data_or_layers(changes):
    assert list(recipes(plan(BASE, **changes))) == []


def test_what_failed_or_was_not_measured_is_no_base():
    bad = measured("onnxruntime", "int8-static", 3.0, verdict=Standing.FAILED)
    unknown = msgspec.structs.replace(measured("openvino", "fp32", None), latency_ms=None)
    found = list(recipes(plan(BASE, bad, unknown)))
    assert {one.name for one in found} == {
        "fp32-pruned15", "fp32-pruned30", "fp32-pruned50", "fp32-pruned70",
    }  # fmt: skip


def test_heavy_models_are_left_to_thorough_searches():
    heavy = measured("onnxruntime", "fp32", None, milliseconds=30.0)
    assert {one.effort for one in recipes(plan(heavy))} == {"thorough"}


@pytest.mark.corpus
def test_a_transformer_loses_half_its_work_and_no_accuracy():
    model = onnx.load(corpus_file("models/sst2_transformer.onnx"))
    data = np.load(corpus_file("eval/sst2_transformer.npz"))
    names = [i.name for i in model.graph.input]
    context = PassContext({name: data[f"calib/{name}"] for name in names})
    pruned = PruneHidden(0.5, samples=96).run(model, context).model
    feed, labels = {name: data[f"test/{name}"] for name in names}, data["test/labels"]
    right = [
        float((next(iter(run_model(m, feed).values())).argmax(1) == labels).mean())
        for m in (model, pruned)
    ]
    assert right[1] > right[0] - 0.01
