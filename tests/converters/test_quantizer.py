"""The quantiser on small graphs: what it places, what it writes, and what becomes of that."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml.errors import ModelError
from edgeml_converters.model import model_bytes, run_model, signature
from edgeml_converters.passes.base import PassContext
from edgeml_converters.passes.quantize_dynamic import QuantizeDynamic
from edgeml_converters.passes.quantize_static import QuantizeStatic
from edgeml_converters.quantizer import calibrate
from edgeml_converters.quantizer.prepare import prepared
from edgeml_converters.source import files, stored
from edgeml_converters.source.checks import count_ops
from tests.support.models import cnn, mlp

FLOAT = TensorProto.FLOAT


def build(nodes, inputs, outputs, weights, opset=17):
    """A model; weights are name -> array, inputs and outputs name -> shape."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def rand(*shape, seed=0):
    fan = int(np.prod(shape[1:])) or 1
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(fan)).astype(np.float32)


def data_for(model, rows=32):
    dice = np.random.default_rng(5)
    return {
        i.name: dice.normal(
            size=(rows, *[d.dim_value or 4 for d in i.type.tensor_type.shape.dim][1:])
        ).astype(np.float32)
        for i in model.graph.input
    }


def quantised(model, **options):
    return QuantizeStatic(**options).run(model, PassContext(data_for(model))).model


def near(model, product, limit=0.05):
    onnx.checker.check_model(product, full_check=True)
    assert signature(product) == signature(model)
    feed = data_for(model)
    want, got = run_model(model, feed), run_model(product, feed)
    for name, array in want.items():
        assert np.abs(got[name] - array).max() <= limit * np.abs(array).max() + 1e-6


def fused(model):
    """Operators of the graph that onnxruntime really runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.onnx"
        options.optimized_model_filepath = str(file)
        onnxruntime.InferenceSession(
            model_bytes(model), options, providers=["CPUExecutionProvider"]
        )
        return {op.split(":")[-1]: n for op, n in count_ops(onnx.load(file)).items()}


def executed(model):
    """Type of layer -> precisions, of the graph that OpenVINO really runs."""
    import openvino

    core = openvino.Core()
    network = core.read_model(model_bytes(model), b"")
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = {}
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        kind, precision = (str(info[key].value) for key in ("layerType", "runtimePrecision"))
        found.setdefault(kind, []).append(precision)
    return found


def conv(name, source, output, bias=True, **attributes):
    inputs = [source, f"{name}_w", *([f"{name}_b"] if bias else [])]
    return helper.make_node("Conv", inputs, [output], name=name, **attributes)


def residual(groups=1):
    """Convolutions, a sum, a clamp, a pool, a joint and an average."""
    nodes = [
        conv("c1", "image", "h1", pads=[1] * 4),
        helper.make_node("Relu", ["h1"], ["r1"], name="relu1"),
        conv("c2", "r1", "h2", pads=[1] * 4, group=groups),
        helper.make_node("Add", ["h2", "r1"], ["s"], name="sum"),
        helper.make_node("Clip", ["s", "zero", "six"], ["r2"], name="clip"),
        helper.make_node(
            "MaxPool", ["r2"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]
        ),
        conv("c3", "p", "h3", bias=False),
        conv("c4", "p", "h4"),
        helper.make_node("Concat", ["h3", "h4"], ["j"], name="joint", axis=1),
        helper.make_node("GlobalAveragePool", ["j"], ["g"], name="mean"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "fc_w", "fc_b"], ["y"], name="fc", transB=1),
    ]
    weights = {
        "c1_w": rand(8, 3, 3, 3), "c1_b": rand(8), "c2_w": rand(8, 8 // groups, 3, 3, seed=1),
        "c2_b": rand(8, seed=1), "c3_w": rand(8, 8, 1, 1, seed=2), "c4_w": rand(8, 8, 1, 1, seed=3),
        "c4_b": rand(8, seed=3), "fc_w": rand(5, 16, seed=4), "fc_b": rand(5, seed=4),
        "zero": np.float32(0), "six": np.float32(6),
    }  # fmt: skip
    return build(nodes, {"image": ["n", 3, 8, 8]}, {"y": ["n", 5]}, weights)


def block(width=16, tokens=4):
    """A feed-forward block of a transformer: normalised, with a sum round it."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"], name="norm", axis=-1),
        helper.make_node("MatMul", ["n", "w1"], ["m1"], name="up"),
        helper.make_node("Add", ["m1", "b1"], ["a1"], name="up_bias"),
        helper.make_node("Erf", ["a1"], ["e"], name="erf"),
        helper.make_node("MatMul", ["e", "w2"], ["m2"], name="down"),
        helper.make_node("Add", ["b2", "m2"], ["a2"], name="down_bias"),
        helper.make_node("Add", ["a2", "x"], ["y"], name="around"),
    ]
    weights = {
        "g": np.ones(width, np.float32), "b": np.zeros(width, np.float32),
        "w1": rand(width, 4 * width).T.reshape(width, -1), "b1": rand(4 * width, seed=1),
        "w2": rand(4 * width, width, seed=2), "b2": rand(width, seed=3),
    }  # fmt: skip
    shape = ["n", tokens, width]
    return build(nodes, {"x": shape}, {"y": shape}, weights)


