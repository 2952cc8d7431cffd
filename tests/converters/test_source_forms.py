"""Models of all ages and kinds go through: old operator sets, trees, recurrence, control flow."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeml
from edgeml.bundle import Bundle
from edgeml.errors import ModelError
from edgeml.plugins import load
from edgeml_converters.model import model_digest, run_model
from edgeml_converters.passes.base import PassContext, PassResult, check_promises
from edgeml_converters.passes.opset import UpgradeOpset
from edgeml_converters.results import Standing
from edgeml_converters.source import Source
from tests.support.models import cnn, mlp

F = TensorProto.FLOAT
RNG = np.random.default_rng(0)


def info(name, dims, kind=F):
    return helper.make_tensor_value_info(name, kind, dims)


def made(nodes, stored=(), dims=(1, 4, 8, 8), opset=7, kind=F, out=F):
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", dims, kind)],
        [info("y", None, out)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in dict(stored).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 3 if opset < 9 else 6
    if model.ir_version == 3:
        for tensor in graph.initializer:
            model.graph.input.append(info(tensor.name, list(tensor.dims), tensor.data_type))
    return model


def node(op, inputs=("x",), outputs=("y",), **options):
    return helper.make_node(op, list(inputs), list(outputs), name=op.lower(), **options)


def numbers(*shape):
    return RNG.normal(size=shape).astype(np.float32)


NORM = {"s": numbers(4), "t": numbers(4), "m": numbers(4), "v": np.abs(numbers(4)) + 0.1}
PLACES = {k: np.abs(numbers(4, 8, 8)) + 0.1 for k in "stmv"}
SCALES = {"f": np.float32([1, 1, 2, 2])}
#: Name -> (nodes, stored tensors, operator set).
OLD = {
    "norm": ([node("BatchNormalization", "xstmv", spatial=1)], NORM, 7),
    "norm of places": ([node("BatchNormalization", "xstmv", spatial=0)], PLACES, 8),
    "upsample": ([node("Upsample", scales=[1.0, 1.0, 2.0, 2.0])], {}, 7),
    "upsample linear": ([node("Upsample", scales=[1.0, 1.0, 2.0, 2.0], mode="linear")], {}, 8),
    "upsample by input": ([node("Upsample", "xf", mode="linear")], SCALES, 9),
    "resize": ([node("Resize", "xf", mode="linear")], SCALES, 10),
    "dropout": ([node("Dropout", ratio=0.3)], {}, 7),
    "dropout with mask": ([node("Dropout", outputs=("y", "mask"))], {}, 10),
    "clip": ([node("Clip", min=0.0, max=0.5)], {}, 10),
    "pad": ([node("Pad", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5)], {}, 10),
    "slice": ([node("Slice", starts=[1], ends=[3], axes=[2])], {}, 9),
    "softmax": ([node("Softmax")], {}, 9),
    "sum of axes": ([node("ReduceSum", axes=[2, 3])], {}, 11),
    "best": ([node("TopK", outputs=("y", "i"), k=2, axis=1)], {}, 9),
    "lstm": (
        [node("Squeeze", outputs=("q",), axes=[0]), node("LSTM", "qwr", hidden_size=4)],
        {"w": numbers(1, 16, 8), "r": numbers(1, 16, 4)},
        7,
    ),
}


@pytest.mark.parametrize("name", sorted(OLD))
def test_old_operators_are_raised_and_compute_the_same(name, tmp_path):
    nodes, stored, opset = OLD[name]
    model = made(nodes, stored, opset=opset)
    onnx.save(model, tmp_path / "old.onnx")
    source = Source.open(tmp_path / "old.onnx")
    assert [s.name for s in source.inputs] == ["x"]
    result = UpgradeOpset().run(source.model, PassContext())
    assert result.changed
    assert result.model.opset_import[0].version == 17
    assert [i.name for i in result.model.graph.input] == ["x"]
    feed = {"x": numbers(1, 4, 8, 8)}
    want, got = run_model(model, feed)["y"], run_model(result.model, feed)["y"]
    assert np.abs(want - got).max() < 1e-5


def test_what_cannot_be_raised_stays_and_the_note_names_the_node():
    # Hardmax changed its meaning, and the converter translates it as if it had not.
    model = made([node("Hardmax", axis=1)], opset=9)
    result = UpgradeOpset().run(model, PassContext())
    assert not result.changed
    assert "the operator set stays 9" in result.notes[-1]
    # With five outputs it normalises by the batch itself: that has another name now.
    model = made([node("BatchNormalization", "xstmv", ("y", *"abcd"))], NORM, opset=9)
    assert not UpgradeOpset().run(model, PassContext()).changed
    # Statistics that are fed cannot be folded, and the converter knows no such operator.
    places = made([node("BatchNormalization", "xstmv", spatial=0)], PLACES, opset=7)
    del places.graph.initializer[:]
    result = UpgradeOpset().run(places, PassContext())
    assert not result.changed
    assert "node 'batchnormalization' (BatchNormalization)" in result.notes[-1]


def test_an_old_model_is_converted_all_the_same(tmp_path, own_profile):
    """One recipe cannot take the old operator set and says so; the others are not concerned."""
    model = made(
        [node("Hardmax", outputs=("h",), axis=1), node("Flatten", "h", ("f",)),
         node("Gemm", ("f", "w", "b"), ("y",))],
        {"w": numbers(256, 3), "b": numbers(3)}, opset=9,
    )  # fmt: skip
    onnx.save(model, tmp_path / "old.onnx")
    one = converted(tmp_path, own_profile, x_test=numbers(40, 4, 8, 8))
    reasons = {c.id: c.reason for c in one.candidates}
    assert "operator set 9" in reasons["onnxruntime.int8-static"]
    assert one.winner.verdict == Standing.PASSED


def converted(folder, own_profile, **arrays):
    np.savez(folder / "data.npz", **arrays)
    (path,) = folder.glob("*.onnx")
    (one,) = edgeml.convert(
        path,
        own_profile("forms", runtimes="'onnxruntime'"),
        data=folder / "data.npz",
        effort="quick",
        out=folder / "out.edgeml",
    ).results
    return one


# --- numbers of other kinds -----------------------------------------------------------------------


def half(model):
    """Return a model in float16, its inputs and outputs too."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def test_half_precision_goes_through(tmp_path, own_profile):
    onnx.save(half(mlp(8, 16, 3)), tmp_path / "half.onnx")
    x = numbers(120, 8)
    one = converted(tmp_path, own_profile, x_test=x)
    assert one.winner.verdict in (Standing.PASSED, Standing.UNDECIDED)
    manifest = Bundle.open(tmp_path / "out.edgeml").manifest
    assert manifest.inputs[0].dtype == "float16"


