"""What inspect says of good models."""

import json

import pytest

from edgeml_converters.inspect import inspect_model
from tests.support.corpus import CORPUS, corpus_file
from tests.support.models import mlp


def test_onnx(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp().SerializeToString())
    found = inspect_model(path)
    assert json.loads(json.dumps(found)) == found
    assert found["format"] == "onnx"
    assert found["parameters"] == 4 * 8 + 8 + 8 * 3 + 3
    assert found["quantised"] is False
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": [-1, 4]}]


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
