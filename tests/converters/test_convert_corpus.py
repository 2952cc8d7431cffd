"""edgeml convert on models that other people made."""

import numpy as np
import pytest

import edgeml
from edgeml.bundle import Bundle
from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import COMMANDS
from edgeml.errors import ModelError
from edgeml_converters.results import Standing
from tests.support.corpus import corpus_file

pytestmark = pytest.mark.corpus


def convert(name, out, profile="cpu-x86-64", **options):
    return edgeml.convert(
        corpus_file(f"models/{name}.onnx"),
        profile,
        out=out / f"{name}.edgeml",
        **({} if "data" in options else {"data": corpus_file(f"eval/{name}.npz")}),
        **options,
    )


@pytest.mark.parametrize("name", ["ic_resnet8_fp32", "kws_dscnn_fp32", "digits_cnn"])
def test_the_winner_is_within_the_limit_and_surely_faster(name, tmp_path, record_property):
    result = convert(name, tmp_path, metric="top1", max_drop=0.01, effort="quick")
    (one,) = result.results
    for c in one.candidates:
        record_property(f"{name} {c.id}", c.speedup and (c.speedup.value, c.speedup.interval))
    assert one.winner.verdict == Standing.PASSED
    assert one.winner.drop.upper <= 0.01
    assert one.winner.id == one.baseline.id or one.speedup.interval[0] > 1.02
    bundle = Bundle.open(tmp_path / f"{name}.edgeml")
    bundle.check()
    assert bundle.manifest.variants[0].entry == one.winner.entry


def test_a_transformer_goes_through(tmp_path):
    (one,) = convert("sst2_transformer", tmp_path, effort="quick", max_drop=0.03).results
    verdicts = {c.id: c.verdict for c in one.candidates}
    assert verdicts["onnxruntime.int8-dynamic"] in (Standing.PASSED, Standing.UNDECIDED)
    assert verdicts["litert.int8-portable-f32"] == Standing.ERROR


def test_trees_and_recurrent_networks_go_through(own_profile, tmp_path):
    (trees,) = convert("lgbm_classifier", tmp_path, effort="quick").results
    assert trees.winner.verdict in (Standing.PASSED, Standing.UNDECIDED)
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "voice.npz",
        **{
            "test/input": (0.1 * rng.normal(size=(40, 512))).astype(np.float32),
            "test/state": np.zeros((80, 1, 128), np.float32),
            "test/sr": np.full(40, 16000),
        },
    )
    options = {"data": tmp_path / "voice.npz", "effort": "quick", "profile": own_profile("lean")}
    (voice,) = convert("silero_vad", tmp_path, **options).results
    assert voice.winner.precision == "fp32"


def test_a_model_that_cannot_run_on_guessed_shapes_says_how_to_give_them(tmp_path):
    with pytest.raises(ModelError, match="cannot run") as caught:
        convert("silero_vad", tmp_path, data=None)
    assert "--shape input=N,N --shape state=2,N,128" in caught.value.hint
    with pytest.raises(ModelError, match="with these shapes") as caught:
        convert("silero_vad", tmp_path, data=None, shape={"input": (1, 512), "state": (2, 1, 128)})
    assert "leave --shape out" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "empty.onnx",
        "external_data_path_escape.onnx",
        "git_lfs_pointer.onnx",
        "missing_external_data.onnx",
        "nan_weights.onnx",
        "needs_ort_extensions.onnx",
        "tflm_only_person_detect.tflite",
        "truncated.onnx",
        "truncated.tflite",
        "unresolved_custom_op.tflite",
        "weight_shape_mismatch.onnx",
    ],
)
def test_what_cannot_be_converted_is_one_clear_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["convert", str(corpus_file(f"bad/{name}")), "--profile", "cpu-x86-64"]
    assert run(LazyGroup(COMMANDS, name="edgeml"), words) in (2, 3)
    err = capsys.readouterr().err
    assert err.count("error:") == 1
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
