"""Simplify: each rewrite does what it says, and no value changes by more than rounding."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeml_converters.model import model_bytes, run_model
from edgeml_converters.passes.base import PassContext
from edgeml_converters.passes.simplify import Simplify
from edgeml_converters.source.checks import count_ops

F = TensorProto.FLOAT


def made(nodes, stored, shape, opset=17, outputs=("y",)):
    """A model of one input x."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, shape)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return onnx.shape_inference.infer_shapes(model)


def simple(model, shape=None):
    """Simplify, check that values stay, and return the operators."""
    before = model_bytes(model)
    result = Simplify().run(model, PassContext())
    assert model_bytes(model) == before
    assert not Simplify().run(result.model, PassContext()).changed
    onnx.checker.check_model(result.model, full_check=True)
    dims = [d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim]
    feed = {"x": np.random.default_rng(1).normal(size=shape or dims).astype(np.float32)}
    want, got = run_model(model, feed), run_model(result.model, feed)
    for name, values in want.items():
        assert np.abs(got[name] - values).max() <= 1e-5 * max(np.abs(values).max(), 1e-3)
    return count_ops(result.model), result


RNG = np.random.default_rng(0)


def numbers(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def norm(channels):
    return {
        "s": numbers(channels),
        "t": numbers(channels),
        "m": numbers(channels),
        "v": np.abs(numbers(channels)) + 0.1,
    }


NORM = helper.make_node("BatchNormalization", ["h", "s", "t", "m", "v"], ["y"], name="norm")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("op", "weights", "channels", "options"),
    [
        ("Conv", (6, 4, 3, 3), 6, {}),
        ("Conv", (8, 2, 3, 3), 8, {"group": 2}),
        ("ConvTranspose", (4, 6, 3, 3), 6, {}),
        ("ConvTranspose", (4, 3, 3, 3), 6, {"group": 2}),
    ],
)
def test_normalisation_goes_into_convolutions(op, weights, channels, options, bias):
    names = ["x", "w", "b"] if bias else ["x", "w"]
    nodes = [helper.make_node(op, names, ["h"], name="head", **options), NORM]
    stored = {"w": numbers(*weights), **({"b": numbers(channels)} if bias else {})}
    ops, result = simple(made(nodes, {**stored, **norm(channels)}, ["n", 4, 8, 8]))
    assert ops == {op: 1}
    assert "1 scalings folded into weights" in result.notes


@pytest.mark.parametrize("turned", [0, 1])
def test_normalisation_goes_into_dense_layers(turned):
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="head", transB=turned), NORM]
    weights = numbers(5, 4) if turned else numbers(4, 5)
    ops, _ = simple(made(nodes, {"w": weights, "b": numbers(1, 5), **norm(5)}, ["n", 4]))
    assert ops == {"Gemm": 1}


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (1,), ()])
@pytest.mark.parametrize("swapped", [False, True])
def test_factors_and_sums_per_channel_go_into_convolutions(shape, swapped):
    def pair(a, b):
        return [b, a] if swapped else [a, b]

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="head"),
        helper.make_node("Mul", pair("h", "f"), ["i"], name="mul"),
        helper.make_node("Add", pair("i", "a"), ["y"], name="add"),
    ]
    stored = {"w": numbers(6, 4, 1, 1), "f": numbers(*shape), "a": numbers(*shape)}
    ops, _ = simple(made(nodes, stored, ["n", 4, 8, 8]))
    assert ops == {"Conv": 1}


@pytest.mark.parametrize("shape", [(8,), (1, 1, 8), (1, 6, 8, 1), (2, 6, 1, 1), (1, 1, 6, 1, 1)])
def test_what_is_not_per_channel_stays(shape):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="head"),
        helper.make_node("Mul", ["h", "f"], ["y"], name="mul"),
    ]
    model = made(nodes, {"w": numbers(6, 4, 1, 1), "f": numbers(*shape)}, [2, 4, 8, 8])
    assert simple(model, (2, 4, 8, 8))[0] == {"Conv": 1, "Mul": 1}


def test_weights_of_two_layers_are_folded_for_one_only():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="first"),
        NORM,
        helper.make_node("Conv", ["x", "w"], ["z"], name="second"),
    ]
    model = made(nodes, {"w": numbers(6, 4, 1, 1), **norm(6)}, ["n", 4, 8, 8], outputs=("y", "z"))
    assert simple(model)[0] == {"Conv": 2}


def test_what_somebody_else_reads_is_not_folded():
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"], name="head"), NORM]
    stored = {"w": numbers(6, 4, 1, 1), **norm(6)}
    model = made(nodes, stored, ["n", 4, 8, 8], outputs=("y", "h"))
    assert simple(model)[0] == {"Conv": 1, "BatchNormalization": 1}


