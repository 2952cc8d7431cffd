"""The writer: each operator, from a random graph, as onnxruntime computes it, to one step."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, helper, numpy_helper

from edgeml.errors import ModelError
from edgeml_converters.passes.base import PassContext
from edgeml_converters.passes.quantize_portable import QuantizePortable
from edgeml_converters.tflite import write

RNG = np.random.default_rng(7)


def graph(nodes, shape, out_shape, **constants):
    """A model x [shape] -> y [out_shape] with float32 or int64 constants."""
    values = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)],
            values,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    model.ir_version = 9
    onnx.checker.check_model(model, full_check=True)
    return model


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, name=f"{op}_{outputs[0]}", **attributes)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


IMAGE = [1, 4, 9, 7]


def conv(x=IMAGE, out=6, kernel=3, size=(9, 7), group=1, relu=False, **attributes):
    nodes = [node("Conv", ["x", "w", "b"], ["c" if relu else "y"], group=group, **attributes)]
    if relu:
        nodes.append(node("Relu", ["c"], ["y"]))
    weights = normal(out, x[1] // group, kernel, kernel)
    return graph(nodes, x, [1, out, *size], w=weights, b=normal(out))


def one(op, *constants, shape=IMAGE, out=None, **attributes):
    names = [f"k{i}" for i in range(len(constants))]
    made = dict(zip(names, constants, strict=True))
    return graph([node(op, ["x", *names], ["y"], **attributes)], shape, out or shape, **made)


def flattened():
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Flatten", ["c"], ["f"]),
        node("Gemm", ["f", "m", "n"], ["y"], transB=1),
    ]
    return graph(
        nodes, IMAGE, [1, 5], w=normal(3, 4, 3, 3), b=normal(3), m=normal(5, 3 * 63), n=normal(5)
    )


def flattened_to_output():
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Flatten", ["c"], ["y"]),
    ]
    return graph(nodes, IMAGE, [1, 3 * 63], w=normal(3, 4, 3, 3), b=normal(3))


def residual():
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Add", ["c", "x"], ["s"]),
        node("Clip", ["s", "lo", "hi"], ["y"]),
    ]
    low, high = np.array(0, np.float32), np.array(6, np.float32)
    return graph(nodes, IMAGE, IMAGE, w=normal(4, 4, 3, 3), b=normal(4), lo=low, hi=high)


def joined():
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["x"], ["r"]),
        node("Concat", ["c", "r"], ["y"], axis=1),
    ]
    return graph(nodes, IMAGE, [1, 7, 9, 7], w=normal(3, 4, 3, 3), b=normal(3))


def joined_clamps(second, *bounds):
    """Clamps whose outputs share a scale with values that reach further, on both sides."""
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("Add", ["x", "x"], ["a"]),
        node(second, ["a", *(f"k{i}" for i in range(len(bounds)))], ["d"]),
        node("Concat", ["r", "d", "x"], ["y"], axis=1),
    ]
    made = {f"k{i}": np.array(v, np.float32) for i, v in enumerate(bounds)}
    weights = {"w": 3 * normal(3, 4, 3, 3), "b": normal(3)}
    return graph(nodes, IMAGE, [1, 11, 9, 7], **weights, **made)


def shuffled():
    """Grouped convolution, its channels dealt out, and another one (as ShuffleNet has them)."""
    shape = [1, 6, 5, 4]
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], group=3),
        node("Reshape", ["c", "split"], ["s"]),
        node("Transpose", ["s"], ["t"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["t", "join"], ["j"]),
        node("Conv", ["j", "w", "b"], ["y"], group=3),
    ]
    return graph(
        nodes, shape, shape, w=normal(6, 2, 1, 1), b=normal(6),
        split=ints(1, 3, 2, 5, 4), join=ints(1, -1, 5, 4),
    )  # fmt: skip


def channels_last_in():
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w", "b"], ["c"]),
        node("Transpose", ["c"], ["y"], perm=[0, 2, 3, 1]),
    ]
    return graph(nodes, [1, 9, 7, 4], [1, 7, 5, 6], w=normal(6, 4, 3, 3), b=normal(6))


CASES = {
    "conv": lambda: conv(pads=[1, 1, 1, 1]),
    "conv valid relu": lambda: conv(size=(7, 5), relu=True),
    "conv stride, symmetric pads": lambda: conv(
        x=[1, 4, 8, 8], size=(4, 4), strides=[2, 2], pads=[1, 1, 1, 1]
    ),
    "conv same_lower": lambda: conv(
        x=[1, 4, 8, 8], size=(4, 4), strides=[2, 2], auto_pad="SAME_LOWER"
    ),
    "conv dilated": lambda: conv(size=(5, 3), dilations=[2, 2]),
    "depthwise": lambda: conv(out=4, group=4, pads=[1, 1, 1, 1]),
    "depthwise with multiplier": lambda: conv(out=8, group=4, pads=[1, 1, 1, 1]),
    "grouped": lambda: conv(out=6, group=2, pads=[1, 1, 1, 1]),
    "gemm": lambda: one("Gemm", normal(8, 5), normal(5), shape=[1, 8], out=[1, 5]),
    "matmul": lambda: one("MatMul", normal(8, 5), shape=[1, 8], out=[1, 5]),
    "add constant": lambda: one("Add", normal(4, 1, 1)),
    "sub constant": lambda: one("Sub", normal(1, 4, 1, 1)),
    "mul constant": lambda: one("Mul", normal(4, 1, 1)),
    "div constant": lambda: one("Div", np.full((1, 4, 1, 1), 3, np.float32)),
    "maxpool": lambda: one("MaxPool", out=[1, 4, 4, 3], kernel_shape=[2, 2], strides=[2, 2]),
    "maxpool padded": lambda: one(
        "MaxPool", out=[1, 4, 5, 4], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    ),
    "avgpool": lambda: one("AveragePool", out=[1, 4, 4, 3], kernel_shape=[2, 2], strides=[2, 2]),
    "avgpool padded": lambda: one(
        "AveragePool", out=IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "avgpool same": lambda: one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "avgpool same, stride, odd": lambda: one(
        "AveragePool", out=[1, 4, 5, 4], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    ),
    "avgpool symmetric, stride, even": lambda: one(
        "AveragePool",
        shape=[1, 4, 8, 10],
        out=[1, 4, 4, 4],
        kernel_shape=[3, 5],
        strides=[2, 3],
        pads=[1, 2, 1, 2],
    ),
    "avgpool ceil": lambda: one(
        "AveragePool",
        shape=[1, 4, 8, 8],
        out=[1, 4, 4, 4],
        kernel_shape=[3, 3],
        strides=[2, 2],
        ceil_mode=1,
    ),
    "maxpool ceil": lambda: one(
        "MaxPool",
        shape=[1, 4, 8, 8],
        out=[1, 4, 4, 4],
        kernel_shape=[3, 3],
        strides=[2, 2],
        ceil_mode=1,
    ),
    "global average": lambda: one("GlobalAveragePool", out=[1, 4, 1, 1]),
    "mean": lambda: one("ReduceMean", out=[1, 4], axes=[2, 3], keepdims=0),
    "mean over channels": lambda: one("ReduceMean", out=[1, 9, 7], axes=[1], keepdims=0),
    "reshape": lambda: one("Reshape", ints(1, 2, 18, 7), out=[1, 2, 18, 7]),
    "squeeze": lambda: one("Squeeze", ints(0), out=[4, 9, 7]),
    "reshape to rows of a sequence": lambda: one("Reshape", ints(1, 4, 63), out=[1, 4, 63]),
    "reshape with ones": lambda: one("Reshape", ints(4, 1, 9, 1, 7), out=[4, 1, 9, 1, 7]),
    "shuffled channels": shuffled,
    "transpose": lambda: one("Transpose", out=[1, 7, 9, 4], perm=[0, 3, 2, 1]),
    "pad": lambda: one("Pad", ints(0, 0, 1, 2, 0, 0, 0, 1), out=[1, 4, 10, 10]),
    "relu": lambda: one("Relu"),
    "softmax": lambda: one("Softmax", shape=[1, 8]),
    "softmax over channels": lambda: one("Softmax", axis=1),
    "sigmoid": lambda: one("Sigmoid"),
    "tanh": lambda: one("Tanh"),
    "flattened image into dense": flattened,
    "flattened image as output": flattened_to_output,
    "residual with relu6": residual,
    "concat": joined,
    "channels last outside": channels_last_in,
    "clamps before a concat": lambda: joined_clamps("Relu"),
    "relu6 before a concat": lambda: joined_clamps("Clip", 0, 6),
    "clip to 1 before a concat": lambda: joined_clamps("Clip", -1, 1),
}


def quantised(model, samples):
    calibration = {"x": np.concatenate(samples)}
    return QuantizePortable().run(model, PassContext(calibration=calibration)).model


def run_onnx(model, x):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def run_tflite(file, x):
    """Run a file by its bindings, and return its output in ONNX's order of axes."""
    interpreter = Interpreter(model_content=file.data, num_threads=1)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner("serving_default")
    (given,), (wanted,) = file.inputs, file.outputs
    moved = x.transpose(given.perm) if given.perm else x
    stored = np.clip(np.rint(moved / np.float32(given.scale)) + given.zero_point, -128, 127)
    out = runner(x=stored.astype(np.int8))["y"]
    assert out.dtype == np.int8
    real = (out.astype(np.float32) - wanted.zero_point) * np.float32(wanted.scale)
    return real.transpose(np.argsort(wanted.perm)) if wanted.perm else real


