"""Models larger than one protobuf message: weights are streamed from file to file, and watched."""

import resource

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeml
from edgeml.bundle import Bundle
from edgeml.errors import ModelError
from edgeml.runtime.bind import open_variant
from edgeml_converters.inspect import inspect_model
from edgeml_converters.model import (
    inlined,
    model_bytes,
    model_digest,
    read_model,
    run_model,
    save_model,
)
from edgeml_converters.passes.base import PassContext
from edgeml_converters.passes.opset import UpgradeOpset
from edgeml_converters.passes.shapes import FixBatch
from edgeml_converters.passes.simplify import Simplify
from edgeml_converters.source import Source, stored
from edgeml_converters.source.files import check_written
from tests.support.models import mlp

SEEN = 64  # rows of the table that the tests ask for


def lookup(folder, rows, width, opset=17):
    """A table of weights in a sparse file of its own: ids [n, 4] -> scores [n, 8]."""
    table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[rows, width])
    table.data_location = TensorProto.EXTERNAL
    size = rows * width * 4
    rng = np.random.default_rng(0)
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(size)
        file.write(rng.normal(size=(SEEN, width)).astype(np.float32).tobytes())
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(size))):
        table.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"], name="lookup"),
            helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0, name="mean"),
            helper.make_node("Gemm", ["mean", "w"], ["y"], name="dense"),
        ],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [table, numpy_helper.from_array(rng.normal(size=(width, 8)).astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    (folder / "lookup.onnx").write_bytes(model.SerializeToString())
    return folder / "lookup.onnx"


def ids(n):
    return np.random.default_rng(n).integers(0, SEEN, (n, 4))


@pytest.fixture
def low(monkeypatch):
    """Everything above 4 KiB of weights counts as large."""
    monkeypatch.setattr(stored, "INLINE", 4096)


def test_a_large_source_stays_in_its_file(tmp_path, low):
    path = lookup(tmp_path, 1000, 16)
    source = Source.open(path)
    table = source.model.graph.initializer[0]
    assert stored.is_external(table)
    assert stored.place_of(table).file == (tmp_path / "weights.bin").resolve()
    assert source.model.ByteSize() < 4096
    got = run_model(source.model, {"ids": ids(8)})["y"]
    want = run_model(inlined(source.model), {"ids": ids(8)})["y"]
    assert np.array_equal(got, want)
    described = inspect_model(path)
    assert described["parameters"] == 1000 * 16 + 16 * 8
    assert (
        described["size_bytes"] == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    )
    with pytest.raises(ModelError, match="more than the 2 GiB"):
        model_bytes(source.model)


def test_a_large_model_has_one_digest_wherever_its_weights_lie(tmp_path, low):
    model = Source.open(lookup(tmp_path, 1000, 16)).model
    whole = inlined(model)
    assert not any(stored.is_external(t) for t in whole.graph.initializer)
    assert model_digest(whole) == model_digest(model)
    before = model_digest(model)
    for name, one in (("a", model), ("b", whole)):
        folder = tmp_path / name
        folder.mkdir()
        files = save_model(one, folder / "m.onnx")
        assert [file.name for file in files] == ["m.onnx", "m.onnx.data"]
        assert model_digest(read_model(folder / "m.onnx")) == before
        assert stored.tensor_digests(read_model(folder / "m.onnx")) == stored.tensor_digests(model)
    onnx.checker.check_model(str(tmp_path / "b" / "m.onnx"))
    loaded = onnx.load(tmp_path / "b" / "m.onnx")
    assert stored.tensor_digests(loaded) == stored.tensor_digests(model)
    # The one file of the source is linked, not copied, where the file system can.
    assert (tmp_path / "a" / "m.onnx.data").samefile(tmp_path / "weights.bin")


def test_weights_in_many_files_become_one(tmp_path, low):
    model = mlp(64, 64, 32)
    for tensor in model.graph.initializer:
        (tmp_path / f"{tensor.name}.bin").write_bytes(bytes(7) + tensor.raw_data)
        size = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", f"{tensor.name}.bin"), ("offset", 7), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    source = Source.open(tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()
    save_model(source.model, tmp_path / "out" / "m.onnx")
    assert stored.tensor_digests(read_model(tmp_path / "out" / "m.onnx")) == stored.tensor_digests(
        mlp(64, 64, 32)
    )
    offsets = [
        stored.place_of(t).offset
        for t in read_model(tmp_path / "out" / "m.onnx").graph.initializer
        if stored.is_external(t)
    ]
    assert all(offset % 4096 == 0 for offset in offsets)


def test_passes_go_over_a_large_model(tmp_path, low):
    model = inlined(Source.open(lookup(tmp_path, 1000, 16, opset=11)).model)
    feed = {"ids": ids(8)}
    want = run_model(model, feed)["y"]
    for one in (UpgradeOpset(), Simplify(), FixBatch(8)):
        model = one.run(model, PassContext()).model
    assert model.opset_import[0].version == 17
    assert np.abs(run_model(model, feed)["y"] - want).max() < 1e-6


def test_weights_that_are_not_finite_are_found_in_their_file(tmp_path, low):
    path = lookup(tmp_path, 1000, 16)
    with (tmp_path / "weights.bin").open("r+b") as file:
        file.seek(999 * 16 * 4)
        file.write(np.float32([np.nan, 1, np.nan]).tobytes())
    with pytest.raises(ModelError, match="weight 'table' holds 2 non-finite of 16000"):
        Source.open(path)


def test_a_file_that_was_written_wrongly_is_found(tmp_path, low):
    model = Source.open(lookup(tmp_path, 1000, 16)).model
    whole = inlined(model)
    (tmp_path / "out").mkdir()
    save_model(whole, tmp_path / "out" / "m.onnx")
    check_written(model, tmp_path / "out" / "m.onnx")
    with (tmp_path / "out" / "m.onnx.data").open("r+b") as file:
        file.seek(100)
        file.write(b"\x55")
    with pytest.raises(ModelError, match="other bytes for the weight 'table'"):
        check_written(model, tmp_path / "out" / "m.onnx")


def test_a_file_that_vanishes_meanwhile_is_one_line(tmp_path, low):
    model = Source.open(lookup(tmp_path, 1000, 16)).model
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="weights of 'table' cannot be read"):
        inlined(model)


@pytest.mark.slow
@pytest.mark.timeout(900)  # gigabytes, on a disk that others use as well
def test_a_model_of_more_than_2_gib_becomes_a_bundle(tmp_path, own_profile):
    rows, width = 525_000, 1024
    assert rows * width * 4 > stored.LIMIT
    path = lookup(tmp_path, rows, width)
    np.savez(tmp_path / "data.npz", **{"calib/ids": ids(8), "test/ids": ids(16)})
    result = edgeml.convert(
        path,
        own_profile("large", runtimes="'onnxruntime'", precisions="'fp32'"),
        data=tmp_path / "data.npz",
        effort="quick",
        out=tmp_path / "large.edgeml",
    )
    assert result.results[0].winner.size_bytes > stored.LIMIT
    bundle = Bundle.open(tmp_path / "large.edgeml")
    variant = bundle.manifest.variants[0]
    assert [ref.path.rpartition("/")[2] for ref in variant.files] == [
        "model.onnx",
        "model.onnx.data",
    ]
    bundle.unpack(tmp_path / "unpacked")
    program = open_variant(
        tmp_path / "unpacked", variant, bundle.manifest.inputs, bundle.manifest.outputs
    )
    got = program.session().run({"ids": ids(4)})["y"]
    program.close()
    table = np.memmap(tmp_path / "weights.bin", np.float32, "r", shape=(rows, width))
    weights = numpy_helper.to_array(onnx.load(path, load_external_data=False).graph.initializer[1])
    assert np.abs(got - table[ids(4)].mean(1) @ weights).max() < 1e-3


def test_opening_reads_a_part_at_a_time(tmp_path, low):
    """The peak of this process grows by less than the weights."""
    path = lookup(tmp_path, 1 << 20, 64)  # 256 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = Source.open(path).model
    save_model(model, tmp_path / "copy.onnx")
    digests = stored.tensor_digests(read_model(tmp_path / "copy.onnx"))
    assert digests == stored.tensor_digests(model)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    # Mapped pages count as well while they are read; nothing is held twice.
    assert grown < 1.5 * 256
