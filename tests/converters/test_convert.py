"""edgeml.convert from end to end, with real runtimes on models made on the spot."""

import itertools
import json
import os
import shutil
import subprocess
import sys

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeml
from edgeml.bundle import Bundle
from edgeml.drift.reference import decode
from edgeml.errors import (
    DataError,
    EdgemlError,
    GateError,
    MissingPackageError,
    ModelError,
    ProfileError,
    UsageError,
)
from edgeml.manifest import EvidenceState
from edgeml.runtime.bind import open_variant
from edgeml.runtime.facts import device_facts
from edgeml.runtime.golden import golden_check, load_arrays
from edgeml_converters.model import run_model
from edgeml_converters.results import ConvertResult
from tests.support import models

PROFILE = "cpu-x86-64"


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A small CNN, and data that it labels itself."""
    folder = tmp_path_factory.mktemp("case")
    model = models.cnn()
    onnx.save(model, folder / "Tiny CNN.onnx")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(460, 1, 8, 8)).astype(np.float32)
    labels = run_model(model, {"image": images})["logits"].argmax(1)
    np.savez(
        folder / "data.npz",
        **{
            "calib/image": images[:60],
            "test/image": images[60:],
            "test/labels": labels[60:],
            "classes": np.array([f"class {i}" for i in range(10)]),
        },
    )
    return folder


@pytest.fixture(scope="module")
def converted(case):
    out = case / "made" / "tiny.edgeml"
    result = edgeml.convert(
        case / "Tiny CNN.onnx",
        [PROFILE, "tpu-lite-generic"],
        data=case / "data.npz",
        max_drop=0.1,
        effort="quick",
        out=out,
        report=case / "report",
    )
    return result, Bundle.open(out)


def test_the_result_is_the_contract(converted):
    result, bundle = converted
    told = json.loads(msgspec.json.encode(result))
    assert told["bundle"].endswith("tiny.edgeml")
    assert told["digest"] == bundle.digest
    assert [one["profile"] for one in told["results"]] == [PROFILE, "tpu-lite-generic"]
    keys = {"runtime", "precision", "recipe", "files", "entry", "size_bytes", "threads", "batch"}
    keys |= {"isa", "latency_ms", "metric", "sqnr_db", "evidence", "verdict", "reason"}
    for one in told["results"]:
        assert {
            "host",
            "baseline",
            "winner",
            "candidates",
            "speedup",
            "warnings",
            "seconds",
        } <= set(one)
        assert one["baseline"]["runtime"] == "onnxruntime"
        assert one["baseline"]["precision"] == "fp32"
        assert one["winner"]["reason"]
        for candidate in (one["baseline"], one["winner"], *one["candidates"]):
            assert keys <= set(candidate)
            assert candidate["reason"]
        measured = [c for c in one["candidates"] if c["latency_ms"]]
        assert one["baseline"] in measured
        assert all({"p50", "p95", "p99"} == set(c["latency_ms"]) for c in measured)
        low, high = one["speedup"]["interval"]
        assert low <= one["speedup"]["value"] <= high
    ids = {f"{c['runtime']}.{c['recipe']}" for c in told["results"][0]["candidates"]}
    assert {"onnxruntime.fp32", "openvino.fp32", "onnxruntime.int8-static"} <= ids
    assert {
        "openvino.int8-static-b1",
        "onnxruntime.int8-dynamic",
        "litert.int8-portable-f32",
    } <= ids
    assert msgspec.json.decode(json.dumps(told), type=ConvertResult).name == "tiny-cnn"


def test_the_bundle_holds_the_winner_and_the_source_to_fall_back_to(converted):
    result, bundle = converted
    bundle.check()
    manifest = bundle.manifest
    first = result.results[0].winner
    assert manifest.variants[0].entry == first.entry
    runtimes = {(v.profile, v.runtime, v.recipe) for v in manifest.variants}
    assert (PROFILE, "onnxruntime", "fp32") in runtimes
    assert ("tpu-lite-generic", "litert", "int8-portable") in runtimes
    assert manifest.labels[3] == "class 3"
    assert manifest.score.name == "top1"
    assert manifest.score.value == 1.0
    assert manifest.lineage.source == "Tiny CNN.onnx"
    assert manifest.lineage.data_digest
    steps = manifest.lineage.steps["tpu-lite-generic.litert.int8-portable"]
    assert [s.name for s in steps][-1] == "quantize_portable"
    assert all(a.after == b.before for a, b in itertools.pairwise(steps))
    assert {v.evidence.state for v in manifest.variants} == {EvidenceState.MEASURED}
    reference = decode(bundle.read(manifest.drift))
    assert reference.n == 400


def test_every_variant_passes_its_own_golden_samples_and_no_other_model_does(converted, tmp_path):
    _, bundle = converted
    folder = bundle.unpack(tmp_path / "unpacked")
    manifest = bundle.manifest
    inputs = load_arrays((folder / manifest.golden.path).read_bytes())
    assert len(inputs["image"]) == 8
    for variant in manifest.variants:
        expected = load_arrays((folder / variant.golden.path).read_bytes())
        program = open_variant(folder, variant, manifest.inputs, manifest.outputs)
        session = program.session()
        assert golden_check(session, inputs, expected, variant.tolerance).ok
        wrong = {name: array[::-1].copy() for name, array in expected.items()}
        assert not golden_check(session, inputs, wrong, variant.tolerance).ok
        session.close()
        program.close()


def test_the_report_is_in_the_bundle_and_beside_it(converted, case):
    _, bundle = converted
    held = {ref.path: bundle.read(ref) for ref in bundle.manifest.report}
    beside = {f"report/{p.name}": p.read_bytes() for p in (case / "report").iterdir()}
    assert held == beside
    html = held["report/report.html"].decode()
    assert html.count("<svg") == 10  # five per profile
    assert "://" not in html
    assert "cpu-x86-64" in html
    assert "AMD" in html or "Intel" in html or "cores" in html
    told = json.loads(bundle.read(bundle.manifest.measurements))
    assert told["rounds_ms"][PROFILE]["onnxruntime.fp32"]


def test_without_data_only_the_source_is_tried(case, own_profile, tmp_path):
    profile = own_profile("lean")
    result = edgeml.convert(
        case / "Tiny CNN.onnx", profile, out=tmp_path / "x.edgeml", effort="quick"
    )
    (one,) = result.results
    assert {c.precision for c in one.candidates} == {"fp32"}
    assert any("no evaluation data" in w for w in one.warnings)
    manifest = Bundle.open(tmp_path / "x.edgeml").manifest
    assert manifest.drift is None
    assert manifest.score is None
    assert manifest.lineage.data_digest == ""


def test_on_another_kind_of_machine_nothing_is_claimed_to_be_fast(case, tmp_path):
    result = edgeml.convert(
        case / "Tiny CNN.onnx",
        "cpu-arm64",
        data=case / "data.npz",
        effort="quick",
        out=tmp_path / "x.edgeml",
    )
    (one,) = result.results
    assert one.winner.id == "onnxruntime.fp32"
    assert one.speedup is None
    assert all(c.latency_ms is None for c in one.candidates)
    assert {c.evidence for c in one.candidates} == {"checked"}
    assert any("no latency was measured" in w for w in one.warnings)


def test_one_recipe_that_cannot_be_built_costs_only_its_candidate(case, own_profile, tmp_path):
    model = models.cnn()
    model.graph.node[1].op_type = "Erf"
    onnx.save(model, tmp_path / "odd.onnx")
    result = edgeml.convert(
        tmp_path / "odd.onnx",
        own_profile("lean"),
        data=case / "data.npz",
        metric="agreement",
        effort="quick",
        objective="size",
        out=tmp_path / "odd.edgeml",
    )
    lost = {c.id: c for c in result.results[0].candidates}["litert.int8-portable-f32"]
    assert lost.verdict == "error"
    assert "Erf" in lost.reason


def test_no_gain_within_the_limit_means_a_gate_says_no(case, own_profile, tmp_path):
    profile = own_profile("small", "[budgets]\nsize_bytes = 10", "'onnxruntime'", "'fp32'")
    with pytest.raises(GateError, match="over the profile's budget"):
        edgeml.convert(case / "Tiny CNN.onnx", profile, out=tmp_path / "x.edgeml", effort="quick")
    assert not (tmp_path / "x.edgeml").exists()


def test_rules_threads_and_evidence_of_a_profile_count(case, own_profile, tmp_path):
    cores = device_facts().cores
    profile = own_profile(
        "ruled",
        f"threads = [1, {cores}, {cores + 1}]\n"
        "[[ops.denied]]\nop = 'QuantizeLinear'\nreason = 'no unit for it'\n"
        "[evidence]\nwith_hardware = 'compiled'",
    )
    result = edgeml.convert(
        case / "Tiny CNN.onnx",
        profile,
        data=case / "data.npz",
        max_drop=0.2,
        effort="quick",
        out=tmp_path / "x.edgeml",
    )
    (one,) = result.results
    by_id = {c.id: c for c in one.candidates}
    lost = by_id["onnxruntime.int8-static"]
    assert (lost.verdict, lost.latency_ms) == ("failed", None)
    assert "QuantizeLinear: no unit for it" in lost.reason
    assert by_id["onnxruntime.int8-dynamic"].verdict != "failed"
    assert [o.threads for o in one.other_threads] == ([cores] if cores > 1 else [])
    assert all(o.latency_ms.p50 > 0 for o in one.other_threads)
    assert {c.evidence for c in one.candidates if c.latency_ms} == {"compiled"}


def test_a_place_that_cannot_be_written_is_told_before_the_work(case, tmp_path):
    told = []
    with pytest.raises(UsageError, match="cannot write"):
        edgeml.convert(
            case / "Tiny CNN.onnx", PROFILE, out="/proc/nothing/x.edgeml", progress=told.append
        )
    with pytest.raises(UsageError, match="cannot write") as caught:
        edgeml.convert(
            case / "Tiny CNN.onnx",
            PROFILE,
            out=tmp_path / "x.edgeml",
            report="/proc/nothing",
            progress=told.append,
        )
    assert "--report" in caught.value.hint
    assert told == []


@pytest.mark.parametrize(
    ("limit", "says"),
    [(2_000, "TMPDIR"), (60_000, "TMPDIR"), (150_000, "cannot write x.edgeml")],
    ids=["the model", "the samples", "the bundle"],
)
def test_no_room_is_one_clear_error(case, own_profile, tmp_path, limit, says):
    profile = own_profile("lone", runtimes="'onnxruntime'")
    words = ["convert", str(case / "Tiny CNN.onnx"), "--profile", profile, "-o", "x.edgeml"]
    words += ["--effort", "quick", "--data", str(case / "data.npz")]
    code = (
        "import resource, sys; from edgeml.cli.group import LazyGroup, run; "
        "from edgeml.cli.table import COMMANDS; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        f"sys.exit(run(LazyGroup(COMMANDS), {words}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def tiny(nodes, inputs, outputs, stored=()):
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, list(stored))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return made


def value(name, kind, *shape):
    return helper.make_tensor_value_info(name, kind, shape)


def test_names_that_are_no_names_of_files_go_through(own_profile, tmp_path):
    w = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    node = helper.make_node("MatMul", ["file", "w"], ["../../y:0"])
    outputs = [value("../../y:0", TensorProto.FLOAT, "n", 4)]
    model = tiny([node], [value("file", TensorProto.FLOAT, "n", 4)], outputs, [w])
    onnx.save(model, tmp_path / "m.onnx")
    data = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x_test=data)
    out = tmp_path / "x.edgeml"
    options = {"data": tmp_path / "d.npz", "effort": "quick", "out": out}
    edgeml.convert(tmp_path / "m.onnx", own_profile("lean"), **options)
    bundle = Bundle.open(out)
    assert bundle.manifest.inputs[0].name == "file"
    kept = load_arrays(bundle.read(bundle.manifest.variants[0].golden))
    assert kept["../../y:0"].shape == (8, 4)


@pytest.mark.parametrize(
    ("op", "kind", "says"),
    [
        ("RandomNormalLike", TensorProto.FLOAT, "other outputs each time"),
        ("Identity", TensorProto.STRING, "holds strings"),
    ],
)
def test_what_cannot_be_compared_is_not_converted(own_profile, tmp_path, op, kind, says):
    node = helper.make_node(op, ["x"], ["y"])
    model = tiny([node], [value("x", kind, "n", 4)], [value("y", kind, "n", 4)])
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=says):
        edgeml.convert(tmp_path / "m.onnx", own_profile("lean"), out=tmp_path / "x.edgeml")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_names_that_are_not_utf8_are_one_clear_error(case, own_profile, tmp_path):
    odd = os.fsdecode(bytes(tmp_path) + b"/m\xfe.onnx")
    shutil.copy(case / "Tiny CNN.onnx", odd)
    with pytest.raises(ModelError, match=r"xfe.onnx' is not UTF-8"):
        edgeml.convert(odd, own_profile("lean"))
    with pytest.raises(UsageError, match="is not UTF-8"):
        out = odd.replace(".onnx", ".edgeml")
        edgeml.convert(case / "Tiny CNN.onnx", own_profile("lean"), out=out)


def test_what_the_data_lack_is_said(case, own_profile, tmp_path):
    given = np.load(case / "data.npz")
    np.savez(tmp_path / "bare.npz", x_test=given["test/image"])
    result = edgeml.convert(
        case / "Tiny CNN.onnx",
        own_profile("bare", runtimes="'onnxruntime'", precisions="'fp32'"),
        data=tmp_path / "bare.npz",
        effort="quick",
        out=tmp_path / "x.edgeml",
    )
    warnings = " ".join(result.results[0].warnings)
    assert "80 of 400 test samples are set aside" in warnings
    assert "no labels" in warnings


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"profile": "npu-rockchip-rk3588"}, MissingPackageError),
        ({"profile": "cpu-x86"}, ProfileError),
        ({"profile": [PROFILE, PROFILE]}, UsageError),
        ({"model": "nothing.onnx"}, ModelError),
        ({"data": "nothing.npz"}, DataError),
        ({"metric": "top2"}, UsageError),
        ({"metric": "r2"}, DataError),
        ({"objective": "beauty"}, UsageError),
        ({"effort": "none"}, UsageError),
        ({"threads": 0}, UsageError),
        ({"version": "one"}, EdgemlError),
        ({"name": "No Such Name"}, EdgemlError),
        ({"shape": {"image": (1, 1, 9, 9)}}, EdgemlError),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(
    case, tmp_path, monkeypatch, change, error
):
    monkeypatch.chdir(tmp_path)
    options = {
        "model": case / "Tiny CNN.onnx",
        "profile": PROFILE,
        "data": case / "data.npz",
        "effort": "quick",
        **change,
    }
    with pytest.raises(error) as caught:
        edgeml.convert(**options)
    assert caught.value.exit_code in (2, 3)
    assert "\n" not in caught.value.message
    assert not list(tmp_path.iterdir())