def test_onnxruntime_runs_a_residual_network_in_8_bits_from_edge_to_edge():
    model = residual()
    product = quantised(model)
    near(model, product)
    ops = fused(product)
    assert ops["QLinearConv"] == 4
    assert ops["QLinearAdd"] == 1
    assert ops["QGemm"] == 1
    assert ops["QuantizeLinear"] == 1
    assert not {"Conv", "Add", "Clip", "Relu", "Concat", "DequantizeLinear"} & set(ops)


def test_openvino_runs_a_residual_network_in_8_bits():
    model = residual()
    product = quantised(model, placement="openvino")
    near(model, product)
    ran = executed(product)
    assert set(ran["Convolution"]) == {"u8"}
    assert ran["FullyConnected"] == ["u8"]
    assert set(ran["Pooling"]) == {"u8"}


def test_grouped_convolutions_stay_float_where_they_are_slow():
    model = residual(groups=2)
    ops = fused(quantised(model))
    assert ops["QLinearConv"] == 2  # c1 would be alone, and is small
    assert {"Conv", "FusedConv"} & set(ops)
    assert set(executed(quantised(model, placement="openvino"))["Convolution"]) == {"u8"}
    depthwise = residual(groups=8)
    assert fused(quantised(depthwise))["QLinearConv"] == 4


def test_a_transformer_block_keeps_sums_and_norms_float():
    model = block()
    for placement in ("onnxruntime", "openvino"):
        product = quantised(model, placement=placement)
        near(model, product)
        counts = count_ops(product)
        assert counts["QuantizeLinear"] == 2
    ops = fused(quantised(model))
    assert ops["QGemm"] == 2
    assert "MatMul" not in ops
    ran = executed(quantised(model, placement="openvino"))
    assert set(ran["FullyConnected"]) <= {"u8", "i8"}


def test_a_channel_shuffle_stays_a_shuffle_in_8_bits():
    nodes = [
        conv("c1", "image", "h1", group=2),
        helper.make_node("Relu", ["h1"], ["r1"], name="relu"),
        helper.make_node("Reshape", ["r1", "split"], ["a"], name="split_groups"),
        helper.make_node("Transpose", ["a"], ["t"], name="swap", perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["t", "join"], ["j"], name="join_groups"),
        conv("c2", "j", "y", group=8, pads=[1] * 4),
    ]
    weights = {
        "c1_w": rand(8, 4, 1, 1), "c1_b": rand(8), "c2_w": rand(8, 1, 3, 3), "c2_b": rand(8),
        "split": np.array([1, 2, 4, 8, 8]), "join": np.array([1, 8, 8, 8]),
    }  # fmt: skip
    model = build(nodes, {"image": [1, 8, 8, 8]}, {"y": [1, 8, 8, 8]}, weights)
    product = quantised(model, placement="openvino")
    near(model, product)
    ran = executed(product)
    assert set(ran["Convolution"]) == {"u8"}
    assert ran["ShuffleChannels"] == ["u8"]
    scales = [i for i in product.graph.initializer if i.name.endswith("_scale")]
    ends = [numpy_helper.to_array(i) for i in scales if i.name in ("r1_scale", "j_scale")]
    assert len(ends) == 2
    assert ends[0] == ends[1]


