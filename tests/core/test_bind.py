"""A variant's file behind the public contract."""

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeml.errors import ModelError, RequestError
from edgeml.manifest import Binding, Evidence, EvidenceState, Tolerance, Variant
from edgeml.runtime.bind import binding_identity, open_variant
from edgeml.tensors import TensorSpec
from tests.support.tflite import relu_int8_tflite


def elementwise(path, shape, dtype=TensorProto.FLOAT, op="Neg"):
    """x -> op(x), any shape and type."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)


def variant(inputs, outputs, **changes):
    made = Variant(
        id="cpu.onnxruntime.test",
        profile="cpu",
        runtime="onnxruntime",
        precision="fp32",
        recipe="test",
        files=(),
        entry="model.onnx",
        inputs=inputs,
        outputs=outputs,
        evidence=Evidence(EvidenceState.CHECKED, "test"),
        tolerance=Tolerance(0.0, 0.0),
    )
    return msgspec.structs.replace(made, **changes)


def spec(name, shape, dtype="float32"):
    return TensorSpec(name, dtype, shape)


def ramp(*shape, dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def test_the_identity(tmp_path):
    elementwise(tmp_path / "model.onnx", ["n", 3])
    x, y = spec("x", (-1, 3)), spec("y", (-1, 3))
    assert binding_identity(x) == Binding("x", "x", "float32", (-1, 3))
    program = open_variant(
        tmp_path, variant((binding_identity(x),), (binding_identity(y),)), (x,), (y,)
    )
    assert (program.inputs, program.outputs) == ((x,), (y,))
    assert (program.runtime, program.placement) == ("onnxruntime", "CPUExecutionProvider")
    session = program.session()
    np.testing.assert_array_equal(session.run({"x": ramp(2, 3)})["y"], -ramp(2, 3))
    with pytest.raises(RequestError, match="shape"):
        session.run({"x": ramp(2, 4)})
    session.close()
    program.close()


def test_other_names_order_of_axes_and_types(tmp_path):
    elementwise(tmp_path / "model.onnx", ["n", 4, 5, 2], TensorProto.FLOAT16)
    image, out = spec("image", (-1, 2, 4, 5)), spec("out", (-1, 2, 4, 5))
    chosen = variant(
        (Binding("image", "x", "float16", (-1, 4, 5, 2), perm=(0, 2, 3, 1)),),
        (Binding("out", "y", "float16", (-1, 4, 5, 2), perm=(0, 2, 3, 1)),),
    )
    session = open_variant(tmp_path, chosen, (image,), (out,)).session()
    result = session.run({"image": ramp(3, 2, 4, 5)})["out"]
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, -ramp(3, 2, 4, 5))


@pytest.mark.parametrize("batch", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("fixed", [1, 3])
def test_a_file_with_one_fixed_batch_takes_any(tmp_path, batch, fixed):
    elementwise(tmp_path / "model.onnx", [fixed, 2])
    x, y = spec("x", (-1, 2)), spec("y", (-1, 2))
    chosen = variant(
        (Binding("x", "x", "float32", (fixed, 2)),), (Binding("y", "y", "float32", (fixed, 2)),)
    )
    session = open_variant(tmp_path, chosen, (x,), (y,)).session()
    np.testing.assert_array_equal(session.run({"x": ramp(batch, 2)})["y"], -ramp(batch, 2))


def test_the_largest_batch_is_kept(tmp_path):
    """The sum over the batch shows how many samples were in one run."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x"], ["s"], keepdims=1),
            helper.make_node("Mul", ["x", "zero"], ["z"]),
            helper.make_node("Add", ["z", "s"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, tmp_path / "model.onnx")
    x, y = spec("x", (-1, 1)), spec("y", (-1, 1))
    bound = variant((binding_identity(x),), (binding_identity(y),), max_batch=2)
    session = open_variant(tmp_path, bound, (x,), (y,)).session()
    result = session.run({"x": np.ones((5, 1), np.float32)})["y"]
    assert result.ravel().tolist() == [2, 2, 2, 2, 1]


def test_batches_must_agree_and_not_be_empty(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 2]) for n in "ab"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, tmp_path / "model.onnx")
    a, b, y = (spec(n, (-1, 2)) for n in "aby")
    bound = variant(tuple(map(binding_identity, (a, b))), (binding_identity(y),))
    session = open_variant(tmp_path, bound, (a, b), (y,)).session()
    with pytest.raises(RequestError, match="samples"):
        session.run({"a": ramp(2, 2), "b": ramp(3, 2)})
    with pytest.raises(RequestError, match="samples"):
        session.run({"a": ramp(0, 2), "b": ramp(0, 2)})


