"""What naive quantisation does to real models, and what is done about it here.

Each case of the corpus in which onnxruntime's quantiser crashed, did nothing or did harm, and a
twin of it that is built on the spot. The twins first show that the naive way really fails.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

import edgeml
from edgeml.errors import ModelError
from edgeml.metrics import get_metric
from edgeml.plugins import load
from edgeml_converters.model import run_model, save_model
from edgeml_converters.passes.base import PassContext
from edgeml_converters.results import Standing
from edgeml_converters.source import Source
from tests.support.corpus import corpus_file
from tests.support.models import cnn, mlp

STATIC = ("upgrade_opset", "simplify", "quantize_static")
DYNAMIC = ("upgrade_opset", "simplify", "quantize_dynamic")


def built(path, passes, data):
    """Apply passes to a model file as a candidate gets them; return the model."""
    model = Source.open(path).model
    context = PassContext(data)
    for name in passes:
        model = load("passes", name)().run(model, context).model
    onnx.checker.check_model(model)
    return model


def saved(folder, model):
    path = folder / "model.onnx"
    save_model(model, path)
    return path


class Reader(quantization.CalibrationDataReader):
    """Feeds one array, sample by sample."""

    def __init__(self, name, array):
        self._feeds = iter([{name: array[i : i + 1]} for i in range(len(array))])

    def get_next(self):
        return next(self._feeds, None)


def naive_dynamic(path):
    out = path.with_name("naive.onnx")
    quantization.quantize_dynamic(str(path), str(out))
    return onnx.load(out)


def naive_static(path, name, array, **options):
    out = path.with_name("naive.onnx")
    quantization.quantize_static(str(path), str(out), Reader(name, array), **options)
    return onnx.load(out)


def agreement(model, other, feed):
    key = next(iter(run_model(model, feed)))
    a, b = run_model(model, feed)[key], run_model(other, feed)[key]
    return float((a.reshape(len(a), -1).argmax(1) == b.reshape(len(b), -1).argmax(1)).mean())


def images(n=64, size=8):
    return np.random.default_rng(2).normal(size=(n, 1, size, size)).astype(np.float32)


# --- crashes: shapes of weights noted down by an exporter, then made untrue by the quantiser -----


def with_notes(model):
    """Add notes of all shapes, weights too, as the exporter of torch does."""
    inferred = onnx.shape_inference.infer_shapes(model)
    for tensor in inferred.graph.initializer:
        inferred.graph.value_info.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    return inferred


def test_notes_of_shapes_do_not_stop_the_quantiser(tmp_path):
    path = saved(tmp_path, with_notes(cnn()))
    with pytest.raises(Exception, match="Inferred shape and existing shape differ"):
        naive_dynamic(path)
    model = built(path, DYNAMIC, {"image": images()})
    assert agreement(cnn(), model, {"image": images()}) >= 0.9


def test_notes_that_are_wrong_already_are_dropped_and_said(tmp_path):
    model = with_notes(cnn())
    note = next(v for v in model.graph.value_info if v.name == "c2")
    note.type.tensor_type.shape.dim[1].dim_value = 99
    source = Source.open(saved(tmp_path, model))
    assert any("'c2' says [?, 99, 4, 4], is [?, 16, 4, 4]" in w for w in source.warnings)
    assert "c2" not in {v.name for v in source.model.graph.value_info}
    assert "c1" in {v.name for v in source.model.graph.value_info}


@pytest.mark.corpus
@pytest.mark.parametrize(
    "name", ["digits_cnn", "bc_autoencoder", "cifar10_mobilenetv2_small", "sst2_transformer"]
)
def test_the_models_that_crashed_the_dynamic_quantiser(name):
    path, data = corpus_file(f"models/{name}.onnx"), corpus(name, 64)
    model = built(path, DYNAMIC, data)
    fp32 = run_model(onnx.load(path), data)
    key = next(iter(fp32))
    gap = np.abs(run_model(model, data)[key] - fp32[key]).max() / np.abs(fp32[key]).max()
    assert gap < 0.2


def corpus(name, rows):
    """Return test inputs of a corpus model in the types that it takes."""
    arrays = np.load(corpus_file(f"eval/{name}.npz"))
    specs = Source.open(corpus_file(f"models/{name}.onnx")).inputs
    return {s.name: arrays[f"test/{s.name}"][:rows].astype(s.dtype) for s in specs}


# --- crashes: old operator sets, where 8 bits per channel are no valid model ---------------------


def old(model, opset=8, ir=3):
    """Return a model as old exporters wrote it: weights are inputs too."""
    model.opset_import[0].version = opset
    model.ir_version = ir
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    return model


def test_an_old_operator_set_is_raised_first(tmp_path):
    path = saved(tmp_path, old(cnn(), 9))
    made = naive_static(path, "image", images(8), per_channel=True)
    assert made.opset_import[0].version < 13
    with pytest.raises(Exception, match=r"(?s)[Ii]nvalid|axis|INVALID"):
        run_model(made, {"image": images(8)})
    model = built(path, STATIC, {"image": images()})
    assert model.opset_import[0].version >= 13
    assert agreement(cnn(), model, {"image": images()}) >= 0.9


def test_weights_that_are_reshaped_at_run_time_become_weights(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 2, 2, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["w", "flat"], ["w2"], name="reshape_weights"),
            helper.make_node("Reshape", ["x", "row"], ["x2"], name="reshape_input"),
            helper.make_node("MatMul", ["x2", "w2"], ["m"], name="product"),
            helper.make_node("Add", ["m", "b"], ["y"], name="bias"),
        ],
        "like_mnist",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.array([16, 3]), "flat"),
            numpy_helper.from_array(np.array([1, 16]), "row"),
            numpy_helper.from_array(rng.normal(size=(1, 3)).astype(np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    data = {"x": rng.normal(size=(64, 4, 2, 2)).astype(np.float32)}
    path = saved(tmp_path, old(model))
    for passes in (STATIC, DYNAMIC):
        made = built(path, passes, data)
        kinds = {t.data_type for t in made.graph.initializer if len(t.dims) == 2 and t.dims[0] > 1}
        assert kinds == {TensorProto.INT8}, passes
        assert agreement(model, made, data) >= 0.9


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["mnist-8", "ultraface_RFB_320"])
def test_the_old_models_that_became_invalid(name):
    path, data = corpus_file(f"models/{name}.onnx"), corpus(name, 24)
    model = built(path, STATIC, data)
    fp32, int8 = run_model(onnx.load(path), data), run_model(model, data)
    for key, want in fp32.items():
        noise = np.square(int8[key] - want).mean() / np.square(want).mean()
        assert noise < 0.02, key


# --- no-ops and products that are larger than the source ------------------------------------------


def weights_inside_a_branch():
    """A model whose weights are all inside the branches of an If, as those of silero_vad are."""

    def branch(name, scale):
        weights = np.full((8, 8), scale, np.float32) + np.eye(8, dtype=np.float32)
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", f"w_{name}"], [f"y_{name}"], name=f"product_{name}")],
            name,
            [],
            [helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, ["n", 8])],
            [numpy_helper.from_array(weights, f"w_{name}")],
        )

    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0, name="sum"),
            helper.make_node("Greater", ["sum", "zero"], ["yes"], name="test"),
            helper.make_node(
                "If", ["yes"], ["y"], name="choice",
                then_branch=branch("a", 0.5), else_branch=branch("b", -0.5),
            ),
        ],
        "branches",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(np.float32(0), "zero")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("passes", [STATIC, DYNAMIC])
def test_nothing_to_quantise_is_a_reason_and_no_product(tmp_path, passes):
    path = saved(tmp_path, weights_inside_a_branch())
    data = {"x": np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)}
    with pytest.raises(ModelError, match="othing to quantise"):
        built(path, passes, data)


def test_a_model_of_branches_is_converted_and_kept_as_it_is(tmp_path, own_profile):
    path = saved(tmp_path, weights_inside_a_branch())
    data = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x_calib=data[:20], x_test=data[20:])
    (one,) = convert(path, tmp_path, own_profile).results
    assert one.winner.precision == "fp32"
    said = {c.id: c.reason for c in one.candidates}
    assert "othing to quantise" in said["onnxruntime.int8-dynamic"]


def convert(path, folder, own_profile, name="lean", **options):
    return edgeml.convert(
        path,
        own_profile(name, runtimes="'onnxruntime'"),
        data=folder / "data.npz",
        effort="quick",
        out=folder / "out.edgeml",
        **options,
    )


def test_a_small_model_that_grows_in_8_bits_is_kept(tmp_path, own_profile):
    model = mlp(10, 8, 2)
    path = saved(tmp_path, model)
    x = np.random.default_rng(0).normal(size=(200, 10)).astype(np.float32)
    assert naive_static(path, "x", x[:20]).ByteSize() > model.ByteSize()
    y = run_model(model, {"x": x})["y"].argmax(1)
    np.savez(tmp_path / "data.npz", x_calib=x[:50], x_test=x[50:], y_test=y[50:])
    (one,) = convert(path, tmp_path, own_profile, objective="size").results
    assert one.winner.size_bytes <= one.baseline.size_bytes
    (one,) = convert(path, tmp_path, own_profile, max_drop=0.1).results
    assert one.winner.id == one.baseline.id or one.speedup.interval[0] > 1.02


# --- harm -----------------------------------------------------------------------------------------


def compares_small_differences():
    """A model that compares small differences of large numbers, as fitted trees do."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "pick"], ["p"], name="pick"),
            helper.make_node("Sub", ["p", "limits"], ["d"], name="distance"),
            helper.make_node("Greater", ["d", "zero"], ["g"], name="test"),
            helper.make_node("Cast", ["g"], ["f"], to=TensorProto.FLOAT, name="cast"),
            helper.make_node("MatMul", ["f", "leaves"], ["y"], name="leaves"),
        ],
        "trees",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [
            numpy_helper.from_array(np.eye(4, 12, dtype=np.float32), "pick"),
            numpy_helper.from_array(np.linspace(999, 1001, 12, dtype=np.float32), "limits"),
            numpy_helper.from_array(np.float32(0), "zero"),
            numpy_helper.from_array(
                np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32), "leaves"
            ),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def test_what_loses_accuracy_never_wins(tmp_path, own_profile):
    model = compares_small_differences()
    path = saved(tmp_path, model)
    x = np.random.default_rng(0).uniform(999, 1001, size=(400, 4)).astype(np.float32)
    x[:, 3] = 0.0
    y = run_model(model, {"x": x})["y"].argmax(1)
    naive = naive_static(path, "x", x[:50])
    harmed = get_metric("top1").score(run_model(naive, {"x": x}), y, {})
    assert harmed.value < 0.95
    np.savez(tmp_path / "data.npz", x_calib=x[:50], x_test=x[50:], y_test=y[50:])
    (one,) = convert(path, tmp_path, own_profile).results
    for c in one.candidates:
        if c.drop is not None and c.drop.upper > 0.01:
            assert c.verdict != Standing.PASSED
    assert one.winner.metric.value >= 0.99


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "metric"),
    [("lgbm_classifier", "top1"), ("diabetes_mlp", "r2"), ("bc_autoencoder", "auc"),
     ("kws_dscnn_fp32", "top1")],
)  # fmt: skip
def test_the_models_that_were_harmed_or_grew(name, metric, tmp_path, own_profile):
    (one,) = edgeml.convert(
        corpus_file(f"models/{name}.onnx"),
        own_profile("harm", runtimes="'onnxruntime'"),
        data=corpus_file(f"eval/{name}.npz"),
        metric=metric,
        max_drop=0.02,
        effort="quick",
        out=tmp_path / "x.edgeml",
    ).results
    assert one.winner.id == one.baseline.id or one.speedup.interval[0] > 1.02
    assert one.winner.drop.value <= 0.02
    if one.winner.verdict == Standing.PASSED:
        assert one.winner.drop.upper <= 0.02 or one.winner.sqnr_db >= 80


@pytest.mark.corpus
def test_the_voice_detector_that_was_blown_up_for_nothing():
    path = corpus_file("models/silero_vad.onnx")
    rng = np.random.default_rng(0)
    data = {
        "input": (0.1 * rng.normal(size=(4, 512))).astype(np.float32),
        "state": np.zeros((8, 1, 128), np.float32),
        "sr": np.full(4, 16000, np.int64),
    }
    with pytest.raises(ModelError, match="othing to quantise"):
        built(path, DYNAMIC, data)