def steps_apart(model, file, samples):
    scale = file.outputs[0].scale
    worst = [np.abs(run_onnx(model, x) - run_tflite(file, x)).max() / scale for x in samples]
    return round(float(max(worst)))


@pytest.mark.parametrize("name", CASES)
def test_operator_is_at_most_one_step_from_onnxruntime(name):
    model = CASES[name]()
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    samples = [normal(*shape) * 2 for _ in range(8)]
    stored = quantised(model, samples)
    file = write(stored)
    got = run_tflite(file, samples[0])
    assert list(got.shape) == [
        d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim
    ]
    assert steps_apart(stored, file, samples) <= 1


@pytest.mark.parametrize("name", ["conv", "gemm", "depthwise"])
def test_a_changed_scale_is_noticed(name):
    """The comparison above can fail: a scale that is 10 % off is more than one step away."""
    model = CASES[name]()
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    samples = [normal(*shape) * 2 for _ in range(8)]
    stored = quantised(model, samples)
    file = write(stored)
    for constant in stored.graph.initializer:
        if constant.name.endswith("_weights_scale"):
            changed = numpy_helper.to_array(constant) * np.float32(1.1)
            constant.CopyFrom(numpy_helper.from_array(changed, constant.name))
    assert steps_apart(stored, file, samples) > 1


