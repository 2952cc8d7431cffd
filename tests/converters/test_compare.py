"""edgeml compare, as a user types it."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import COMMANDS
from edgeml_converters.results import SQNR_CEILING
from tests.support import models


def spoilt(model):
    """Return the model with a weight that is a tenth wrong."""
    weight = model.graph.initializer[2]
    values = numpy_helper.to_array(weight) * (1 + np.arange(weight.dims[1]) * 2)
    weight.CopyFrom(numpy_helper.from_array(values.astype(np.float32), weight.name))
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(models.mlp(), "good.onnx")
    onnx.save(spoilt(models.mlp()), "bad.onnx")
    onnx.save(models.cnn(), "cnn.onnx")
    onnx.save(models.mlp(), "split.onnx", save_as_external_data=True, size_threshold=0,
              location="split.bin")  # fmt: skip
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4)).astype(np.float32)
    from onnx.reference import ReferenceEvaluator

    y = ReferenceEvaluator(models.mlp()).run(None, {"x": x})[0].argmax(axis=1)
    np.savez("data.npz", **{"calib/x": x[:100], "test/x": x[100:], "test/labels": y[100:]})
    return tmp_path


def edgeml(capsys, *words):
    code = run(LazyGroup(COMMANDS, name="edgeml"), ["compare", *words])
    return code, capsys.readouterr()


def test_a_model_against_itself_is_the_same(folder, capsys):
    words = ["good.onnx", "split.onnx", "--data", "data.npz", "--max-drop", "0.01", "--json"]
    code, said = edgeml(capsys, *words, "--rounds", "10")
    told = json.loads(said.out)
    assert code == 0
    assert told["sqnr_db"] == SQNR_CEILING
    assert told["a"]["metric"] == told["b"]["metric"]
    assert told["a"]["metric"]["name"] == "top1"
    assert told["a"]["metric"]["value"] == 1.0
    assert told["samples"] == 500
    assert told["agreement"]["value"] == 1.0
    assert told["b"]["size_bytes"] == sum(
        (folder / name).stat().st_size for name in ("split.onnx", "split.bin")
    )
    low, high = told["speedup"]["interval"]
    assert low <= told["speedup"]["value"] <= high
    assert [limit["state"] for limit in told["limits"]] == ["ok"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "bad.onnx", "cnn.onnx", "data.npz", "good.onnx", "split.bin", "split.onnx",
    ]  # fmt: skip


def test_a_loss_beyond_the_limit_is_exit_code_1_and_told(folder, capsys):
    words = ["good.onnx", "bad.onnx", "--data", "data.npz", "--rounds", "6"]
    code, said = edgeml(capsys, *words, "--max-drop", "0.01")
    assert code == 1
    assert "B loses +0." in said.out
    assert "max-drop 0.01: fails; B loses" in said.out
    assert "error:" not in said.err


def test_too_few_samples_are_undecided_and_fail_only_when_strict(folder, capsys):
    with np.load("data.npz") as full:
        few = {key: array[:60] for key, array in full.items()}
    np.savez("few.npz", **few)
    model = models.mlp()
    bias = model.graph.initializer[3]
    values = numpy_helper.to_array(bias) + np.float32(2e-3) * np.arange(3, dtype=np.float32)
    bias.CopyFrom(numpy_helper.from_array(values.astype(np.float32), bias.name))
    onnx.save(model, "near.onnx")
    words = ["good.onnx", "near.onnx", "--data", "few.npz", "--rounds", "6", "--max-drop", "0.01"]
    code, said = edgeml(capsys, *words)
    assert "max-drop 0.01: undecided" in said.out
    assert code == 0
    assert edgeml(capsys, *words, "--strict")[0] == 1


def test_a_slower_runtime_breaks_the_limit_on_the_slow_down(folder, capsys):
    words = ["good.onnx", "good.onnx#openvino", "--rounds", "10", "--json"]
    code, said = edgeml(capsys, *words, "--max-slowdown", "0")
    told = json.loads(said.out)
    (limit,) = told["limits"]
    assert limit["option"] == "max-slowdown"
    slower = 1 / told["speedup"]["value"] - 1
    upper = 1 / told["speedup"]["interval"][0] - 1
    expected = "ok" if upper <= 0 else "fails" if slower > 0 else "undecided"
    assert limit["state"] == expected
    assert code == (1 if expected == "fails" else 0)
    assert told["b"]["runtime"] == "openvino"
    assert any("no evaluation data" in warning for warning in told["warnings"])
    assert told["drop"] is None


def test_variants_of_a_bundle_are_compared_with_its_source(folder, capsys, own_profile):
    profile = own_profile("compared", runtimes="'onnxruntime', 'openvino'", precisions="'fp32'")
    made = ["good.onnx", "--profile", profile, "--effort", "quick", "--objective", "size"]
    assert run(LazyGroup(COMMANDS, name="edgeml"), ["convert", *made]) == 0
    capsys.readouterr()
    words = ["good.onnx", "good-1.0.0.edgeml", "--data", "data.npz", "--rounds", "6", "--json"]
    code, said = edgeml(capsys, *words)
    told = json.loads(said.out)
    assert code == 0
    assert told["b"]["name"].startswith("good-1.0.0.edgeml#compared.")
    assert told["b"]["precision"] == "fp32"
    inner = told["b"]["name"].partition(".edgeml#compared.")[2]
    assert "." in inner
    code, said = edgeml(capsys, "good.onnx", "good-1.0.0.edgeml#compared.onnx")
    assert code == 2
    assert "has no variant 'compared.onnx'" in said.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["good.onnx", "cnn.onnx"], 2, "do not take the same"),
        (["good.onnx", "none.onnx"], 2, "none.onnx"),
        (["good.onnx", "none.edgeml"], 2, "none.edgeml"),
        (["good.onnx", "good.onnx#openvin"], 2, "openvino"),
        (["good.onnx", "good.onnx#litert"], 2, "litert"),
        (["good.onnx", "data.npz"], 2, "data.npz"),
        (["good.onnx", "bad.onnx", "--max-drop", "0.1"], 2, "--data"),
        (["good.onnx", "bad.onnx", "--metric", "top1"], 2, "--data"),
        (["good.onnx", "bad.onnx", "--data", "nope.npz"], 2, "nope.npz"),
        (["good.onnx", "bad.onnx", "--max-drop", "nan", "--data", "data.npz"], 2, "max"),
        (["good.onnx"], 2, "B"),
    ],
)
def test_bad_words_are_one_line_and_a_hint(folder, capsys, words, code, says):
    got, said = edgeml(capsys, *words, "--json")
    assert got == code
    error = json.loads(said.out)["error"]
    assert says in error["message"] + error["hint"]
    assert error["hint"]
    assert len([line for line in said.err.splitlines() if line.startswith("error:")]) == 1
    assert "Traceback" not in said.err


def test_a_wrong_metric_is_told_before_any_work(folder, capsys):
    words = ["compare", "good.onnx", "nosuch.onnx", "--data", "data.npz", "--metric", "top2"]
    assert run(LazyGroup(COMMANDS, name="edgeml"), words) == 2
    assert capsys.readouterr().err.splitlines()[0] == "error: unknown metric 'top2'"
