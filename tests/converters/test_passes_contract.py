"""One suite for every pass in the table: what it needs, what it promises, and its manners.

A new pass needs no change here, unless it cannot be made without options: then ``OPTIONS`` gets
a line; or unless it fits none of the models below: then ``MODELS`` gets one.
"""

import json

import numpy as np
import onnx
import pytest

from edgeml.errors import ModelError
from edgeml.plugins import load, table
from edgeml_converters.model import model_bytes, model_digest, run_model, signature
from edgeml_converters.passes import base
from edgeml_converters.passes.base import PassContext
from edgeml_converters.source.checks import count_ops
from tests.support.models import block, cnn, mlp

#: Pass -> options, for passes that need some or that do nothing to these models without.
OPTIONS = {
    "upgrade_opset": {"opset": 18},
    "fix_shapes": {"shapes": {"x": [4, 4], "image": [4, -1, -1, -1]}},
    "fix_batch": {"batch": 2},
    "prune_channels": {"amount": 0.1, "multiple": 1},
    "prune_weights": {"amount": 0.1},
    "prune_hidden": {"amount": 0.1, "multiple": 1},
    "preprocess": {"dtype": "float32", "layout": "chw", "color": "gray", "scale": 0.9},
    # What else it does gives other outputs; test_processing has it.
    "postprocess": {"labels": ["one", "two"]},
    "quantize_mixed": {"keep": []},  # without it, it decides by what it measures
}
#: Largest error of a pass that does not promise VALUES, relative to the largest output.
LOOSE = 0.25
MODELS = {"mlp": lambda: mlp(16, 64, 5), "cnn": cnn, "block": block}
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "MatMulInteger", "QLinear", "MatMulNBits")


def feed_of(model, rows=32):
    value = model.graph.input[0]
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
    data = np.random.default_rng(1).normal(size=(rows, *shape)).astype(np.float32)
    return {value.name: data}


def make(name, model=None):
    options = dict(OPTIONS.get(name, {}))
    if name == "fix_shapes":
        inputs = {i.name for i in model.graph.input} if model else set()
        options = {"shapes": {k: v for k, v in options["shapes"].items() if k in inputs}}
    return load("passes", name)(**options)


def applied(name):
    """Yield (model, feed, result) for every model that the pass fits; there is one at least."""
    found = []
    reasons = []
    for build in MODELS.values():
        model = build()
        feed = feed_of(model)
        try:
            result = make(name, model).run(model, PassContext(feed, seed=3))
        except ModelError as error:
            reasons.append(error.message)
            continue
        found.append((model, feed, result))
    assert found, f"no model here fits: {reasons}"
    return found


names = pytest.mark.parametrize("name", sorted(table("passes")))


@names
def test_words_are_known(name):
    one = make(name)
    assert one.name == name
    assert isinstance(one.needs, frozenset)
    assert isinstance(one.promises, frozenset)
    assert one.needs <= base.NEEDS
    assert one.promises <= base.PROMISES
    assert json.loads(json.dumps(one.options)) == one.options


@names
def test_the_options_make_the_pass_again(name):
    model, feed, result = applied(name)[0]
    one = make(name, model)
    again = load("passes", name)(**one.options) if one.options else load("passes", name)()
    assert again.options == one.options
    context = PassContext(feed, seed=3)
    assert model_digest(again.run(model, context).model) == model_digest(result.model)


@names
def test_the_given_model_is_untouched_and_changed_is_true_to_its_word(name):
    for build in MODELS.values():
        model = build()
        before = model_bytes(model)
        try:
            result = make(name, model).run(model, PassContext(feed_of(model), seed=3))
        except ModelError:
            assert model_bytes(model) == before
            continue
        assert model_bytes(model) == before
        assert result.changed == (model_bytes(result.model) != before)
        assert all(isinstance(note, str) and "\n" not in note for note in result.notes)


@names
def test_the_result_is_valid_and_runs(name):
    for _, feed, result in applied(name):
        onnx.checker.check_model(result.model, full_check=True)
        out = run_model(result.model, feed)
        assert all(np.isfinite(array).all() for array in out.values())


@names
def test_promises_are_kept(name):
    one = make(name)
    for model, feed, result in applied(name):
        product = result.model
        want, got = run_model(model, feed), run_model(product, feed)
        assert list(got) == list(want)
        limit = 1e-4 if base.VALUES in one.promises else LOOSE
        for key, values in want.items():
            assert np.abs(got[key] - values).max() <= limit * np.abs(values).max() + 1e-7
        if base.SIGNATURE in one.promises:
            assert signature(product) == signature(model)
        if base.STANDARD in one.promises:
            domains = {n.domain for n in product.graph.node} - {"", "ai.onnx"}
            assert domains <= {n.domain for n in model.graph.node}
        if base.INT8 in one.promises:
            ops = " ".join(count_ops(product))
            assert any(word in ops for word in QUANTISED)
        if base.SMALLER in one.promises:
            assert stored_bytes(product) <= stored_bytes(model)
        if base.IDEMPOTENT in one.promises:
            again = make(name, product).run(product, PassContext(feed, seed=3))
            assert not again.changed


def stored_bytes(model):
    return sum(onnx.numpy_helper.to_array(i).nbytes for i in model.graph.initializer)


@names
def test_without_what_it_needs_it_says_so(name):
    one = make(name)
    model, feed, _ = applied(name)[0]
    if base.CALIBRATION in one.needs:
        with pytest.raises(ModelError, match="calibration"):
            one.run(model, PassContext())
    if base.OPSET13 in one.needs:
        old = mlp(16, 64, 5, opset=11) if "x" in feed else cnn(opset=11)
        with pytest.raises(ModelError, match="operator set 11"):
            one.run(old, PassContext(feed))
    if base.FLOAT in one.needs:
        static = load("passes", "quantize_static")().run(model, PassContext(feed)).model
        with pytest.raises(ModelError, match=r"node '.*quantised already"):
            one.run(static, PassContext(feed))