def test_how_a_model_is_quantised_already_is_told(tmp_path):
    x = numbers(120, 16)
    model = load("passes", "quantize_dynamic")().run(mlp(16, 32, 3), PassContext({"x": x})).model
    onnx.save(model, tmp_path / "int8.onnx")
    assert Source.open(tmp_path / "int8.onnx").quantised == "dynamic"
    onnx.save(mlp(), tmp_path / "float.onnx")
    assert Source.open(tmp_path / "float.onnx").quantised == ""


def test_what_is_quantised_already_is_left_alone(tmp_path, own_profile):
    x = numbers(120, 16)
    model = load("passes", "quantize_static")().run(mlp(16, 32, 3), PassContext({"x": x})).model
    onnx.save(model, tmp_path / "int8.onnx")
    assert Source.open(tmp_path / "int8.onnx").quantised == "QDQ"
    one = converted(tmp_path, own_profile, x_test=x)
    assert {c.recipe.split("-")[0] for c in one.candidates} <= {"fp32", "optimised", "ort"}
    assert any("quantised already" in warning for warning in one.warnings)


# --- operators of other kinds ---------------------------------------------------------------------


def trees():
    """Two small trees of ai.onnx.ml: which of two features is large decides the class."""
    attributes = {
        "nodes_treeids": [0, 0, 0, 1, 1, 1],
        "nodes_nodeids": [0, 1, 2, 0, 1, 2],
        "nodes_featureids": [0, 0, 0, 1, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"] * 2,
        "nodes_values": [0.5, 0.0, 0.0, 0.3, 0.0, 0.0],
        "nodes_truenodeids": [1, 0, 0, 1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0, 2, 0, 0],
        "class_treeids": [0, 0, 1, 1],
        "class_nodeids": [1, 2, 1, 2],
        "class_ids": [0, 1, 0, 1],
        "class_weights": [1.0, 1.0, 0.5, 0.7],
        "classlabels_int64s": [0, 1],
    }
    tree = helper.make_node(
        "TreeEnsembleClassifier", ["x"], ["label", "y"], name="trees", domain="ai.onnx.ml",
        **attributes,
    )  # fmt: skip
    graph = helper.make_graph(
        [tree], "trees", [info("x", ["n", 2])],
        [info("label", ["n"], TensorProto.INT64), info("y", ["n", 2])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return model


def recurrent():
    graph = helper.make_graph(
        [node("LSTM", ("x", "w", "r"), ("all", "y"), hidden_size=4)],
        "lstm",
        [info("x", [5, "n", 3])],
        [info("y", [1, "n", 4])],
        [numpy_helper.from_array(numbers(1, 16, 3), "w"),
         numpy_helper.from_array(numbers(1, 16, 4), "r")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def loop():
    """Three times: multiply by a stored matrix."""
    body = helper.make_graph(
        [node("MatMul", ("state", "w"), ("next",)), node("Identity", ("go",), ("on",))],
        "body",
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL),
         info("state", ["n", 4])],
        [info("on", [], TensorProto.BOOL), info("next", ["n", 4])],
    )  # fmt: skip
    graph = helper.make_graph(
        [node("Loop", ("times", "yes", "x"), ("y",), body=body)],
        "loop",
        [info("x", ["n", 4])],
        [info("y", ["n", 4])],
        [numpy_helper.from_array(np.int64(3), "times"), numpy_helper.from_array(np.bool_(1), "yes"),
         numpy_helper.from_array(numbers(4, 4), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def stateful():
    """The state goes in and comes out: y = tanh(x W + h), h' = y."""
    graph = helper.make_graph(
        [node("MatMul", ("x", "w"), ("p",)), node("Add", ("p", "h"), ("a",)),
         node("Tanh", ("a",), ("y",)), node("Identity", ("y",), ("h_next",))],
        "stateful",
        [info("x", ["n", 4]), info("h", ["n", 6])],
        [info("y", ["n", 6]), info("h_next", ["n", 6])],
        [numpy_helper.from_array(numbers(4, 6), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def contributed():
    """An operator of onnxruntime's own domain."""
    graph = helper.make_graph(
        [helper.make_node("FusedGemm", ["x", "w", "b"], ["y"], name="fused",
                          domain="com.microsoft", activation="Relu")],
        "contributed",
        [info("x", ["n", 4])],
        [info("y", ["n", 3])],
        [numpy_helper.from_array(numbers(4, 3), "w"), numpy_helper.from_array(numbers(3), "b")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return model


KINDS = {
    "trees": (trees, {"x": (120, 2)}),
    "recurrent": (recurrent, {"x": (200, 1, 3)}),
    "loop": (loop, {"x": (120, 4)}),
    "stateful": (stateful, {"x": (120, 4), "h": (120, 6)}),
    "contributed": (contributed, {"x": (120, 4)}),
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kind_of_model_goes_through_the_passes(name):
    """Each pass keeps what it computes, quantises it sensibly, or gives a reason."""
    build, shapes = KINDS[name]
    data = {key: numbers(*shape) for key, shape in shapes.items()}
    feed = {key: array[:5] for key, array in data.items()}
    model, context = build(), PassContext(data)
    want = run_model(model, feed)
    for step in ("upgrade_opset", "simplify"):
        model = load("passes", step)().run(model, context).model
    got = run_model(model, feed)
    for key, values in want.items():
        assert np.abs(got[key] - values).max() <= 1e-5 * max(1, np.abs(values).max())
    for step in ("quantize_static", "quantize_dynamic", "quantize_portable"):
        try:
            made = load("passes", step)().run(model, context).model
        except ModelError as error:
            assert "\n" not in error.message
            continue
        assert list(run_model(made, feed)) == list(want)


@pytest.mark.parametrize("name", ["loop", "trees"])
def test_every_kind_of_model_ends_in_a_bundle(name, tmp_path, own_profile):
    build, shapes = KINDS[name]
    onnx.save(build(), tmp_path / f"{name}.onnx")
    data = {f"test/{key}": numbers(*shape) for key, shape in shapes.items()}
    one = converted(tmp_path, own_profile, **data)
    assert one.winner.verdict in (Standing.PASSED, Standing.UNDECIDED)
    for c in one.candidates:
        assert c.verdict == Standing.PASSED or c.reason, c.id
        assert "Traceback" not in c.reason
    Bundle.open(tmp_path / "out.edgeml").check()


def test_a_custom_operator_is_named_with_its_domain(tmp_path):
    model = contributed()
    model.graph.node[0].domain = model.opset_import[1].domain = "acme.vision"
    onnx.save(model, tmp_path / "custom.onnx")
    with pytest.raises(ModelError, match=r"'FusedGemm'.*custom domain 'acme\.vision'"):
        Source.open(tmp_path / "custom.onnx")


# --- shapes that are stated and wrong -------------------------------------------------------------


def test_a_wrong_shape_of_an_output_is_replaced(tmp_path):
    model = cnn()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(model, tmp_path / "wrong.onnx")
    source = Source.open(tmp_path / "wrong.onnx")
    assert source.outputs[0].shape == (-1, 10)
    assert any("'logits' says [?, 7], is [?, 10]" in warning for warning in source.warnings)


# --- stored tensors are watched -------------------------------------------------------------------


def test_a_pass_that_changes_what_it_promised_to_leave_is_found():
    model = mlp()
    other = mlp()
    tensor = other.graph.initializer[0]
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    with pytest.raises(ModelError, match="changed the stored tensor 'w1'"):
        check_promises(UpgradeOpset(), model, PassResult(other, True))
    check_promises(UpgradeOpset(), model, PassResult(mlp(), True))


def test_fixed_shapes_are_in_the_lineage(tmp_path):
    onnx.save(mlp(), tmp_path / "m.onnx")
    source = Source.open(tmp_path / "m.onnx", {"x": (2, -1)})
    (step,) = source.steps
    assert (step.name, step.options) == ("fix_shapes", {"shapes": {"x": [2, -1]}})
    assert step.after == model_digest(source.model) != step.before
