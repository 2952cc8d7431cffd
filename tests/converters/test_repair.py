"""Passes that mend 8 bits: what each one keeps, and what it brings where it should."""

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml.errors import ModelError, UsageError
from edgeml.plugins import load
from edgeml_converters.layers.coverage import coverage
from edgeml_converters.layers.sensitivity import channel_shift
from edgeml_converters.layers.sqnr import whole_model
from edgeml_converters.model import model_bytes, run_model
from edgeml_converters.passes.base import PassContext
from edgeml_converters.quantizer.prepare import prepared
from edgeml_converters.source.checks import count_ops
from tests.support.models import block, cnn, mlp


def apply(name, model, data=None, **options):
    return load("passes", name)(**options).run(model, PassContext(data or {}, seed=1))


def static(model, data, **options):
    return apply("quantize_static", model, data, **options).model


def images(count=48, channels=1, size=8, seed=2):
    rng = np.random.default_rng(seed)
    return {"image": rng.normal(size=(count, channels, size, size)).astype("f4")}


def tokens(count=32, hidden=16, seed=3):
    rng = np.random.default_rng(seed)
    return {"tokens": rng.normal(size=(count, 4, hidden)).astype("f4")}


def same(model, product, data, room=1e-5):
    want, got = run_model(model, data), run_model(product, data)
    for name, values in want.items():
        assert np.abs(got[name] - values).max() <= room * np.abs(values).max()


