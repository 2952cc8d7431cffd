"""What inspect says of good models."""

import json

import numpy as np
import onnx
import pytest

from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import COMMANDS
from edgeml.plugins import load
from edgeml_converters.inspect import inspect_model
from edgeml_converters.passes.base import PassContext
from tests.support.corpus import CORPUS, corpus_file
from tests.support.models import cnn, mlp


def test_onnx(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp().SerializeToString())
    found = inspect_model(path)
    assert json.loads(json.dumps(found)) == found
    assert found["format"] == "onnx"
    assert found["parameters"] == 4 * 8 + 8 + 8 * 3 + 3
    assert found["quantised"] is False
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": [-1, 4]}]


def test_a_quantised_model_tells_what_is_computed_in_int8(tmp_path, capsys):
    context = PassContext({"image": np.ones((4, 1, 8, 8), np.float32)}, 0, 1)
    made = load("passes", "quantize_static")().run(cnn(), context)
    onnx.save(made.model, tmp_path / "q.onnx")
    found = inspect_model(tmp_path / "q.onnx")
    assert json.loads(json.dumps(found)) == found
    seen = found["coverage"]["onnxruntime"]
    assert seen["products"] == 3
    assert seen["in_int8"] + len(seen["in_float"]) == 3
    group = LazyGroup(COMMANDS, name="edgeml")
    assert run(group, ["inspect", str(tmp_path / "q.onnx")]) == 0
    assert f"onnxruntime: products 3, in int8 {seen['in_int8']}" in capsys.readouterr().out


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("models/ic_resnet8_int8.tflite", "full integer"),
        ("models/kws_dscnn_hybrid.tflite", "dynamic range"),
        ("models/hello_world_float.tflite", ""),
        ("models/lgbm_classifier.onnx", ""),
    ],
)
def test_files_of_the_corpus(name, scheme):
    found = inspect_model(corpus_file(name))
    row = next(r for r in json.loads((CORPUS / "INDEX.json").read_text()) if r["name"] == name)
    assert json.loads(json.dumps(found)) == found
    assert found["ops"] == row["ops"]
    assert found["scheme"] == scheme
    assert found["size_bytes"] == row["size"]
    assert [i["name"] for i in found["inputs"]] == [i[0] for i in row["inputs"]]


def test_people_are_told_in_words(tmp_path, capsys):
    onnx.save(mlp(), tmp_path / "mlp.onnx")
    assert run(LazyGroup(COMMANDS, name="edgeml"), ["inspect", str(tmp_path / "mlp.onnx")]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "quantised: no" in told
    assert "scheme: none" in told
