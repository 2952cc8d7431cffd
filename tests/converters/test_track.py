"""edgeml convert --track: what is kept of a conversion, and when."""

import json

import numpy as np
import onnx
import pytest

from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import COMMANDS
from tests.support import models
from tests.support.mlflow_server import small_server


@pytest.fixture
def words(tmp_path, monkeypatch, own_profile):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGEML_TRACK", raising=False)
    onnx.save(models.mlp(), "mlp.onnx")
    rng = np.random.default_rng(0)
    np.savez("data.npz", x_test=rng.normal(size=(100, 4)).astype(np.float32))
    profile = own_profile("tracked", runtimes="'onnxruntime'", precisions="'fp32'")
    return ["convert", "mlp.onnx", "--profile", profile, "--data", "data.npz", "--effort", "quick"]


def edgeml(words):
    return run(LazyGroup(COMMANDS, name="edgeml"), words)


def test_a_conversion_is_a_run_and_a_version_in_mlflow(words, tmp_path, capsys, monkeypatch):
    with small_server() as (address, state):
        monkeypatch.setenv("EDGEML_TRACK", address)
        assert edgeml([*words, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
    (run_,) = state.runs.values()
    assert run_["status"] == "FINISHED"
    winner = told["results"][0]["winner"]
    assert run_["params"]["tracked.winner"] == f"{winner['runtime']}.{winner['recipe']}"
    assert run_["params"]["data"] == "data.npz"
    assert run_["metrics"]["tracked.latency_p50_ms"] == winner["latency_ms"]["p50"]
    assert run_["metrics"]["tracked.agreement"] == winner["metric"]["value"]
    (version,) = state.versions
    assert version["name"] == "mlp"
    assert version["tags"]["edgeml.digest"] == told["digest"]
    kept = {k.partition("artifacts/")[2]: v for k, v in state.artifacts.items()}
    assert kept["model/mlp-1.0.0.edgeml"] == (tmp_path / "mlp-1.0.0.edgeml").read_bytes()
    assert b"<!doctype html>" in kept["report/report.html"]
    lineage = json.loads(kept["lineage.json"])
    assert set(lineage["steps"]) == {"tracked.onnxruntime.fp32"}


def test_a_server_that_is_not_there_is_told_before_any_work(words, tmp_path, capsys):
    assert edgeml([*words, "--track", "http://127.0.0.1:1"]) == 5
    said = capsys.readouterr()
    assert "does not answer" in said.err
    assert "samples" not in said.err
    assert not (tmp_path / "mlp-1.0.0.edgeml").exists()


def test_nothing_is_kept_when_nobody_asks(words, tmp_path, monkeypatch):
    with small_server() as (address, state):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert edgeml(words) == 0
        assert state.calls == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "data.npz", "mlp-1.0.0.edgeml", "mlp.onnx",
    ]  # fmt: skip
