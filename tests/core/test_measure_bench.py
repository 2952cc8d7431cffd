"""The command that measures."""

import json

import numpy as np
import onnx
import pytest

from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import Row
from tests.support.bundles import make_bundle
from tests.support.models import cnn, mlp

GROUP = LazyGroup({"bench": Row("edgeml.cli.bench:command", "")}, name="edgeml")


@pytest.fixture
def bench(capfd):
    def call(*words):
        code = run(GROUP, ["bench", *map(str, words)])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def test_a_model_on_every_runtime_that_opens_it(bench, tmp_path):
    onnx.save(mlp(), tmp_path / "mlp.onnx")
    code, out, _ = bench(tmp_path / "mlp.onnx", "--rounds", 8, "--batch", 3, "--json")
    report = json.loads(out)
    assert code == 0
    assert [row["name"] for row in report["results"]] == ["onnxruntime", "openvino"]
    assert (report["baseline"], report["batch"], report["data"]) == ("onnxruntime", 3, "random")
    assert "core" in report["host"]
    for row in report["results"]:
        latency, low_high = row["latency_ms"], row["speedup"]["interval"]
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
        assert low_high[0] <= row["speedup"]["value"] <= low_high[1]
        assert (row["rounds"], row["threads"]) == (8, 1)
        assert row["version"]
        assert row["placement"].startswith("CPU")


def test_the_table(bench, tmp_path):
    onnx.save(mlp(), tmp_path / "mlp.onnx")
    code, out, _ = bench(tmp_path / "mlp.onnx", "--rounds", 6, "--threads", 2)
    assert code == 0
    assert "p50 ms" in out.splitlines()[0]
    assert "baseline" in out
    assert "threads 2" in out
    assert out.splitlines()[-1].startswith("measured on: ")


@pytest.mark.parametrize("packed", [False, True])
def test_the_variants_of_a_bundle(bench, tmp_path, packed):
    path = make_bundle(tmp_path, broken=("fp32",), packed=packed, profile="somebodys-own")
    code, out, _ = bench(path, "--rounds", 6, "--json")
    report = json.loads(out)
    assert code == 0
    assert [row["name"] for row in report["results"]] == ["somebodys-own.onnxruntime.main"]
    (left,) = report["left_out"]
    assert left["name"] == "somebodys-own.onnxruntime.fp32"
    assert "cannot load" in left["reason"]


def test_variants_for_another_machine_are_left_out(bench, tmp_path):
    path = make_bundle(tmp_path, profile="npu-rockchip-rk3588")
    code, out, err = bench(path)
    assert (code, out) == (2, "")
    assert "does not fit this machine" in err


def test_evaluation_data(bench, tmp_path):
    onnx.save(cnn(), tmp_path / "cnn.onnx")
    images = np.zeros((5, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "named.npz", **{"test/image": images, "scale/image": 0.5})
    np.savez(tmp_path / "short.npz", x_test=images)
    for name in ("named", "short"):
        data = tmp_path / f"{name}.npz"
        code, out, _ = bench(
            tmp_path / "cnn.onnx", "--data", data, "--batch", 5, "--rounds", 6, "--json"
        )
        assert code == 0
        assert json.loads(out)["data"] == str(data)
    code, _, err = bench(tmp_path / "cnn.onnx", "--data", data, "--batch", 6)
    assert code == 2
    assert "at least 6" in err


def test_data_that_does_not_fit(bench, tmp_path):
    onnx.save(mlp(), tmp_path / "mlp.onnx")
    (tmp_path / "bad.npz").write_bytes(b"nonsense")
    np.savez(tmp_path / "other.npz", **{"test/z": np.zeros((3, 4))})
    np.savez(tmp_path / "shape.npz", **{"test/x": np.zeros((3, 5))})
    for name, words in (
        ("bad", "not a file of arrays"),
        ("other", "no input 'x'"),
        ("shape", "of shape"),
        ("absent", "cannot read"),
    ):
        code, out, err = bench(tmp_path / "mlp.onnx", "--data", tmp_path / f"{name}.npz")
        assert (code, out) == (2, "")
        assert words in err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.onnx", None, "is not there"),
        ("model.pt", b"x", "no runtime opens"),
        ("cut.onnx", b"x", "cannot load"),
        ("bundle.edgeml", b"x", "bundle"),
    ],
)
def test_what_cannot_be_measured(bench, tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, out, err = bench(tmp_path / name, "--json")
    assert code == 2
    assert words in err
    assert json.loads(out)["error"]["exit_code"] == 2


def test_a_model_with_one_fixed_batch(bench, tmp_path):
    model = mlp()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "mlp.onnx")
    code, _, err = bench(tmp_path / "mlp.onnx", "--batch", 2)
    assert code == 2
    assert "takes 1 samples" in err
