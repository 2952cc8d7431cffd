"""Every runtime, the same models, the same checks."""

import subprocess
import sys
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeml.errors import DeviceError, ModelError, RequestError, UsageError
from edgeml.runtime import ProgramOptions, get_runtime, runtime_names
from edgeml.runtime.common import PROBE_ONNX, PROBE_TFLITE
from tests.support.models import cnn, mlp
from tests.support.tflite import mlp_tflite

CASES = [
    "onnxruntime-mlp",
    "onnxruntime-cnn",
    "openvino-mlp",
    "openvino-cnn",
    "openvino-ir",
    "litert-mlp",
    "litert-unsigned",
]
RUNTIMES = ["onnxruntime", "openvino", "litert"]


class Case:
    """One model file for one runtime, and what it should compute."""

    def __init__(self, name, folder):
        runtime, kind = name.split("-")
        model = cnn() if kind == "cnn" else mlp()
        self.runtime = get_runtime(runtime)
        self.reference = ReferenceEvaluator(model)
        self.input = model.graph.input[0].name
        self.output = model.graph.output[0].name
        self.shape = (1, 8, 8) if kind == "cnn" else (4,)
        self.path = folder / f"{kind}.onnx"
        onnx.save(model, self.path)
        if runtime == "litert":
            weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
            self.path = folder / f"{kind}.tflite"
            self.path.write_bytes(mlp_tflite(weights, signature=kind == "mlp"))
        elif kind == "ir":
            import openvino

            read = openvino.Core().read_model(str(self.path))
            self.path = folder / "mlp.xml"
            openvino.save_model(read, str(self.path), compress_to_fp16=False)

    def feed(self, batch, seed=0):
        rng = np.random.default_rng(seed)
        return {self.input: rng.normal(size=(batch, *self.shape)).astype(np.float32)}

    def expected(self, feed):
        return self.reference.run(None, feed)[0]


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def program(case):
    program = case.runtime.prepare(case.path, ProgramOptions(threads=1))
    yield program
    program.close()


@pytest.fixture
def session(program):
    session = program.session()
    yield session
    session.close()


def test_the_built_in_runtimes_are_known():
    assert set(RUNTIMES) <= set(runtime_names())


@pytest.mark.parametrize("name", RUNTIMES)
def test_check_says_usable(name):
    found = get_runtime(name).check()
    assert found.usable, found.reason
    assert found.version[0].isdigit()
    assert found.devices
    assert get_runtime(name).name == name


def test_the_probe_models_are_sound():
    model = onnx.load_from_string(PROBE_ONNX)
    onnx.checker.check_model(model, full_check=True)
    assert PROBE_TFLITE[4:8] == b"TFL3"


def test_specifications(case, program):
    (given,) = program.inputs
    (made,) = program.outputs
    assert (given.name, given.dtype, given.shape) == (case.input, "float32", (-1, *case.shape))
    assert (made.name, made.dtype) == (case.output, "float32")
    assert made.shape[1:] == case.expected(case.feed(1)).shape[1:]
    assert program.runtime == case.runtime.name


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_numbers_are_those_of_the_reference(case, session, batch):
    feed = case.feed(batch, seed=batch)
    result = session.run(feed)
    assert list(result) == [case.output]
    np.testing.assert_allclose(result[case.output], case.expected(feed), rtol=1e-4, atol=1e-5)


def test_a_batch_may_grow_and_shrink(case, session):
    for batch in (3, 1, 8, 3):
        feed = case.feed(batch, seed=batch)
        np.testing.assert_allclose(
            session.run(feed)[case.output], case.expected(feed), rtol=1e-4, atol=1e-5
        )


def test_a_later_run_leaves_earlier_outputs_alone(case, session):
    first = session.run(case.feed(2, seed=1))[case.output]
    kept = first.copy()
    second = session.run(case.feed(2, seed=2))[case.output]
    session.close()
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)
    first[:] = 0  # they belong to the caller: writable


