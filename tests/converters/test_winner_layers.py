"""What is told of the layers of a winner, from a real model to the bundle."""

import json

import numpy as np
import onnx
import pytest

from edgeml.bundle import Bundle
from edgeml.plugins import load
from edgeml.tensors import TensorSpec
from edgeml_converters.api import convert
from edgeml_converters.layers.table import layer_table, portable_table
from edgeml_converters.passes.base import PassContext
from tests.support.models import cnn

INPUTS = (TensorSpec("image", "float32", (-1, 1, 8, 8)),)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return {"image": rng.normal(size=(64, 1, 8, 8)).astype(np.float32)}


def quantised(name, data, model=None):
    return load("passes", name)().run(model or cnn(), PassContext(data, 0, 1)).model


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_layers_of_an_onnx_file(tmp_path, data, runtime):
    source = cnn()
    onnx.save(source, tmp_path / "source.onnx")
    onnx.save(quantised("quantize_static", data), tmp_path / "q.onnx")
    args = (runtime, {}, INPUTS, data)
    rows = layer_table(source, tmp_path / "source.onnx", tmp_path / "q.onnx", *args)
    products = [row for row in rows if row.weighted]
    assert [row.name for row in products] == ["conv1", "conv2", "fc"]
    assert "int8" in {row.precision for row in products}
    assert all(row.sqnr_db is None or 10 < row.sqnr_db < 100 for row in products)
    assert any(row.sqnr_db for row in products)
    assert all(row.source_us > 0 and row.latency_us > 0 for row in products)
    assert 0 < sum(row.share for row in rows) <= 1.001


def test_a_float_file_has_float_layers(tmp_path, data):
    onnx.save(cnn(), tmp_path / "source.onnx")
    file = tmp_path / "source.onnx"
    rows = layer_table(cnn(), file, file, "onnxruntime", {}, INPUTS, data)
    assert {row.precision for row in rows} == {"float"}


def test_layers_of_a_file_whose_runtime_tells_nothing(data):
    fixed = load("passes", "fix_batch")(batch=1).run(cnn(), PassContext(data, 0, 1)).model
    rows = portable_table(cnn(), quantised("quantize_portable", data, fixed), data)
    assert [row.name for row in rows] == ["conv1", "conv2", "fc"]
    assert {row.precision for row in rows} == {"int8"}
    assert any(row.sqnr_db and row.sqnr_db > 10 for row in rows)
    assert {row.latency_us for row in rows} == {None}


def test_the_bundle_tells_them_and_again_the_same(tmp_path, data, own_profile, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    onnx.save(cnn(channels=32), "cnn.onnx")
    np.savez("data.npz", **{"calib/image": data["image"], "test/image": data["image"]})
    profile = own_profile("layered", runtimes="'onnxruntime'")
    asked = {"data": "data.npz", "effort": "quick", "objective": "size", "max_drop": 0.5}
    first = convert("cnn.onnx", profile, **asked)
    (result,) = first.results
    assert result.winner.precision == "int8"
    assert result.layers
    bundle = Bundle.open(tmp_path / first.bundle)
    told = json.loads(bundle.read(bundle.manifest.measurements))
    assert [row["name"] for row in told["results"][0]["layers"]] == [x.name for x in result.layers]
    report = next(r for r in bundle.manifest.report if r.path == "report/report.md")
    assert b"Layers of the winner" in bundle.read(report)
    assert convert("cnn.onnx", profile, **asked).digest == first.digest