# Image 9 x 8 or 8 x 8, stride 2 or 4: folded into channels, with and without rows to fill up.
FOLDED = {
    "valid": {"x": [1, 4, 8, 8], "kernel": 2, "size": (4, 4), "strides": [2, 2]},
    "same": {"x": [1, 3, 8, 8], "kernel": 3, "size": (4, 4), "strides": [2, 2],
             "pads": [0, 0, 1, 1]},
    "kernel 5": {"x": [1, 1, 8, 8], "kernel": 5, "size": (4, 4), "strides": [2, 2],
                 "pads": [1, 1, 2, 2]},
    "kernel 6, pads 2": {"x": [1, 2, 8, 8], "kernel": 6, "size": (4, 4), "strides": [2, 2],
                         "pads": [2, 2, 2, 2]},
    "odd height": {"x": [1, 1, 9, 8], "kernel": 6, "size": (5, 4), "strides": [2, 2],
                   "pads": [2, 2, 3, 2]},
    "odd pads before": {"x": [1, 1, 9, 8], "kernel": 4, "size": (5, 4), "strides": [2, 2],
                        "pads": [1, 1, 2, 1]},
    "stride 4": {"x": [1, 1, 8, 8], "kernel": 4, "size": (2, 2), "strides": [4, 4]},
}  # fmt: skip


def operators(file):
    interpreter = Interpreter(model_content=file.data, num_threads=1)
    return [op["op_name"] for op in interpreter._get_ops_details()]


