"""Builds small ONNX graphs of convolutions and dense layers, node by node."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """A graph that grows; weights are random, or random with every channel twice."""

    def __init__(self, *shape, name="x", seed=0, twice=False):
        self.nodes, self.stored, self.twice = [], [], twice
        self.rng = np.random.default_rng(seed)
        self.inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])]
        self.last, self.name = name, name

    def store(self, values, dtype=np.float32):
        name = f"w{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def random(self, *shape, scale=None):
        fan = int(np.prod(shape[1:])) or 1
        values = self.rng.normal(size=shape) * (scale or 1.5 / np.sqrt(fan))
        if self.twice and shape[0] % 2 == 0:
            values[shape[0] // 2 :] = values[: shape[0] // 2]
        return values

    def add(self, op, *inputs, outputs=1, **attributes):
        """Add a node that reads the last tensor when no input is named; return its output."""
        names = [f"{op.lower()}{len(self.nodes)}_{i}" for i in range(outputs)]
        given = list(inputs) or [self.last]
        self.nodes.append(helper.make_node(op, given, names, name=f"n{len(self.nodes)}_{op}",
                                           **attributes))  # fmt: skip
        self.last = names[0]
        return names[0] if outputs == 1 else names

    def conv(self, out, inp, kernel=3, x=None, group=1, **more):
        weight = self.store(self.random(out, inp // group, kernel, kernel))
        bias = self.store(self.random(out, scale=0.1))
        pads = [kernel // 2] * 4
        return self.add("Conv", x or self.last, weight, bias, kernel_shape=[kernel] * 2,
                        pads=pads, group=group, **more)  # fmt: skip

    def norm(self, channels):
        values = [self.random(channels), self.random(channels), self.random(channels),
                  np.abs(self.random(channels)) + 0.5]  # fmt: skip
        return self.add("BatchNormalization", self.last, *[self.store(v) for v in values])

    def dense(self, inp, out, x=None):
        weight = self.store(self.random(out, inp))
        return self.add("Gemm", x or self.last, weight, self.store(self.random(out, scale=0.1)),
                        transB=1)  # fmt: skip

    def matmul(self, inp, out, x=None):
        """MatMul and the Add of a bias."""
        values = self.random(out, inp).T
        y = self.add("MatMul", x or self.last, self.store(values))
        return self.add("Add", y, self.store(self.random(out, scale=0.1)))

    def model(self, *outputs, opset=17):
        names = outputs or (self.last,)
        graph = helper.make_graph(
            self.nodes, "g", self.inputs,
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names], self.stored,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 9
        shaped = onnx.shape_inference.infer_shapes(model)
        for mine, found in zip(model.graph.output, shaped.graph.output, strict=True):
            mine.CopyFrom(found)
        onnx.checker.check_model(model, full_check=True)
        return model

    def data(self, rows=64, seed=1):
        dims = self.inputs[0].type.tensor_type.shape.dim[1:]
        shape = (rows, *[d.dim_value for d in dims])
        return {self.name: np.random.default_rng(seed).normal(size=shape).astype(np.float32)}


def attention(graph, width, heads, tokens):
    """One block of a transformer: attention and a feed-forward net, both added to their input."""
    start, size = graph.last, width // heads

    def head(order):
        y = graph.matmul(width, width, x=start)
        shape = graph.store([0, 0, heads, size], np.int64)
        return graph.add("Transpose", graph.add("Reshape", y, shape), perm=order)

    query, key, value = head([0, 2, 1, 3]), head([0, 2, 3, 1]), head([0, 2, 1, 3])
    scores = graph.add("Mul", graph.add("MatMul", query, key), graph.store(size**-0.5))
    mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
    flat = graph.add("Transpose", mixed, perm=[0, 2, 1, 3])
    flat = graph.add("Reshape", flat, graph.store([0, tokens, -1], np.int64))
    first = graph.add("Add", start, graph.matmul(width, width, x=flat))
    ones = [graph.store(np.ones(width)), graph.store(np.zeros(width))]
    first = graph.add("LayerNormalization", first, *ones, axis=-1)
    inner = graph.matmul(width, 4 * width, x=first)
    erf = graph.add("Erf", graph.add("Div", inner, graph.store(2**0.5)))
    half = graph.add("Mul", graph.add("Add", erf, graph.store(1.0)), graph.store(0.5))
    inner = graph.add("Mul", inner, half)
    second = graph.add("Add", first, graph.matmul(4 * width, width, x=inner))
    ones = [graph.store(np.ones(width)), graph.store(np.zeros(width))]
    return graph.add("LayerNormalization", second, *ones, axis=-1)