def spread(channels=16, groups=1, pool="MaxPool", seed=0):
    """Conv, LeakyRelu, pooling, (depthwise) Conv, Relu, Conv, with channels of unlike ranges."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.uniform(-2, 2, size=channels)).astype("f4")

    def stored(name, *shape, factor=1.0):
        values = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])) * factor
        return numpy_helper.from_array(values.astype("f4"), name)

    kernel = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], name="first", **kernel),
        helper.make_node("LeakyRelu", ["c1"], ["r1"], name="leaky", alpha=0.1),
        helper.make_node(pool, ["r1"], ["p1"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], name="second", group=groups, **kernel),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu"),
        helper.make_node("Conv", ["r2", "w3"], ["y"], name="third", **kernel),
    ]
    graph = helper.make_graph(
        nodes,
        "spread",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 4, 4])],
        [
            stored("w1", channels, 3, 3, 3, factor=scale[:, None, None, None]),
            stored("b1", channels, factor=0.3),
            stored("w2", channels, channels // groups, 3, 3),
            stored("b2", channels, factor=0.3),
            stored("w3", 4, channels, 3, 3),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize(
    ("groups", "pool", "by"),
    list(itertools.product((1, 2, 16), ("MaxPool", "AveragePool"), ("weights", "activations"))),
)
def test_equalizing_keeps_the_function(groups, pool, by):
    model = spread(groups=groups, pool=pool)
    data = images(channels=3)
    result = apply("equalize", model, data, by=by)
    assert result.changed
    assert "2 pairs" in result.notes[0]
    same(model, result.model, data)


def test_equalized_weights_have_equal_ranges():
    product = apply("equalize", spread()).model
    stored = {i.name: numpy_helper.to_array(i) for i in product.graph.initializer}
    above = np.abs(stored["w2"]).reshape(16, -1).max(axis=1)
    below = np.abs(stored["w3"]).transpose(1, 0, 2, 3).reshape(16, -1).max(axis=1)
    assert above == pytest.approx(below, rel=0.02)


def test_equalizing_mends_weights_with_one_scale_per_tensor():
    model, data = spread(), images(channels=3)
    plain = whole_model(model, static(model, data, per_channel=False), data, 0)
    equal = apply("equalize", model).model
    assert whole_model(model, static(equal, data, per_channel=False), data, 0) > plain + 1


def test_equalizing_goes_through_no_clip_and_no_branch():
    model = spread()
    clip = next(n for n in model.graph.node if n.name == "leaky")
    clip.op_type = "Clip"
    del clip.attribute[:]
    second = next(n for n in model.graph.node if n.name == "relu")
    model.graph.output.append(
        helper.make_tensor_value_info(second.output[0], TensorProto.FLOAT, ["n", 16, 4, 4])
    )
    with pytest.raises(ModelError, match="nothing to equalise"):
        apply("equalize", model)
    with pytest.raises(UsageError, match="sizes"):
        load("passes", "equalize")(by="sizes")
    with pytest.raises(ModelError, match="calibration"):
        apply("equalize", spread(), by="activations")


def test_corrected_biases_bring_the_mean_error_to_nothing():
    model, settings = prepared(cnn(channels=16)), {"per_channel": False}
    data = {"image": images(64)["image"] + 2}
    axes = {"conv1": 1, "conv2": 1, "fc": -1}
    old = channel_shift(model, static(model, data, **settings), axes, data, 0)
    result = apply("correct_bias", model, data, static=settings)
    assert "3 biases" in result.notes[0]
    stored = {i.name: numpy_helper.to_array(i) for i in result.model.graph.initializer}
    first = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for node, bias in (("conv1", "b1"), ("conv2", "b2"), ("fc", "b3")):
        moved = stored[f"{bias}_corrected"] - first[bias]
        assert moved == pytest.approx(-old[node], abs=1e-5)
    # The first layer, quantised with its new bias, against the exact one with its old bias.
    after = static(result.model, data, **settings)
    new = channel_shift(result.model, after, axes, data, 0)["conv1"]
    left = new + stored["b1_corrected"] - first["b1"]
    assert np.abs(left).max() < 0.05 * np.abs(old["conv1"]).max()


def test_corrected_biases_make_a_model_more_exact():
    model, data = cnn(channels=16, seed=5), images(64)
    rows = images(64, seed=9)
    before = whole_model(model, static(model, data, per_channel=False), rows, 0)
    settings = {"per_channel": False}
    better = apply("correct_bias", model, data, static=settings).model
    assert whole_model(model, static(better, data, **settings), rows, 0) > before + 1


def test_a_bias_behind_a_matrix_product_is_corrected_too():
    model, data = block(), tokens()
    result = apply("correct_bias", model, data)
    stored = {i.name for i in result.model.graph.initializer}
    assert {"b1_corrected", "b2_corrected"} <= stored
    assert {n.op_type for n in result.model.graph.node} == {n.op_type for n in model.graph.node}


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_smoothing_keeps_the_function(alpha):
    model, data = block(outlier=30.0), tokens()
    result = apply("smooth", model, data, alpha=alpha)
    assert result.changed
    same(model, result.model, data)
    added = [n for n in result.model.graph.node if n.op_type == "Mul"]
    assert len(added) == 1  # the residual connection reads the first norm too


def test_smoothing_mends_a_norm_with_one_large_channel():
    model, data = block(outlier=100.0), tokens()
    exclude = [n.name for n in model.graph.node if n.name not in ("up", "head")]
    plain = whole_model(model, static(model, data, exclude=exclude), data, 0)
    smooth = apply("smooth", model, data).model
    exclude = [n.name for n in smooth.graph.node if n.name not in ("up", "head")]
    assert whole_model(model, static(smooth, data, exclude=exclude), data, 0) > plain + 3


def test_smoothing_is_left_out_where_it_does_not_help():
    flat = block(outlier=1.0)
    result = apply("smooth", flat, tokens())
    if not result.changed:
        assert result.model is flat
        assert "none gains" in result.notes[0]
    with pytest.raises(ModelError, match="nothing to smooth"):
        apply("smooth", mlp(), {"x": np.zeros((4, 4), "f4")})
    with pytest.raises(UsageError, match="alpha"):
        load("passes", "smooth")(alpha=1.0)


@pytest.mark.parametrize("form", ["qdq", "nbits"])
def test_weights_in_8_bits_are_small_and_near(form):
    model = mlp(64, 128, 10) if form == "qdq" else block(hidden=64)
    data = {"x": np.random.default_rng(0).normal(size=(16, 64)).astype("f4")}
    data = data if form == "qdq" else tokens(hidden=64)
    result = apply("quantize_weights", model, form=form)
    assert len(model_bytes(result.model)) < 0.45 * len(model_bytes(model))
    assert whole_model(model, result.model, data, 0) > 35


def test_weights_that_two_nodes_share_are_stored_once():
    model = block(hidden=16)
    up = next(n for n in model.graph.node if n.name == "up")
    twin = onnx.NodeProto()
    twin.CopyFrom(up)
    twin.name, twin.output[0] = "twin", "t1"
    model.graph.node.insert(list(model.graph.node).index(up) + 1, twin)
    model.graph.output.append(
        helper.make_tensor_value_info("t1", TensorProto.FLOAT, ["batch", 4, 64])
    )
    product = apply("quantize_weights", model).model
    assert count_ops(product)["DequantizeLinear"] == 2
    assert whole_model(model, product, tokens(), 0) > 35


def test_openvino_keeps_weights_packed(tmp_path):
    file = tmp_path / "model.onnx"
    model = apply("fix_batch", block(hidden=64), batch=1).model
    file.write_bytes(model_bytes(apply("quantize_weights", model).model))
    found = coverage(file, "openvino")
    assert found.weighted == 3
    assert found.dequantize == 0  # nothing unpacks in a run: it is done inside the products


def test_what_weights_cannot_be_is_named():
    with pytest.raises(UsageError, match="form"):
        load("passes", "quantize_weights")(form="int3")
    with pytest.raises(UsageError, match="Softmax"):
        load("passes", "quantize_weights")(ops=["Softmax"])
    with pytest.raises(UsageError, match="block"):
        load("passes", "quantize_weights")(block=24)
    with pytest.raises(ModelError, match="no node 'nobody'"):
        apply("quantize_weights", mlp(16, 64), exclude=["nobody"])
    with pytest.raises(ModelError, match="nothing to quantise"):
        apply("quantize_weights", mlp(4, 8, 3))


def test_half_keeps_the_edges_and_casts_what_must_stay():
    model = cnn(size=8)
    resize = helper.make_node(
        "Resize", ["image", "", "scales"], ["large"], name="resize", mode="nearest"
    )
    model.graph.node.insert(0, resize)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], "f4"), "scales"))
    model.graph.node[1].input[0] = "large"
    del model.graph.value_info[:]
    result = apply("half", model)
    kinds = {i.name: i.data_type for i in result.model.graph.initializer}
    assert kinds["w1"] == TensorProto.FLOAT16
    assert kinds["scales"] == TensorProto.FLOAT
    out = run_model(result.model, images())
    assert out["logits"].dtype == np.float32
    assert whole_model(model, result.model, images(), 0) > 45


def test_half_cuts_what_it_cannot_hold_and_refuses_control_flow():
    model = mlp()
    bias = next(i for i in model.graph.initializer if i.name == "b2")
    bias.CopyFrom(numpy_helper.from_array(np.array([1e6, -np.inf, 0], "f4"), "b2"))
    result = apply("half", model)
    stored = {i.name: numpy_helper.to_array(i) for i in result.model.graph.initializer}
    assert stored["b2"].tolist() == [65504.0, -np.inf, 0.0]
    assert "1 values cut" in result.notes[0]
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "b",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["z"], name="if", then_branch=branch, else_branch=branch)
    )
    with pytest.raises(ModelError, match="node 'if'"):
        apply("half", model)


def outlying(seed=0):
    """A perceptron whose second layer cannot be had in 8 bits: one input is far too large."""
    model = mlp(16, 64, 5, seed=seed)
    weights = {i.name: i for i in model.graph.initializer}
    first = numpy_helper.to_array(weights["w1"]).copy()
    second = numpy_helper.to_array(weights["w2"]).copy()
    first[:, 0] *= 2000
    second[0] /= 20000
    weights["w1"].CopyFrom(numpy_helper.from_array(first, "w1"))
    weights["w2"].CopyFrom(numpy_helper.from_array(second, "w2"))
    return model


def test_mixed_leaves_the_layer_float_that_adds_the_noise():
    model = outlying()
    data = {"x": np.random.default_rng(1).normal(size=(64, 16)).astype("f4")}
    plain = whole_model(model, static(model, data), data, 0)
    one = load("passes", "quantize_mixed")(least_db=plain + 10, latency=False)
    result = one.run(model, PassContext(data))
    assert one.options["keep"] == ["fc2"]
    assert whole_model(model, result.model, data, 16) >= plain + 10
    again = load("passes", "quantize_mixed")(**one.options).run(model, PassContext(data))
    assert model_bytes(again.model) == model_bytes(result.model)


def test_mixed_with_corrected_biases_compares_with_the_model_as_it_was_given():
    model, data = cnn(channels=16, seed=5), images(64)
    settings = {"per_channel": False}
    options = {"static": settings, "latency": False, "keep": ["fc"]}
    plain = apply("quantize_mixed", model, data, **options).model
    better = apply("quantize_mixed", model, data, **options, correct=True).model
    assert whole_model(model, better, data, 0) > whole_model(model, plain, data, 0)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_mixed_measures_on_the_runtime_and_ends_in_int8(runtime):
    model, data = cnn(channels=16, size=12), images(16, size=12)
    settings = {"INFERENCE_PRECISION_HINT": "f32"} if runtime == "openvino" else {}
    one = load("passes", "quantize_mixed")(runtime=runtime, runtime_options=settings)
    result = one.run(model, PassContext(data))
    assert "QuantizeLinear" in count_ops(result.model)
    assert set(one.options["keep"]) <= {n.name for n in model.graph.node}
    assert result.notes


def test_mixed_says_when_the_exactness_cannot_be_had():
    data = {"x": np.random.default_rng(1).normal(size=(64, 16)).astype("f4")}
    with pytest.raises(ModelError, match="are not reached"):
        apply("quantize_mixed", mlp(16, 64, 5), data, least_db=99.0, latency=False)
    with pytest.raises(UsageError, match="least_db"):
        load("passes", "quantize_mixed")(least_db=200)
    with pytest.raises(UsageError, match="litert"):
        load("passes", "quantize_mixed")(runtime="litert")
    with pytest.raises(UsageError, match="scheme"):
        load("passes", "quantize_mixed")(static={"scheme": "u4"})
