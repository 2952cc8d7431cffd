"""Facts per layer: SQNR against numpy, noise of one layer, coverage and time on both runtimes."""

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml.errors import ModelError, UsageError
from edgeml.plugins import load
from edgeml_converters.layers.coverage import Coverage, coverage
from edgeml_converters.layers.executed import Executed, executed
from edgeml_converters.layers.latency import charge, node_micros
from edgeml_converters.layers.sensitivity import channel_shift, local_noise
from edgeml_converters.layers.sqnr import Noise, per_tensor, sqnr, twins, whole_model
from edgeml_converters.layers.taps import feeds, tapped
from edgeml_converters.model import run_model
from edgeml_converters.passes.base import PassContext
from edgeml_converters.quantizer.prepare import prepared
from edgeml_converters.results import SQNR_CEILING
from tests.support.models import cnn, mlp

RUNTIMES = pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])


def images(count=24, size=8):
    return {"image": np.random.default_rng(2).normal(size=(count, 1, size, size)).astype("f4")}


def static(model, data, **options):
    return load("passes", "quantize_static")(**options).run(model, PassContext(data)).model


def written(model, folder, name="model.onnx"):
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def pair():
    """A float CNN with names for all nodes, and its quantised form."""
    model = prepared(cnn(channels=16, size=8))
    return model, static(model, images())


def decibels(want, got):
    difference = np.linalg.norm((want - got).astype(float))
    return 20 * np.log10(np.linalg.norm(want.astype(float)) / difference)


def test_sqnr_is_the_ratio_of_norms_whatever_the_parts():
    rng = np.random.default_rng(0)
    want = rng.normal(size=(10, 7)).astype("f4")
    got = want + rng.normal(size=want.shape).astype("f4") / 50
    assert sqnr([want], [got]) == pytest.approx(decibels(want, got), abs=1e-4)
    parts = sqnr(np.array_split(want, 3), np.array_split(got, 3))
    assert parts == pytest.approx(decibels(want, got), abs=1e-4)


def test_noise_has_bounds_and_leaves_masks_out():
    same = Noise()
    same.add(np.ones(3), np.ones(3))
    assert same.db == SQNR_CEILING
    silent = Noise()
    silent.add(np.zeros(3), np.ones(3))
    assert silent.db == -SQNR_CEILING
    masked = Noise()
    masked.add(np.array([1.0, -np.inf]), np.array([0.9, -np.inf]))
    assert masked.db == pytest.approx(20, abs=1e-6)


def test_per_tensor_is_what_numpy_says_of_the_same_tensors(pair):
    model, quantised = pair
    data = images()
    found = {one.tensor: one for one in per_tensor(model, quantised, data, samples=0)}
    names = twins(model, quantised)
    want, got = onnx.ModelProto(), onnx.ModelProto()
    want.CopyFrom(model)
    got.CopyFrom(quantised)
    for name, twin in names.items():
        for graph, tensor in ((want.graph, name), (got.graph, twin)):
            if tensor not in {o.name for o in graph.output}:
                graph.output.append(onnx.ValueInfoProto(name=tensor))
    exact, rough = run_model(want, data), run_model(got, data)
    assert {"logits"} < set(found)
    for tensor, one in found.items():
        expected = decibels(exact[tensor], rough[names[tensor]])
        assert one.sqnr_db == pytest.approx(expected, abs=1e-3)
        assert one.node and one.op
    assert whole_model(model, quantised, data, 0) == pytest.approx(
        found["logits"].sqnr_db, abs=0.01
    )


def test_per_tensor_leaves_out_what_pruning_cut(pair):
    model, _ = pair
    small = load("passes", "prune_channels")(amount=0.3, multiple=1)
    pruned = prepared(small.run(model, PassContext(images())).model)
    found = {one.tensor for one in per_tensor(model, static(pruned, images()), images())}
    assert "logits" in found
    assert "c1" not in found


def test_taps_hold_no_more_than_a_chunk(pair):
    model, _ = pair
    seen = [len(feed["image"]) for feed in feeds(model, images(5000))]
    assert sum(seen) == 5000
    assert max(seen) * 64 <= 1 << 17
    few = np.concatenate([feed["image"] for feed in feeds(model, images(5000), samples=10)])
    assert len(few) == 10
    with tapped(model, ["r1"]) as run:
        assert run({"image": images(3)["image"]})["r1"].shape == (3, 16, 8, 8)


def test_feeds_keep_to_a_fixed_batch_and_name_what_is_missing():
    fixed = load("passes", "fix_batch")(batch=4).run(mlp(), PassContext()).model
    data = {"x": np.zeros((10, 4), "f4")}
    assert [len(feed["x"]) for feed in feeds(fixed, data)] == [4, 4]
    with pytest.raises(ModelError, match="not one whole batch"):
        list(feeds(fixed, {"x": data["x"][:3]}))
    with pytest.raises(ModelError, match="'x' is missing"):
        list(feeds(fixed, {}))


def test_local_noise_is_that_of_one_layer_alone(pair):
    """Each twin is fed exact tensors: a second layer's noise is not that of the first too."""
    model, quantised = pair
    data = images()
    noise = local_noise(model, quantised, data, samples=0)
    assert {"conv1", "conv2", "fc"} <= set(noise)
    alone = static(model, data, exclude=[n.name for n in model.graph.node if n.name != "fc"])
    assert -10 * np.log10(noise["fc"]) == pytest.approx(whole_model(model, alone, data, 0), abs=1.0)