def test_stored_integers_with_channels_last_and_one_batch(tmp_path):
    (tmp_path / "model.tflite").write_bytes(relu_int8_tflite(scale=0.1, zero_point=3))
    image, out = spec("image", (-1, 3, 2, 2)), spec("out", (-1, 3, 2, 2))
    stored = {"dtype": "int8", "shape": (1, 2, 2, 3), "perm": (0, 2, 3, 1)}
    chosen = variant(
        (Binding("image", "x_int8", scale=0.1, zero_point=3, **stored),),
        (Binding("out", "y_int8", scale=0.1, zero_point=3, **stored),),
        runtime="litert",
        entry="model.tflite",
    )
    session = open_variant(tmp_path, chosen, (image,), (out,)).session()
    x = np.random.default_rng(0).uniform(-10, 10, (5, 3, 2, 2)).astype(np.float32)
    x = np.clip(x, -13.1, 12.4)
    np.testing.assert_allclose(session.run({"image": x})["out"], np.maximum(x, 0), atol=0.0501)
    top = session.run({"image": np.full((1, 3, 2, 2), np.inf, np.float32)})["out"]
    np.testing.assert_allclose(top, 12.4, rtol=1e-5)  # what does not fit is the nearest that does
    with pytest.raises(RequestError, match="NaN"):
        session.run({"image": np.full((1, 3, 2, 2), np.nan, np.float32)})


def test_integers_that_do_not_fit(tmp_path):
    elementwise(tmp_path / "model.onnx", ["n"], TensorProto.INT32)
    x, y = spec("x", (-1,), "int64"), spec("y", (-1,), "int64")
    chosen = variant((Binding("x", "x", "int32", (-1,)),), (Binding("y", "y", "int32", (-1,)),))
    session = open_variant(tmp_path, chosen, (x,), (y,)).session()
    result = session.run({"x": np.array([5, -6])})["y"]
    assert (result.dtype, result.tolist()) == (np.int64, [-5, 6])
    with pytest.raises(RequestError, match="do not fit"):
        session.run({"x": np.array([2**31])})


def test_an_output_without_a_batch_cannot_be_put_together(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, tmp_path / "model.onnx")
    x, y = spec("x", (-1, 2)), spec("y", ())
    bound = variant((Binding("x", "x", "float32", (2, 2)),), (binding_identity(y),))
    session = open_variant(tmp_path, bound, (x,), (y,)).session()
    assert session.run({"x": np.ones((2, 2), np.float32)})["y"] == 4
    with pytest.raises(RequestError, match="no batch axis"):
        session.run({"x": np.ones((3, 2), np.float32)})


X = Binding("x", "x", "float32", (-1, 2))
Y = Binding("y", "y", "float32", (-1, 2))


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ((), (Y,), "does not bind exactly"),
        ((X,), (Y, Y, Binding("z", "y", "float32", (-1, 2))), "does not bind exactly"),
        ((msgspec.structs.replace(X, tensor="w"),), (Y,), "does not have"),
        ((msgspec.structs.replace(X, dtype="int8"),), (Y,), "is float32 in the file"),
        ((msgspec.structs.replace(X, scale=0.1),), (Y,), "has a scale"),
        ((X,), (msgspec.structs.replace(Y, perm=(0, 0)),), "permuted"),
        ((msgspec.structs.replace(X, perm=(1, 0, 2)),), (Y,), "permuted"),
    ],
)
def test_bindings_that_do_not_fit_the_file(tmp_path, inputs, outputs, words):
    elementwise(tmp_path / "model.onnx", ["n", 2])
    public = (spec("x", (-1, 2)),), (spec("y", (-1, 2)),)
    with pytest.raises(ModelError, match=words):
        open_variant(tmp_path, variant(inputs, outputs), *public)


def test_an_entry_that_leaves_the_folder(tmp_path):
    elementwise(tmp_path / "model.onnx", ["n", 2])
    (tmp_path / "inside").mkdir()
    public = (spec("x", (-1, 2)),), (spec("y", (-1, 2)),)
    with pytest.raises(ModelError, match="leaves its folder"):
        open_variant(tmp_path / "inside", variant((X,), (Y,), entry="../model.onnx"), *public)