def test_arrays_that_are_not_contiguous(case, session):
    whole = case.feed(6)[case.input]
    feed = {case.input: whole[::2]}
    np.testing.assert_allclose(
        session.run(feed)[case.output], case.expected(feed), rtol=1e-4, atol=1e-5
    )


def test_wrong_feeds_are_refused(case, session):
    right = case.feed(1)[case.input]
    wrong = {
        "unknown input": {"nonsense": right},
        "is missing": {},
        "type float64": {case.input: right.astype(np.float64)},
        "shape": {case.input: right[..., :-1]},
        "has shape": {case.input: right[0]},
    }
    for words, feed in wrong.items():
        with pytest.raises(RequestError, match=words):
            session.run(feed)
    assert session.run({case.input: right})  # and it still works


def test_placement_is_what_was_asked_for(program):
    assert program.placement in ("CPU", "CPUExecutionProvider")


@pytest.mark.parametrize("device", ["GPU.7", "CUDAExecutionProvider", "NPU", "nonsense"])
def test_a_device_that_is_not_there(case, device):
    with pytest.raises(DeviceError, match=device):
        case.runtime.prepare(case.path, ProgramOptions(device=device))


def test_a_provider_that_takes_nothing_is_no_placement(tmp_path):
    """The Azure provider is in the library's wheels, starts everywhere, and runs nothing here."""
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    with pytest.raises(DeviceError, match="placed on CPUExecutionProvider, expected Azure"):
        get_runtime("onnxruntime").prepare(path, ProgramOptions(device="AzureExecutionProvider"))


def test_an_unknown_option(case):
    with pytest.raises(UsageError, match="nonsense"):
        case.runtime.prepare(case.path, ProgramOptions(extra={"nonsense": "1"}))