def test_channel_shift_is_the_mean_error(pair):
    """The first layer has exact inputs in the quantised model too."""
    model, quantised = pair
    data = images()
    shift = channel_shift(model, quantised, {"conv1": 1}, data, samples=0)["conv1"]
    means = []
    for form in (model, quantised):
        seen = onnx.ModelProto()
        seen.CopyFrom(form)
        node = next(n for n in seen.graph.node if n.name == "conv1")
        seen.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
        means.append(run_model(seen, data)[node.output[0]].mean(axis=(0, 2, 3)))
    assert shift == pytest.approx(means[1] - means[0], abs=1e-4)


@RUNTIMES
def test_coverage_of_a_quantised_cnn_is_whole(runtime, pair, tmp_path):
    _, quantised = pair
    file = written(quantised, tmp_path)
    found = coverage(file, runtime)
    assert isinstance(found, Coverage)
    assert (found.weighted, found.int8, found.share) == (3, 3, 1.0)
    assert found.float_layers == ()
    assert found.quantize >= 1
    assert found.micros == 0.0
    assert found.time_share is None
    assert msgspec.json.decode(msgspec.json.encode(found), type=Coverage) == found


@RUNTIMES
def test_coverage_of_a_float_cnn_is_none(runtime, pair, tmp_path):
    model, _ = pair
    found = coverage(written(model, tmp_path), runtime)
    assert (found.weighted, found.int8, found.share) == (3, 0, 0.0)
    assert len(found.float_layers) == 3
    assert found.quantize == found.dequantize == 0


@RUNTIMES
def test_with_a_feed_there_are_times(runtime, tmp_path):
    model = prepared(cnn(channels=64, size=24))
    data = images(8, 24)
    file = written(static(model, data), tmp_path)
    found = coverage(file, runtime, feed={"image": data["image"][:1]}, runs=5)
    assert found.micros >= found.weighted_micros >= found.int8_micros > 0
    assert found.time_share == 1.0


def test_dynamic_convolutions_and_groups_are_told(tmp_path):
    rng = np.random.default_rng(0)
    data = {"image": rng.normal(size=(8, 8, 6, 6)).astype("f4")}
    for group, name in ((2, "grouped"), (8, "depthwise")):
        weights = rng.normal(size=(8, 8 // group, 3, 3)).astype("f4")
        node = helper.make_node("Conv", ["image", "w"], ["y"], name="conv", group=group)
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 8, 6, 6])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 4, 4])],
            [numpy_helper.from_array(weights, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 9
        file = written(hand_quantised(model, data), tmp_path)
        found = coverage(file, "onnxruntime")
        assert getattr(found, name) == 1
        assert found.grouped + found.depthwise == 1


def hand_quantised(model, data):
    """onnxruntime's own quantiser, which also takes groups that ours leaves alone."""
    import tempfile
    from pathlib import Path

    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        def __init__(self):
            self.rows = iter(data["image"])

        def get_next(self):
            row = next(self.rows, None)
            return None if row is None else {"image": row[None]}

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "q.onnx"
        q.quantize_static(
            model, str(out), Reader(), activation_type=q.QuantType.QUInt8, per_channel=True
        )
        return onnx.load(out)


def test_convinteger_is_told(tmp_path):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("ConvInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 3, 3])],
        [numpy_helper.from_array(np.ones((2, 1, 3, 3), np.uint8), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    assert coverage(written(model, tmp_path), "onnxruntime").conv_integer == 1


def test_bad_files_and_other_runtimes_are_named(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(ModelError, match=r"broken\.onnx"):
            coverage(broken, runtime)
    with pytest.raises(UsageError, match="litert"):
        coverage(broken, "litert")


@RUNTIMES
def test_time_is_charged_to_the_layers_of_the_source(runtime, tmp_path):
    model = prepared(cnn(channels=64, size=24))
    data = images(8, 24)
    feed = {"image": data["image"][:1]}
    for product in (model, static(model, data)):
        found = node_micros(written(product, tmp_path), model, runtime, feed, runs=5)
        names = {node.name for node in model.graph.node}
        assert set(found) <= names
        assert found["conv2"] > 0
        assert found["conv2"] == max(found.values())


def test_nothing_of_the_time_is_lost(pair, tmp_path):
    model, quantised = pair
    feed = {"image": images(1)["image"]}
    nodes = executed(written(quantised, tmp_path), "onnxruntime", feed=feed, runs=5)
    assert sum(charge(nodes, model).values()) == pytest.approx(sum(n.micros for n in nodes))


def test_a_conversion_is_charged_to_who_uses_its_result(pair):
    model, _ = pair
    nodes = [
        Executed("image_QuantizeLinear~0", "QuantizeLinear", False, False, micros=3.0),
        Executed("conv1_token_4", "QLinearConv", True, True,
                 inputs=("image_QuantizeLinear~0",), micros=10.0),
        Executed("Transpose", "Transpose", False, False, inputs=("conv1_token_4",), micros=2.0),
    ]  # fmt: skip
    assert charge(nodes, model) == {"conv1": 15.0}