def test_identities_dropout_and_dead_nodes_go():
    nodes = [
        helper.make_node("Identity", ["x"], ["a"], name="same"),
        helper.make_node("Dropout", ["a", "ratio"], ["b", "mask"], name="drop"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("Exp", ["c"], ["unread"], name="dead"),
        helper.make_node("Identity", ["c"], ["y"], name="out"),
    ]
    model = made(nodes, {"ratio": np.float32(0.5), "unused": numbers(500)}, ["n", 4])
    ops, result = simple(model)
    assert ops == {"Relu": 1}
    assert not result.model.graph.initializer
    assert result.model.graph.output[0].name == "y"


def test_an_identity_of_an_input_that_is_an_output_stays():
    model = made([helper.make_node("Identity", ["x"], ["y"], name="same")], {}, ["n", 4])
    assert simple(model)[0] == {"Identity": 1}


def test_constants_are_folded_but_never_blown_up():
    nodes = [
        helper.make_node("Reshape", ["w", "shape"], ["w2"], name="reshape"),
        helper.make_node("MatMul", ["x", "w2"], ["m"], name="product"),
        helper.make_node("ConstantOfShape", ["many"], ["big"], name="fill"),
        helper.make_node("ReduceSum", ["big"], ["one"], keepdims=0, name="sum"),
        helper.make_node("Expand", ["little", "many"], ["wide"], name="expand"),
        helper.make_node("ReduceMean", ["wide"], ["two"], keepdims=0, name="mean"),
        helper.make_node("Add", ["m", "one"], ["n1"], name="add1"),
        helper.make_node("Add", ["n1", "two"], ["y"], name="add2"),
    ]
    stored = {
        "w": numbers(2, 2, 3),
        "shape": np.array([4, 3]),
        "many": np.array([1000, 500]),
        "little": np.float32([1.0]),
    }
    model = made(nodes, stored, ["n", 4])
    ops, result = simple(model)
    assert "Reshape" not in ops
    assert ops["ConstantOfShape"] == ops["Expand"] == 1
    assert len(model_bytes(result.model)) < 4096


def test_a_quantised_model_stays_quantised():
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], name="weights"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    stored = {"q": RNG.integers(-127, 127, (4, 5)).astype(np.int8), "scale": np.float32(0.01)}
    assert simple(made(nodes, stored, ["n", 4]))[0] == {"DequantizeLinear": 1, "MatMul": 1}


def test_large_equal_weights_are_stored_once():
    weights = numbers(64, 64)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    _, result = simple(made(nodes, {"w1": weights, "w2": weights.copy()}, ["n", 64]))
    assert len(result.model.graph.initializer) == 1
    assert "1 equal weights stored once" in result.notes


def test_what_inner_graphs_read_stays():
    inner = helper.make_graph(
        [helper.make_node("Add", ["same", "kept"], ["z"], name="inner_add")],
        "inner",
        [],
        [helper.make_tensor_value_info("z", F, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["same"], ["z2"], name="inner_neg")],
        "other",
        [],
        [helper.make_tensor_value_info("z2", F, None)],
    )
    nodes = [
        helper.make_node("Identity", ["x"], ["same"], name="id"),
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0, name="max"),
        helper.make_node("Greater", ["top", "limit"], ["yes"], name="test"),
        helper.make_node("If", ["yes"], ["y"], name="if", then_branch=inner, else_branch=other),
    ]
    model = made(nodes, {"kept": numbers(4), "limit": np.float32(0)}, ["n", 4])
    ops, _ = simple(model)
    assert "Identity" not in ops
    assert ops["If"] == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["Relu", "Mul", "Add", "Norm", "Identity", "Conv"]), max_size=6))
def test_chains_of_all_kinds_keep_their_values(kinds):
    nodes, stored, last = [], norm(4), "x"
    for i, kind in enumerate(kinds):
        out = f"t{i}"
        if kind == "Norm":
            inputs, kind = [last, "s", "t", "m", "v"], "BatchNormalization"
        elif kind == "Conv":
            stored[f"w{i}"] = numbers(4, 4, 1, 1) / 2
            inputs = [last, f"w{i}"]
        elif kind in ("Mul", "Add"):
            stored[f"c{i}"] = numbers(4, 1, 1)
            inputs = [last, f"c{i}"]
        else:
            inputs = [last]
        nodes.append(helper.make_node(kind, inputs, [out], name=f"node{i}"))
        last = out
    nodes.append(helper.make_node("Identity", [last], ["y"], name="end"))
    simple(made(nodes, stored, [1, 4, 5, 5]))
