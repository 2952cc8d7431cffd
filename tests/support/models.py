"""Small models for tests, built on the spot."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def mlp(features=4, hidden=8, classes=3, seed=0, opset=17):
    """A two-layer perceptron with a variable batch: x [-1, features] -> y [-1, classes]."""
    rng = np.random.default_rng(seed)

    def weight(name, *shape):
        values = rng.normal(size=shape) / np.sqrt(shape[0])
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="fc1"),
        helper.make_node("Relu", ["h"], ["r"], name="relu1"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], name="fc2"),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", classes])],
        [
            weight("w1", features, hidden),
            weight("b1", hidden),
            weight("w2", hidden, classes),
            weight("b2", classes),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model


def cnn(channels=8, classes=10, size=8, seed=0, opset=17):
    """A small CNN: image [-1, 1, size, size] -> logits [-1, classes]."""
    rng = np.random.default_rng(seed)

    def weight(name, *shape):
        fan_in = int(np.prod(shape[1:])) or 1
        values = rng.normal(size=shape) / np.sqrt(fan_in)
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node(
            "Conv",
            ["image", "w1", "b1"],
            ["c1"],
            name="conv1",
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
        ),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node(
            "Conv",
            ["r1", "w2", "b2"],
            ["c2"],
            name="conv2",
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
            strides=[2, 2],
        ),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [
            weight("w1", channels, 1, 3, 3),
            weight("b1", channels),
            weight("w2", 2 * channels, channels, 3, 3),
            weight("b2", 2 * channels),
            weight("w3", classes, 2 * channels),
            weight("b3", classes),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model


def block(hidden=16, rows=4, classes=3, seed=0, opset=17, outlier=20.0):
    """A block of a transformer without attention: tokens [-1, rows, hidden] -> y.

    Norm, two products with Relu between, a residual connection from behind the norm, a second
    norm, a product. Channel 0 of the first norm is ``outlier`` times as large as the others.
    """
    rng = np.random.default_rng(seed)

    def weight(name, *shape):
        values = rng.normal(size=shape) / np.sqrt(shape[0])
        return numpy_helper.from_array(values.astype(np.float32), name)

    gamma = np.ones(hidden, np.float32)
    gamma[0] = outlier
    nodes = [
        helper.make_node("LayerNormalization", ["tokens", "g1", "e1"], ["n1"], name="norm1"),
        helper.make_node("MatMul", ["n1", "w1"], ["m1"], name="up"),
        helper.make_node("Add", ["m1", "b1"], ["a1"], name="up_bias"),
        helper.make_node("Relu", ["a1"], ["r1"], name="relu"),
        helper.make_node("MatMul", ["r1", "w2"], ["m2"], name="down"),
        helper.make_node("Add", ["m2", "b2"], ["a2"], name="down_bias"),
        helper.make_node("Add", ["a2", "n1"], ["s1"], name="residual"),
        helper.make_node("LayerNormalization", ["s1", "g2", "e2"], ["n2"], name="norm2"),
        helper.make_node("MatMul", ["n2", "w3"], ["y"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["batch", rows, hidden])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", rows, classes])],
        [
            numpy_helper.from_array(gamma, "g1"),
            weight("e1", hidden),
            weight("w1", hidden, 4 * hidden),
            weight("b1", 4 * hidden),
            weight("w2", 4 * hidden, hidden),
            weight("b2", hidden),
            weight("g2", hidden),
            weight("e2", hidden),
            weight("w3", hidden, classes),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model