@pytest.mark.parametrize("name", ["residual with relu6", *FOLDED])
def test_the_form_for_processors_changes_no_value(name):
    """Float at the edges, and strides folded into channels: the same integers inside."""
    model = conv(**FOLDED[name]) if name in FOLDED else CASES[name]()
    x = normal(*[d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim])
    stored = quantised(model, [x])
    file = write(stored, float_io=True)
    assert ("SPACE_TO_DEPTH" in operators(file)) == (name in FOLDED)
    assert "SPACE_TO_DEPTH" not in operators(write(stored))
    (given,), (wanted,) = file.inputs, file.outputs
    assert (given.dtype, given.scale, wanted.dtype) == ("float32", 0.0, "float32")
    interpreter = Interpreter(model_content=file.data, num_threads=1)
    interpreter.allocate_tensors()
    out = interpreter.get_signature_runner("serving_default")(x=x.transpose(given.perm))["y"]
    inside = run_tflite(write(stored), x)
    np.testing.assert_allclose(out.transpose(np.argsort(wanted.perm)), inside, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"x": [1, 4, 8, 7], "kernel": 2, "size": (4, 3), "strides": [2, 2]},  # odd width
        {"x": [1, 8, 8, 8], "kernel": 2, "size": (4, 4), "strides": [2, 2]},  # many channels
        {"x": [1, 1, 8, 8], "size": (3, 6), "strides": [2, 1]},  # two strides
        {"x": [1, 3, 8, 8], "size": (4, 4), "strides": [2, 2], "pads": [1, 1, 1, 1]},  # neither
    ],
)
def test_what_does_not_pay_is_not_folded(options):
    shape = options["x"]
    stored = quantised(conv(**options), [normal(*shape)])
    assert "SPACE_TO_DEPTH" not in operators(write(stored, float_io=True))


def test_shuffled_channels_cost_one_transpose():
    stored = quantised(shuffled(), [normal(1, 6, 5, 4)])
    assert operators(write(stored)).count("TRANSPOSE") == 1


def test_a_clamp_that_tflite_does_not_know_is_refused():
    with pytest.raises(ModelError, match="Add_a.*share a wider scale"):
        write(quantised(joined_clamps("Clip", -2, 3), [normal(*IMAGE)]))


def test_no_activation_function_clamps_more_than_the_model_does():
    """Saturation ends the values at -1 here; RELU6, which fits above, would end them at 0."""
    model = joined_clamps("Clip", -1, 6)
    del model.graph.node[-1].input[2], model.graph.node[-1].input[0]
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    stored = quantised(model, [normal(*IMAGE)])
    for constant in stored.graph.initializer:
        if constant.name in ("d_scale", "y_scale"):
            constant.CopyFrom(numpy_helper.from_array(np.array(0.05, np.float32), constant.name))
        if constant.name in ("d_zero_point", "y_zero_point"):
            constant.CopyFrom(numpy_helper.from_array(np.array(-108, np.int8), constant.name))
    with pytest.raises(ModelError, match="share a wider scale"):
        write(stored)


def test_a_mean_that_no_window_of_tflite_takes_is_refused():
    model = one("AveragePool", out=[1, 4, 9, 7], kernel_shape=[3, 3], pads=[2, 1, 0, 1])
    with pytest.raises(ModelError, match="left out of the mean"):
        write(quantised(model, [normal(*IMAGE)]))


def test_same_model_same_bytes():
    model = CASES["residual with relu6"]()
    samples = [np.random.default_rng(3).normal(size=IMAGE).astype(np.float32)]
    assert write(quantised(model, samples)).data == write(quantised(model, samples)).data


def test_openvino_reads_the_file_too(tmp_path):
    import openvino

    model = CASES["residual with relu6"]()
    samples = [normal(*IMAGE)]
    stored = quantised(model, samples)
    file = write(stored)
    path = tmp_path / "m.tflite"
    path.write_bytes(file.data)
    compiled = openvino.Core().compile_model(path, "CPU")
    assert len(compiled.outputs) == 1


def test_unsupported_operator_names_node_and_reason():
    model = one("Erf")
    with pytest.raises(ModelError, match="Erf.*Erf_y"):
        quantised(model, [normal(*IMAGE)])


def test_no_calibration_is_said():
    with pytest.raises(ModelError, match="calibration"):
        QuantizePortable().run(CASES["conv"](), PassContext())


def test_moving_batch_is_refused():
    model = CASES["relu"]()
    stored = quantised(model, [normal(*IMAGE)])
    for info in [*stored.graph.input, *stored.graph.output]:
        info.type.tensor_type.shape.dim[0].ClearField("dim_value")
        info.type.tensor_type.shape.dim[0].dim_param = "n"
    with pytest.raises(ModelError, match="static shape"):
        write(stored)
