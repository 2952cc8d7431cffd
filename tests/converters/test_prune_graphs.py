"""Every pattern that pruning follows: where each channel is there twice, nothing may be lost."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeml.errors import ModelError
from edgeml_converters.model import model_bytes, run_model, signature
from edgeml_converters.passes.base import PassContext
from edgeml_converters.passes.prune_channels import PruneChannels
from edgeml_converters.passes.prune_hidden import PruneHidden
from tests.support.graphs import Graph, attention


def stored(model):
    return sum(numpy_helper.to_array(i).size for i in model.graph.initializer)


def error(model, pruned, data):
    (want,), (got,) = (list(run_model(m, data).values()) for m in (model, pruned))
    return float(np.abs(got - want).max() / np.abs(want).max())


def plain(g):
    g.conv(8, 3), g.add("Relu"), g.conv(8, 8)


def norm(g):
    g.conv(8, 3), g.norm(8), g.add("Relu"), g.add("MaxPool", kernel_shape=[2, 2]), g.conv(8, 8)


def pooled(g):
    g.conv(8, 3), g.add("Sigmoid"), g.add("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
    g.conv(6, 8, kernel=1), g.add("Clip", g.last, g.store(0.0), g.store(6.0))


def depthwise(g):
    g.conv(8, 3), g.add("Relu"), g.conv(8, 8, group=8), g.add("Relu"), g.conv(8, 8, kernel=1)


def grouped(g):
    # A group of its own twice over: channels 0, 1 | 4, 5 are those of 2, 3 | 6, 7.
    g.twice = False
    weight = np.tile(g.random(2, 3, 3, 3), (4, 1, 1, 1))
    g.add("Conv", g.last, g.store(weight), g.store(np.zeros(8)), pads=[1] * 4)
    g.add("Relu"), g.conv(8, 8, group=2)


def residual(g):
    first = g.conv(8, 3)
    g.add("Relu"), g.conv(8, 8)
    g.add("Relu", g.add("Add", first, g.last))
    second = g.last
    g.conv(8, 8), g.add("Add", g.last, second), g.conv(4, 8)


def multiplied(g):
    """Squeeze and excite."""
    first = g.conv(8, 3)
    g.add("GlobalAveragePool"), g.conv(4, 8, kernel=1), g.add("Relu"), g.conv(8, 4, kernel=1)
    g.add("Mul", first, g.add("Sigmoid")), g.conv(4, 8)


def reduced(g):
    first = g.conv(8, 3)
    g.add("ReduceMean", first, axes=[2, 3], keepdims=0), g.dense(8, 6)


def joined(g):
    start = g.last
    parts = [g.conv(4, 3, x=start), g.conv(6, 3, x=start)]
    g.add("Concat", *parts, axis=1), g.add("Relu"), g.conv(4, 10)


def flattened(g):
    (
        g.conv(8, 3),
        g.add("Relu"),
        g.add("Flatten"),
        g.dense(8 * 64, 12),
        g.add("Tanh"),
        g.dense(12, 5),
    )


def reshaped(g):
    g.conv(8, 3), g.add("Relu")
    g.add("Reshape", g.last, g.store([0, 8 * 64], np.int64)), g.dense(8 * 64, 5)


def transposed(g):
    g.conv(8, 3), g.add("Transpose", g.last, perm=[0, 2, 3, 1])
    g.add("Reshape", g.last, g.store([-1, 64, 8], np.int64)), g.matmul(8, 6)


def divided(g):
    g.conv(8, 3)
    first, second = g.add("Split", g.last, g.store([4, 4], np.int64), outputs=2, axis=1)
    g.add("Concat", g.add("Relu", second), g.add("Relu", first), axis=1), g.conv(4, 8)


def divided_equally(g):
    g.conv(8, 3)
    first, second = g.add("Split", g.last, outputs=2, axis=1)
    g.add("Concat", second, first, axis=1), g.conv(4, 8)


def sliced(g):
    g.conv(8, 3)
    cut = [g.store([v], np.int64) for v in (0, 4, 1)]
    g.add("Add", g.conv(4, 8), g.add("Slice", "conv0_0", *cut)), g.conv(4, 4)


def padded(g):
    g.conv(8, 3), g.add("Pad", g.last, g.store([0, 0, 1, 1, 0, 0, 1, 1], np.int64)), g.conv(4, 8)


def grown(g):
    g.conv(8, 3), g.add("Resize", g.last, "", g.store([1, 1, 2, 2])), g.conv(4, 8)


def transposed_conv(g):
    g.conv(8, 3)
    weight = g.random(6, 8, 2, 2).transpose(1, 0, 2, 3)
    g.add("ConvTranspose", g.last, g.store(weight), g.store(np.zeros(6)), strides=[2, 2])
    g.conv(4, 6)


PATTERNS = [
    plain, norm, pooled, depthwise, grouped, residual, multiplied, reduced, joined, flattened,
    reshaped, transposed, divided, divided_equally, sliced, padded, grown, transposed_conv,
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.__name__)
def test_channels_that_are_there_twice_go_without_loss(pattern):
    graph = Graph(3, 8, 8, twice=True)
    pattern(graph)
    model, data = graph.model(), graph.data()
    before = model_bytes(model)
    result = PruneChannels(0.2, multiple=1).run(model, PassContext(data))
    assert model_bytes(model) == before
    assert stored(result.model) < stored(model)
    assert signature(result.model) == signature(model)
    onnx.checker.check_model(result.model, full_check=True)
    assert error(model, result.model, graph.data(seed=2)) < 1e-4


def test_dead_channels_go_without_loss():
    graph = Graph(3, 8, 8)
    graph.conv(8, 3), graph.add("Relu"), graph.conv(4, 8)
    model = graph.model()
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    bias = numpy_helper.to_array(model.graph.initializer[1]).copy()
    weight[2:5], bias[2:5] = 0.0, -1.0
    for tensor, values in zip(model.graph.initializer, (weight, bias), strict=False):
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    result = PruneChannels(0.3, multiple=1).run(model, PassContext(graph.data()))
    assert list(result.model.graph.initializer[0].dims) == [5, 3, 3, 3]
    assert error(model, result.model, graph.data(seed=2)) < 1e-4


def shuffled(g):
    g.conv(8, 3), g.conv(8, 8, group=2)
    g.add("Reshape", g.last, g.store([0, 2, 4, 8, 8], np.int64))
    g.add("Transpose", g.last, perm=[0, 2, 1, 3, 4])
    g.add("Reshape", g.last, g.store([0, 8, 8, 8], np.int64)), g.conv(4, 8)


def mixed(g):
    """An operator without a rule, and one that mixes channels."""
    kept = g.conv(8, 3)
    g.add("LRN", kept, size=3), g.conv(8, 8), g.add("Softmax", g.last, axis=1), g.conv(8, 8)
    g.add("Relu"), g.conv(4, 8)


@pytest.mark.parametrize("pattern", [shuffled, mixed], ids=lambda p: p.__name__)
def test_what_cannot_be_followed_is_left_alone(pattern):
    graph = Graph(3, 8, 8)
    pattern(graph)
    model, data = graph.model(), graph.data()
    result = PruneChannels(0.3, multiple=1).run(model, PassContext(data))
    run_model(result.model, data)
    note = next(note for note in result.notes if "left alone" in note)
    assert ("LRN (1)" in note and "Softmax (1)" in note) or "Reshape (1)" in note
    assert stored(result.model) < stored(model)


def test_a_model_without_anything_to_prune_is_refused():
    graph = Graph(3, 8, 8)
    graph.conv(8, 3), graph.add("LRN", graph.last, size=3), graph.conv(4, 8)
    with pytest.raises(ModelError, match=r"no channels or units.* LRN"):
        PruneChannels().run(graph.model(), PassContext(graph.data()))
    with pytest.raises(ModelError, match=r"no heads or units"):
        PruneHidden().run(graph.model(), PassContext(graph.data()))


def test_weights_that_two_layers_share_stay_as_they_are():
    graph = Graph(8, 8, 8)
    weight = graph.store(graph.random(512, 8, 5, 5))  # too large to be copied
    start = graph.last
    parts = [graph.add("Conv", start, weight, pads=[2] * 4) for _ in range(2)]
    graph.add("Add", *parts), graph.conv(8, 512, kernel=1), graph.add("Relu"), graph.conv(4, 8)
    result = PruneChannels(0.001, multiple=1).run(graph.model(), PassContext(graph.data()))
    dims = {i.name: list(i.dims) for i in result.model.graph.initializer}
    assert dims[weight] == [512, 8, 5, 5]


def transformer(twice=False, shared=False):
    graph = Graph(6, 16, seed=3, twice=twice)
    graph.matmul(16, 16)
    attention(graph, 16, 4, 6), attention(graph, 16, 4, 6)
    graph.add("ReduceMean", graph.last, axes=[1], keepdims=0)
    graph.dense(16, 5)
    return graph


def test_heads_and_hidden_units_go():
    graph = transformer()
    model, data = graph.model(), graph.data(200)
    result = PruneHidden(0.5, multiple=4).run(model, PassContext(data))
    said = " ".join(result.notes)
    assert "heads" in said
    assert "of 64 units" in said
    assert stored(result.model) < 0.7 * stored(model)
    assert signature(result.model) == signature(model)
    onnx.checker.check_model(result.model, full_check=True)
    run_model(result.model, data)


def test_heads_that_are_there_twice_go_without_loss():
    graph = transformer(twice=True)
    model, data = graph.model(), graph.data(200)
    result = PruneHidden(0.3, multiple=1).run(model, PassContext(data))
    assert stored(result.model) < 0.8 * stored(model)
    assert error(model, result.model, graph.data(seed=2)) < 1e-3


def packed(g, shape_from_input=False):
    """Queries, keys and values from one product, cut by a Reshape and a Gather."""
    g.matmul(16, 48)
    shape = g.store([0, 6, 3, 4, 4], np.int64)
    if shape_from_input:
        batch = g.add("Slice", g.add("Shape", g.name), *[g.store([v], np.int64) for v in (0, 1)])
        rest = [g.store([v], np.int64) for v in (6, 3, 4, 4)]
        shape = g.add("Concat", batch, *rest, axis=0)
    g.add("Reshape", "add1_0", shape), g.add("Transpose", g.last, perm=[2, 0, 3, 1, 4])
    block = g.last
    q, k, v = (g.add("Gather", block, g.store(i, np.int64), axis=0) for i in range(3))
    scores = g.add("MatMul", q, g.add("Transpose", k, perm=[0, 1, 3, 2]))
    g.add("MatMul", g.add("Softmax", scores, axis=-1), v)
    g.add("Transpose", g.last, perm=[0, 2, 1, 3])
    g.add("Reshape", g.last, g.store([0, 0, 16], np.int64)), g.matmul(16, 5)


@pytest.mark.parametrize("shape_from_input", [False, True])
def test_heads_of_packed_queries_keys_and_values_go(shape_from_input):
    graph = Graph(6, 16)
    packed(graph, shape_from_input)
    model, data = graph.model(), graph.data(200)
    result = PruneHidden(0.5).run(model, PassContext(data))
    dims = {i.name: list(i.dims) for i in result.model.graph.initializer}
    left = next(int(n.split(": ")[1][0]) for n in result.notes if "of 4 heads" in n)
    assert 1 <= left <= 3
    assert dims["w0"] == [16, 12 * left]
    run_model(result.model, graph.data(3))