@pytest.mark.parametrize("placement", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_gemm_of_every_form(placement, dynamic):
    shared = rand(6, 6)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], name="scaled", alpha=0.5, beta=2.0),
        helper.make_node("Gemm", ["a", "w", "row"], ["c"], name="turned", transB=1),
        helper.make_node("Gemm", ["c", "w", "one"], ["d"], name="scalar"),
        helper.make_node("Gemm", ["d", "w"], ["e"], name="bare", alpha=-1.0),
        helper.make_node("Gemm", ["e", "w", "column"], ["y"], name="odd"),
    ]
    weights = {
        "w": shared, "b": rand(6), "row": rand(1, 6, seed=1), "one": np.float32([0.3]),
        "column": rand(2, 6, seed=2),
    }  # fmt: skip
    model = build(nodes, {"x": [2, 6]}, {"y": [2, 6]}, weights)
    before = model_bytes(model)
    if dynamic:
        product = QuantizeDynamic().run(model, PassContext()).model
    else:
        product = quantised(model, placement=placement)
    assert model_bytes(model) == before
    near(model, product)
    counts = count_ops(product)
    assert counts["Gemm"] == (1 if dynamic else 5)  # a bias of its own for each row stays float


def test_weights_that_two_nodes_read_are_stored_once():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="two"),
    ]
    model = build(nodes, {"x": ["n", 6]}, {"y": ["n", 6]}, {"w": rand(6, 6)})
    for product in (
        quantised(model),
        QuantizeDynamic().run(model, PassContext()).model,
    ):
        near(model, product)
        stored = [i for i in product.graph.initializer if list(i.dims) == [6, 6]]
        assert len(stored) == 1
        assert stored[0].data_type == TensorProto.INT8


def test_weights_from_constant_nodes_and_listed_as_inputs():
    model = mlp()
    listed = onnx.ModelProto()
    listed.CopyFrom(model)
    weights = list(listed.graph.initializer)
    listed.graph.input.extend(
        helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)) for i in weights
    )
    from_nodes = onnx.ModelProto()
    from_nodes.CopyFrom(model)
    del from_nodes.graph.initializer[:]
    for i, tensor in enumerate(weights):
        node = helper.make_node("Constant", [], [tensor.name], value=tensor)
        from_nodes.graph.node.insert(i, node)
    context = PassContext(data_for(model))
    want = run_model(QuantizeStatic().run(model, context).model, context.calibration)["y"]
    for form in (listed, from_nodes):
        product = QuantizeStatic().run(form, context).model
        assert np.array_equal(run_model(product, context.calibration)["y"], want)
        assert QuantizeDynamic().run(form, context).changed


def test_graphs_inside_nodes_are_left_alone_and_read_what_they_read():
    def branch(name, op):
        node = helper.make_node(op, ["h"], [f"{name}_out"], name=name)
        out = helper.make_tensor_value_info(f"{name}_out", FLOAT, None)
        return helper.make_graph([node], name, [], [out])

    nodes = [
        conv("c1", "image", "h", pads=[1] * 4),
        helper.make_node("ReduceMax", ["h"], ["m"], name="top", keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["q"], name="ask"),
        helper.make_node(
            "If", ["q"], ["i"], name="choose",
            then_branch=branch("yes", "Relu"), else_branch=branch("no", "Neg"),
        ),
        conv("c2", "h", "y"),
        helper.make_node("Add", ["i", "h"], ["z"], name="both"),
    ]  # fmt: skip
    weights = {
        "c1_w": rand(4, 8, 3, 3), "c1_b": rand(4), "c2_w": rand(3, 4, 1, 1), "c2_b": rand(3),
        "zero": np.float32(0),
    }  # fmt: skip
    outputs = {"y": [1, 3, 4, 4], "z": [1, 4, 4, 4]}
    model = build(nodes, {"image": [1, 8, 4, 4]}, outputs, weights)
    near_model = quantised(model)
    onnx.checker.check_model(near_model, full_check=True)
    feed = data_for(model, 4)
    want, got = run_model(model, feed), run_model(near_model, feed)
    for name in outputs:
        assert np.abs(want[name] - got[name]).max() <= 0.05 * np.abs(want[name]).max()
    assert count_ops(near_model)["If"] == 1
    assert fused(near_model)["QLinearConv"] == 2