@pytest.mark.parametrize("fault", ["cut", "text", "empty", "absent", "ending", "folder"])
def test_files_that_are_no_models(case, tmp_path, fault):
    bad = tmp_path / case.path.name
    content = case.path.read_bytes()
    if fault == "cut":
        bad.write_bytes(content[: len(content) // 2])
    elif fault == "text":
        bad.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    elif fault == "empty":
        bad.write_bytes(b"")
    elif fault == "ending":
        bad = tmp_path / "model.bin"
        bad.write_bytes(content)
    elif fault == "folder":
        bad.mkdir()
    with pytest.raises(ModelError) as raised:
        case.runtime.prepare(bad, ProgramOptions())
    assert "\n" not in raised.value.message
    assert bad.name in raised.value.message


def test_closing_twice_and_running_after(case, program):
    session = program.session()
    feed = case.feed(1)
    session.run(feed)
    session.close()
    session.close()
    with pytest.raises(DeviceError, match="closed"):
        session.run(feed)
    program.close()
    program.close()
    with pytest.raises(DeviceError, match="closed"):
        program.session()


def test_a_session_outlives_its_program(case):
    program = case.runtime.prepare(case.path, ProgramOptions())
    session = program.session()
    program.close()
    feed = case.feed(1)
    np.testing.assert_allclose(
        session.run(feed)[case.output], case.expected(feed), rtol=1e-4, atol=1e-5
    )
    session.close()


def test_two_sessions_from_two_threads(case, program):
    wrong = []

    def work(seed):
        session = program.session()
        for turn in range(40):
            feed = case.feed(1 + turn % 3, seed=seed * 100 + turn)
            got = session.run(feed)[case.output]
            if not np.allclose(got, case.expected(feed), rtol=1e-4, atol=1e-5):
                wrong.append((seed, turn))
        session.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_a_missing_package_names_the_line_that_installs_it(tmp_path):
    code = """
import sys
from pathlib import Path
for name in ("onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime"):
    sys.modules[name] = None
from edgeml.errors import MissingPackageError
from edgeml.runtime import ProgramOptions, get_runtime
for name in ("onnxruntime", "openvino", "litert"):
    runtime = get_runtime(name)
    found = runtime.check()
    assert not found.usable and "not installed" in found.reason, found
    try:
        runtime.prepare(Path("model" + runtime.suffixes[0]), ProgramOptions())
    except MissingPackageError as error:
        assert "pip install 'edgeml-kit[" in error.hint, error.hint
        print(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.split() == RUNTIMES, done.stderr


def test_onnxruntime_options_reach_the_library(tmp_path):
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    optimised = tmp_path / "optimised.onnx"
    runtime = get_runtime("onnxruntime")
    extra = {
        "graph_optimization_level": "basic",
        "enable_cpu_mem_arena": "0",
        "session.set_denormal_as_zero": "1",
        "session.optimized_model_filepath": str(optimised),
    }
    runtime.prepare(path, ProgramOptions(extra=extra)).close()
    for wrong in ({"graph_optimization_level": "most"}, {"enable_cpu_mem_arena": "yes"}):
        with pytest.raises(UsageError, match="expected"):
            runtime.prepare(path, ProgramOptions(extra=wrong))


def test_onnxruntime_refuses_what_is_not_a_tensor(tmp_path):
    """A sequence is what exporters of classical models give for probabilities."""
    node = helper.make_node("SequenceConstruct", ["x", "x"], ["s"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    s = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [2])
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [s]), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 9
    onnx.save(model, tmp_path / "sequence.onnx")
    with pytest.raises(ModelError, match="only plain tensors"):
        get_runtime("onnxruntime").prepare(tmp_path / "sequence.onnx", ProgramOptions())


def test_openvino_computes_in_float32_unless_told_otherwise(tmp_path):
    path = tmp_path / "cnn.onnx"
    model = cnn()
    onnx.save(model, path)
    feed = {"image": np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32)}
    wanted = ReferenceEvaluator(model).run(None, feed)[0]
    runtime = get_runtime("openvino")
    exact = runtime.prepare(path, ProgramOptions(cache=tmp_path / "cache"))
    np.testing.assert_allclose(exact.session().run(feed)["logits"], wanted, rtol=1e-4, atol=1e-5)
    assert any((tmp_path / "cache").iterdir())
    again = runtime.prepare(path, ProgramOptions(cache=tmp_path / "cache"))
    np.testing.assert_allclose(again.session().run(feed)["logits"], wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="f99"):
        runtime.prepare(path, ProgramOptions(extra={"INFERENCE_PRECISION_HINT": "f99"}))


def test_openvino_does_not_pin_unless_told(tmp_path):
    """Pinned, the one-thread models of two processes share one core."""
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    runtime = get_runtime("openvino")
    for extra, pinned in (({}, False), ({"ENABLE_CPU_PINNING": "YES"}, True)):
        program = runtime.prepare(path, ProgramOptions(extra=extra))
        assert program._compiled.get_property("ENABLE_CPU_PINNING") is pinned
        assert program._compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_a_failed_run_is_one_line_and_no_log(tmp_path, capfd):
    """The shape fits the specification, and an operation inside cannot take it."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
    shape = numpy_helper.from_array(np.array([2, 2], np.int64), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])], "g", [x], [y], [shape]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, tmp_path / "reshape.onnx")
    for name in ("onnxruntime", "openvino"):
        session = get_runtime(name).prepare(tmp_path / "reshape.onnx", ProgramOptions()).session()
        for wrong in (5, 3, 5, 1000):
            with pytest.raises((RequestError, DeviceError)) as raised:
                session.run({"x": np.zeros(wrong, np.float32)})
            assert "\n" not in raised.value.message
            assert session.run({"x": np.ones(4, np.float32)})["y"].tolist() == [[1, 1], [1, 1]]
    assert capfd.readouterr().err == ""


def test_litert_is_quiet_and_hides_nothing_else(capfd):
    import os

    from edgeml.runtime.quiet import without_lines

    with without_lines(b"INFO: Created"):
        os.write(2, b"INFO: Created something\nWARNING: mind this\n")
    assert capfd.readouterr().err == "WARNING: mind this\n"
