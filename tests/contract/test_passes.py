"""What is special to single passes; tests/converters/test_passes_contract.py holds them all."""

import numpy as np
import onnx
import pytest
from onnx import helper

from edgeml.errors import ModelError, UsageError
from edgeml.plugins import load
from edgeml_converters.model import model_digest, signature
from edgeml_converters.passes.base import PassContext
from edgeml_converters.source.checks import count_ops, opset_of
from tests.support.models import cnn, mlp


def feed_of(model, rows=32):
    value = model.graph.input[0]
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
    data = np.random.default_rng(1).normal(size=(rows, *shape)).astype(np.float32)
    return {value.name: data}


@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "s8s8"},
        {"scheme": "U8S8", "per_channel": False},
        {"reduce_range": True},
        {"calibration": "percentile"},
        {"calibration": "mse"},
        {"calibration": "entropy"},
        {"placement": "openvino"},
        {"exclude": ["conv1"]},
    ],
)
def test_every_option_of_static_quantisation_has_an_effect(options):
    model = cnn()
    feed = feed_of(model, 256)
    feed["image"][0] *= 50  # an outlier, which only minmax takes at its word
    context = PassContext(feed)
    plain = load("passes", "quantize_static")().run(model, context).model
    other = load("passes", "quantize_static")(**options).run(model, context).model
    assert model_digest(other) != model_digest(plain)
    onnx.checker.check_model(other)


def test_static_quantisation_says_what_is_wrong():
    make = load("passes", "quantize_static")
    with pytest.raises(ModelError, match="calibration data for input 'x'"):
        make().run(mlp(), PassContext())
    context = PassContext(feed_of(mlp()))
    with pytest.raises(ModelError, match="no node 'fc9'"):
        make(exclude=["fc9"]).run(mlp(), context)
    quantised = make().run(mlp(), context).model
    with pytest.raises(ModelError, match=r"node '.*antizeLinear.*quantised already"):
        make().run(quantised, context)
    with pytest.raises(UsageError, match="unknown scheme 'u9s9'"):
        make(scheme="u9s9")
    with pytest.raises(UsageError, match="unknown calibration 'entropie'"):
        make(calibration="entropie")
    with pytest.raises(UsageError, match="unknown placement 'tensorrt'"):
        make(placement="tensorrt")


def exp_model():
    """A model with nothing to quantise."""
    graph = helper.make_graph(
        [helper.make_node("Exp", ["x"], ["y"], name="exp")],
        "exp",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("name", ["quantize_static", "quantize_dynamic"])
def test_nothing_to_quantise_is_an_error(name):
    model = exp_model()
    with pytest.raises(ModelError, match="nothing to quantise"):
        load("passes", name)().run(model, PassContext(feed_of(model)))


def test_dynamic_quantisation_leaves_convolutions_alone():
    model = cnn()
    result = load("passes", "quantize_dynamic")().run(model, PassContext())
    counts = count_ops(result.model)
    assert counts["Conv"] == 2
    assert "ConvInteger" not in counts
    assert counts["MatMulInteger"] == 1


def test_an_old_model_is_brought_up_to_date():
    model = mlp(opset=9)
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(i.name, i.data_type, list(i.dims))
        for i in model.graph.initializer
    )
    result = load("passes", "upgrade_opset")().run(model, PassContext())
    assert opset_of(result.model) == 17
    assert [i.name for i in result.model.graph.input] == ["x"]
    assert result.notes[0] == "4 stored tensors are no longer inputs"
    static = load("passes", "quantize_static")
    with pytest.raises(ModelError, match="operator set 9, expected 13"):
        static().run(model, PassContext(feed_of(mlp())))
    assert static().run(result.model, PassContext(feed_of(mlp()))).changed


def test_an_operator_that_cannot_be_upgraded_is_named():
    model = mlp(opset=9)
    model.graph.node[1].op_type = "Scan"
    model.graph.node[1].name = "my_scan"
    with pytest.raises(ModelError, match="my_scan"):
        load("passes", "upgrade_opset")().run(model, PassContext())


def test_a_bias_of_one_row_is_quantised():
    model = mlp()
    bias = model.graph.initializer[1]
    bias.dims.insert(0, 1)
    result = load("passes", "quantize_static")().run(model, PassContext(feed_of(model)))
    assert result.changed


def test_fixed_shapes_reach_the_outputs():
    result = load("passes", "fix_batch")(batch=5).run(cnn(), PassContext())
    assert [s[2][0] for s in signature(result.model)] == [5, 5]
    with pytest.raises(ModelError, match="got 0, expected 1 or more"):
        load("passes", "fix_batch")(batch=0).run(cnn(), PassContext())


def test_an_upgrade_that_cannot_be_compared_says_so():
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], name="pick")],
        "pick",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", "m"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.array([-1, 7]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    upgrade = load("passes", "upgrade_opset")()
    assert "not compared" in upgrade.run(model, PassContext()).notes[-1]
    given = PassContext({"x": np.ones((4, 7), np.float32)})
    assert "outputs equal" in upgrade.run(model, given).notes[-1]
    with pytest.raises(ModelError, match="does not run on the data"):
        upgrade.run(model, PassContext({"x": np.ones((4, 5), np.float32)}))