def test_a_tensor_that_is_read_and_is_an_output_keeps_its_name():
    nodes = [conv("c1", "image", "h"), conv("c2", "h", "y")]
    weights = {
        "c1_w": rand(4, 2, 1, 1), "c1_b": rand(4), "c2_w": rand(3, 4, 1, 1), "c2_b": rand(3),
    }  # fmt: skip
    shape = ["n", None, 4, 4]
    model = build(nodes, {"image": ["n", 2, 4, 4]}, {"h": shape, "y": shape}, weights)
    for placement in ("onnxruntime", "openvino"):
        near(model, quantised(model, placement=placement))


@pytest.mark.parametrize("placement", ["onnxruntime", "openvino"])
def test_excluded_nodes_stay_float(placement):
    model = residual()
    product = quantised(model, placement=placement, exclude=["c3", "fc"])
    near(model, product)
    stored = {i.name: i.data_type for i in product.graph.initializer}
    assert stored["c3_w"] == stored["fc_w"] == FLOAT
    assert "c1_w" not in stored
    block_model = block()
    product = quantised(block_model, placement=placement, exclude=["up"])
    near(block_model, product)
    assert {i.name: i.data_type for i in product.graph.initializer}["w1"] == FLOAT


def test_what_is_never_used_gets_scale_one_and_dead_channels_are_no_trouble():
    model = cnn()
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            array = numpy_helper.to_array(tensor).copy()
            array[0] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, "w1"))
    feed = {"image": np.zeros((4, 1, 8, 8), np.float32)}
    product = QuantizeStatic().run(model, PassContext(feed)).model
    want, got = run_model(model, feed), run_model(product, feed)
    assert np.abs(want["logits"] - got["logits"]).max() <= 0.05 * np.abs(want["logits"]).max()


def test_calibration_in_small_groups_and_chunks_finds_the_same(monkeypatch):
    model = prepared(residual())
    data = data_for(model, 50)
    names = [*[n for node in model.graph.node for n in node.output][:8], "image"]
    for method in ("minmax", "mse"):
        whole = calibrate.observe(model, names, data, method)
        assert sorted(whole) == sorted(names)
        monkeypatch.setattr(calibrate, "BUDGET", 3000)
        small = calibrate.observe(model, names, data, method)
        monkeypatch.undo()
        for name, found in whole.items():
            assert small[name] == pytest.approx(found, rel=0.02)


def test_calibration_says_what_is_wrong():
    model = cnn()
    bad = np.zeros((4, 1, 8, 8), np.float32)
    bad[2, 0, 3, 3] = np.nan
    with pytest.raises(ModelError, match=r"tensor '.*' is not finite"):
        QuantizeStatic().run(model, PassContext({"image": bad}))
    with pytest.raises(ModelError, match="does not run on the calibration data"):
        QuantizeStatic().run(model, PassContext({"image": np.zeros((4, 2, 8, 8), np.float32)}))
    fixed = cnn()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 8
    with pytest.raises(ModelError, match="not one whole batch"):
        QuantizeStatic().run(fixed, PassContext({"image": np.zeros((4, 1, 8, 8), np.float32)}))


def test_7_bit_weights():
    product = quantised(cnn(), reduce_range=True)
    for tensor in product.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1:
            assert np.abs(numpy_helper.to_array(tensor).astype(int)).max() == 64


def test_weights_in_a_file_of_their_own(monkeypatch, tmp_path):
    model = residual()
    context = PassContext(data_for(model))
    monkeypatch.setattr(stored, "INLINE", 1000)
    monkeypatch.setattr(stored, "SMALL", 100)
    monkeypatch.setattr(files, "SMALL", 100)
    assert len(files.save_model(model, tmp_path / "m.onnx")) == 2
    outside = files.read_model(tmp_path / "m.onnx")
    assert any(stored.is_external(t) for t in outside.graph.initializer)
    for one in (QuantizeStatic(), QuantizeStatic(placement="openvino"), QuantizeDynamic()):
        product = files.inlined(one.run(outside, context).model)
        want = files.inlined(one.run(model, context).model)
        assert model_bytes(product) == model_bytes(want)
