"""Pruning as a whole: any small graph stays valid; fitting helps; what is asked for is done."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edgeml.errors import ModelError, UsageError
from edgeml_converters.model import model_bytes, run_model, signature
from edgeml_converters.passes.base import PassContext
from edgeml_converters.passes.prune_channels import PruneChannels
from edgeml_converters.passes.prune_weights import PruneWeights
from edgeml_converters.passes.quantize_static import QuantizeStatic
from edgeml_converters.pruning import Plan, prune
from edgeml_converters.pruning.amounts import choose
from edgeml_converters.pruning.importance import MOST_INPUTS, curve, folded, gather
from edgeml_converters.pruning.refit import refit
from edgeml_converters.pruning.remove import CHANNELS, UNITS, clusters_of, removed
from edgeml_converters.pruning.rules import follow
from edgeml_converters.pruning.view import open_view
from tests.support.graphs import Graph
from tests.support.models import cnn, mlp

BLOCKS = st.lists(
    st.sampled_from(["conv", "wide", "depthwise", "residual", "gate", "pool", "branch"]),
    min_size=1, max_size=3,
)  # fmt: skip


def network(blocks, channels, seed):
    """A random small network: blocks of convolutions, then a dense end."""
    graph = Graph(3, 8, 8, seed=seed)
    graph.conv(channels, 3), graph.add("Relu")
    for block in blocks:
        start = graph.last
        if block == "conv":
            graph.conv(channels, channels), graph.norm(channels), graph.add("Relu")
        elif block == "wide":
            graph.conv(2 * channels, channels), graph.add("Relu")
            graph.conv(channels, 2 * channels, kernel=1)
        elif block == "depthwise":
            graph.conv(channels, channels, group=channels), graph.add("Relu")
            graph.conv(channels, channels, kernel=1)
        elif block == "residual":
            graph.conv(channels, channels), graph.add("Relu"), graph.conv(channels, channels)
            graph.add("Add", start, graph.last)
        elif block == "gate":
            graph.add("GlobalAveragePool"), graph.conv(channels, channels, kernel=1)
            graph.add("Mul", start, graph.add("Sigmoid"))
        elif block == "pool":
            graph.add("MaxPool", start, kernel_shape=[3, 3], pads=[1] * 4)
        else:
            parts = [graph.conv(channels, channels, kernel=k, x=start) for k in (1, 3)]
            graph.add("Concat", *parts, axis=1), graph.conv(channels, 2 * channels, kernel=1)
    graph.add("AveragePool", graph.last, kernel_shape=[4, 4], strides=[4, 4])
    graph.add("Flatten"), graph.dense(4 * channels, 12), graph.add("Relu"), graph.dense(12, 5)
    return graph


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(BLOCKS, st.sampled_from([5, 8]), st.integers(0, 9), st.sampled_from([0.2, 0.5]))
def test_any_small_network_stays_valid(blocks, channels, seed, amount):
    graph = network(blocks, channels, seed)
    model, data = graph.model(), graph.data(24)
    result = PruneChannels(amount, multiple=1).run(model, PassContext(data))
    assert signature(result.model) == signature(model)
    onnx.checker.check_model(result.model, full_check=True)
    (out,) = run_model(result.model, data).values()
    assert np.isfinite(out).all()
    before = {i.name: i.dims for i in model.graph.initializer}
    after = {i.name: i.dims for i in result.model.graph.initializer}
    assert set(after) == set(before)
    assert all(a <= b for n in after for a, b in zip(after[n], before[n], strict=True))
    assert sum(map(np.prod, after.values())) < sum(map(np.prod, before.values()))


def relative(model, pruned, data):
    (want,), (got,) = (list(run_model(m, data).values()) for m in (model, pruned))
    return float(((got - want) ** 2).mean() / want.var())


def test_each_step_lowers_the_error_on_data_that_it_has_not_seen():
    graph = network(["conv", "residual"], 16, 3)
    model, data, unseen = graph.model(), graph.data(256), graph.data(128, seed=7)
    trace = follow(open_view(model, data))
    moments = gather(trace, [one for one in trace.layers if one.ids_in is not None],
                     data, 256, 0, 1)  # fmt: skip
    curves = [curve(trace, one, moments, 2, 4) for one in clusters_of(trace)]
    gone, _ = choose(trace, curves, [1.0] * len(curves), 0.6, 4)
    plain = removed(trace, {}, gone)
    made_up = removed(trace, folded(trace, moments, gone), gone)
    fitted, count = refit(trace, made_up, gone, data, 256, 1e12, 0, 1)
    assert count
    errors = [relative(model, one, unseen) for one in (plain, made_up, fitted)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.5 * errors[0]


def test_it_removes_what_matters_least_and_not_what_is_smallest():
    # Channel 0 is small but read alone; the others are large, and all the same.
    graph = Graph(3, 8, 8)
    weight = np.tile(graph.random(1, 3, 3, 3), (8, 1, 1, 1)) * 5
    weight[0] = graph.random(1, 3, 3, 3)[0] * 0.3
    graph.add("Conv", graph.last, graph.store(weight), graph.store(np.zeros(8)), pads=[1] * 4)
    graph.conv(4, 8, kernel=1)
    model = graph.model()
    pruned, _ = prune(model, PassContext(graph.data()), Plan(frozenset({CHANNELS}), 0.7, 1))
    left = numpy_helper.to_array(pruned.graph.initializer[0])
    assert len(left) == 2
    assert np.abs(left - weight[0]).max(axis=(1, 2, 3)).min() < 1e-6
    assert relative(model, pruned, graph.data(seed=5)) < 1e-6


def test_few_samples_do_not_make_features_look_alike():
    graph = Graph(200, seed=2)
    graph.dense(200, 100), graph.add("Relu"), graph.dense(100, 100), graph.add("Relu")
    graph.dense(100, 4)
    model = graph.model()
    pruned, _ = prune(model, PassContext(graph.data(40)), Plan(frozenset({UNITS}), 0.2, 4))
    assert relative(model, pruned, graph.data(200, seed=9)) < 0.2


def test_channels_are_left_in_multiples():
    graph = network(["conv", "wide"], 40, 0)
    model = graph.model()
    pruned, report = prune(model, PassContext(graph.data(32)), Plan(frozenset({CHANNELS}), 0.3, 16))
    lost = [
        dims for dims, before in zip(
            [i.dims[0] for i in pruned.graph.initializer if len(i.dims) == 4],
            [i.dims[0] for i in model.graph.initializer if len(i.dims) == 4], strict=True,
        ) if dims != before
    ]  # fmt: skip
    assert lost
    assert all(dims % 16 == 0 for dims in lost)
    assert report.saved >= 0.3


def test_a_pruned_model_is_quantised_as_any_other():
    graph = network(["conv", "residual"], 16, 1)
    model, context = graph.model(), PassContext(graph.data(64))
    pruned = PruneChannels(0.3).run(model, context).model
    quantised = QuantizeStatic().run(pruned, context).model
    assert len(model_bytes(quantised)) < len(model_bytes(pruned)) < len(model_bytes(model))
    assert relative(pruned, quantised, graph.data(seed=4)) < 0.05


def test_no_layer_is_summed_over_that_is_too_wide():
    graph = Graph(4, seed=1)
    graph.dense(4, MOST_INPUTS + 8), graph.add("Relu"), graph.dense(MOST_INPUTS + 8, 2)
    with pytest.raises(ModelError, match="no channels or units to prune"):
        PruneChannels(0.3).run(graph.model(), PassContext(graph.data()))


def test_a_fixed_batch_is_fed_as_it_is():
    model = cnn(16)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    data = {"image": np.random.default_rng(0).normal(size=(70, 1, 8, 8)).astype(np.float32)}
    result = PruneChannels(0.3).run(model, PassContext(data))
    assert signature(result.model) == signature(model)


@pytest.mark.parametrize("options", [{"amount": 0.0}, {"amount": 1.0}, {"multiple": 0}])
def test_options_are_checked(options):
    with pytest.raises(UsageError, match="expected"):
        PruneChannels(**options)


def test_single_weights_go_for_the_compressed_size_and_it_is_said_so():
    model = mlp(32, 64, 5)
    data = {"x": np.random.default_rng(1).normal(size=(64, 32)).astype(np.float32)}
    result = PruneWeights(0.6).run(model, PassContext(data))
    weight = numpy_helper.to_array(result.model.graph.initializer[0])
    assert 0.55 < (weight == 0).mean() < 0.65
    said = " ".join(result.notes)
    assert "no speed-up on a CPU" in said
    before, after = (int(w) for w in said.split("deflate ")[1].split(" bytes")[0].split(" -> "))
    assert after < 0.75 * before
    with pytest.raises(UsageError, match="amount 2"):
        PruneWeights(2)


def test_single_weights_that_read_nothing_go_first():
    model = mlp(32, 64, 5)
    data = np.random.default_rng(1).normal(size=(64, 32)).astype(np.float32)
    data[:, :16] *= 1e-3
    result = PruneWeights(0.5).run(model, PassContext({"x": data}))
    weight = numpy_helper.to_array(result.model.graph.initializer[0])
    assert (weight[:16] == 0).mean() > 0.95
