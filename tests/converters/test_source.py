"""Sources: whole, finite, loadable, or one clear error that fits the fault."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml.digest import sha256_file
from edgeml.errors import EdgemlError, MissingPackageError, ModelError
from edgeml_converters.inspect import inspect_model
from edgeml_converters.source import Source, sniff
from tests.support.corpus import CORPUS, corpus_file
from tests.support.models import cnn, mlp


def save(folder, model, name="model.onnx"):
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def test_a_good_model_is_described(tmp_path):
    path = save(tmp_path, mlp())
    source = Source.open(path)
    assert [s.name for s in source.inputs] == ["x"]
    assert source.outputs[0].shape == (-1, 3)
    assert source.opset == 17
    assert source.ops == {"Gemm": 2, "Relu": 1}
    assert source.digest == sha256_file(path)
    assert source.warnings == ()


def test_shapes_are_fixed_and_checked(tmp_path):
    path = save(tmp_path, mlp())
    source = Source.open(path, {"x": (2, 4)})
    assert source.inputs[0].shape == (2, 4)
    assert source.outputs[0].shape == (2, 3)
    with pytest.raises(ModelError, match="axis 1 is 4 in the model, got 5"):
        Source.open(path, {"x": (1, 5)})
    with pytest.raises(ModelError, match="no input 'z'"):
        Source.open(path, {"z": (1, 4)})
    with pytest.raises(ModelError, match="has 2 axes"):
        Source.open(path, {"x": (1, 2, 4)})


def external(folder, **changes):
    """Save a model whose first weight lies in a file of its own."""
    model = mlp()
    tensor = model.graph.initializer[0]
    (folder / "w.bin").write_bytes(tensor.raw_data)
    entries = {"location": "w.bin", "offset": "0", "length": str(len(tensor.raw_data))} | changes
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return save(folder, model)


def test_external_data_is_moved_into_the_model_and_counts_in_the_digest(tmp_path):
    path = external(tmp_path)
    source = Source.open(path)
    assert source.model.graph.initializer[0].raw_data == (tmp_path / "w.bin").read_bytes()
    before = source.digest
    (tmp_path / "w.bin").write_bytes(bytes(len(source.model.graph.initializer[0].raw_data)))
    assert Source.open(path).digest != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"location": "../w.bin"}, "outside its folder"),
        ({"location": "/etc/passwd"}, "outside its folder"),
        ({"location": "C:\\w.bin"}, "outside its folder"),
        ({"location": ""}, "outside its folder"),
        ({"location": "link.bin"}, "outside its folder"),
        ({"location": "gone.bin"}, "needs the external data file 'gone.bin'"),
        ({"length": "9999"}, "expected 9999"),
        ({"length": "4"}, "has 4 bytes, expected 128"),
        ({"offset": "-5"}, "bytes from offset"),
        ({"offset": "x"}, "is no number"),
    ],
)
def test_external_data_that_is_wrong_or_escapes(tmp_path, changes, message):
    folder = tmp_path / "inside"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(4096))
    (folder / "link.bin").symlink_to(secret)
    with pytest.raises(ModelError, match=message):
        Source.open(external(folder, **changes))


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"", "empty", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs", "git lfs|Git LFS"),
        (b"PK\x03\x04abc", "zip", "zip archive"),
        (b"\x89HDF\r\n\x1a\n", "hdf5", "HDF5"),
        (b"\x80\x04\x95", "pickle", "pickle"),
        (b"\x40\0\0\0\0\0\0\0{}", "safetensors", "weights only"),
        (b"<!DOCTYPE html><html>", "html", "web page"),
        (b"\x1c\0\0\0TFL3" + bytes(40), "tflite", "a TFLite model under another name"),
        (b"hello, I am text", "unknown", "neither"),
    ],
)
def test_other_files_are_named(tmp_path, content, kind, message):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert sniff(path) == kind
    with pytest.raises(ModelError, match=message):
        Source.open(path)


def test_truncation_says_how_much_is_missing(tmp_path):
    path = save(tmp_path, mlp())
    data = path.read_bytes()
    for size in range(1, len(data), 29):
        path.write_bytes(data[:size])
        with pytest.raises(ModelError) as caught:
            Source.open(path)
        assert "\n" not in caught.value.message
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=f"is truncated: it has {len(data) // 2} bytes"):
        Source.open(path)


def test_paths_that_are_no_files(tmp_path):
    save(tmp_path, mlp(), "digits.onnx")
    with pytest.raises(ModelError, match="there is no file") as caught:
        Source.open(tmp_path / "digit.onnx")
    assert "digits.onnx" in caught.value.hint
    with pytest.raises(ModelError, match="is a folder"):
        Source.open(tmp_path)


def test_weights_that_are_not_finite(tmp_path):
    model = mlp()
    values = numpy_helper.to_array(model.graph.initializer[2]).copy()
    values[0, 0] = np.inf
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(values, "w2"))
    with pytest.raises(ModelError, match=r"weight 'w2' holds 1 non-finite of 24 values"):
        Source.open(save(tmp_path, model))


def test_an_infinite_mask_is_only_a_warning(tmp_path):
    model = mlp()
    mask = numpy_helper.from_array(np.float32([np.inf, np.inf, 5]), "mask")
    model.graph.initializer.append(mask)
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.append(helper.make_node("Min", ["raw", "mask"], ["y"], name="min"))
    source = Source.open(save(tmp_path, model))
    assert source.warnings == ("constant 'mask' holds 2 infinite values",)


@pytest.mark.parametrize(
    ("domain", "op", "error", "message"),
    [
        ("", "Reluu", ModelError, "operator 'Reluu' .node 'relu1'.* is unknown"),
        ("ai.onnx.contrib", "StringSplit", MissingPackageError, "onnxruntime-extensions"),
        ("acme", "Fancy", ModelError, "custom domain 'acme'"),
    ],
)
def test_unknown_operators(tmp_path, domain, op, error, message):
    model = mlp()
    model.graph.node[1].op_type, model.graph.node[1].domain = op, domain
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    with pytest.raises(error, match=message):
        Source.open(save(tmp_path, model))


def test_weights_of_the_wrong_shape(tmp_path):
    model = cnn()
    model.graph.initializer[4].CopyFrom(
        numpy_helper.from_array(np.zeros((10, 12), np.float32), "w3")
    )
    with pytest.raises(ModelError, match="contradict each other|cannot load"):
        Source.open(save(tmp_path, model))


def test_a_model_without_outputs_or_operator_set(tmp_path):
    model = mlp()
    del model.graph.output[:]
    with pytest.raises(ModelError, match="without outputs"):
        Source.open(save(tmp_path, model))
    with pytest.raises(ModelError, match="holds no graph"):
        Source.open(save(tmp_path, onnx.ModelProto(ir_version=8)))
    model = mlp()
    model.opset_import[0].version = 999
    with pytest.raises(ModelError, match="operator set 999"):
        Source.open(save(tmp_path, model))


#: Name in the corpus -> what its error must say.
FAULTS = {
    "bad/empty.onnx": "is empty",
    "bad/external_data_path_escape.onnx": "outside its folder",
    "bad/git_lfs_pointer.onnx": "Git LFS pointer",
    "bad/missing_external_data.onnx": "no_such_file.bin",
    "bad/nan_weights.onnx": "non-finite",
    "bad/needs_ort_extensions.onnx": "onnxruntime-extensions",
    "bad/tflm_only_person_detect.tflite": "quantized_dimension",
    "bad/truncated.onnx": "is truncated",
    "bad/truncated.tflite": "is truncated",
    "bad/unresolved_custom_op.tflite": "custom operator 'fake-op-double'",
    "bad/weight_shape_mismatch.onnx": "shapes of the model contradict",
}


@pytest.mark.corpus
@pytest.mark.parametrize("name", sorted(FAULTS))
def test_every_broken_file_gets_the_error_that_fits(name):
    with pytest.raises(EdgemlError) as caught:
        inspect_model(corpus_file(name))
    assert caught.value.exit_code in (2, 3)
    assert FAULTS[name] in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    if name.endswith(".onnx"):
        with pytest.raises(type(caught.value)):
            Source.open(corpus_file(name))


@pytest.mark.corpus
def test_the_list_of_broken_files_is_complete():
    rows = json.loads((CORPUS / "INDEX.json").read_text())
    assert {r["name"] for r in rows if r["name"].startswith("bad/")} == set(FAULTS)
