"""Other forms of a network, and variants for what computes beside the processor."""

import msgspec
import numpy as np
import onnx
import pytest

import edgeml
from edgeml.bundle import Bundle
from edgeml.errors import DeviceError, ModelError, ProfileError
from edgeml.hardware import DeviceFacts, fits, load_profile
from edgeml.manifest import Evidence, EvidenceState, Tolerance, Variant
from edgeml.plugins import load
from edgeml.runtime.bind import open_variant
from edgeml.tensors import TensorSpec
from edgeml_agent.serve.fallback import Chain
from edgeml_agent.serve.model import Model
from edgeml_converters.choose import LOAD, choose
from edgeml_converters.model import run_model
from edgeml_converters.recipes import BASELINE, formats
from edgeml_converters.recipes.base import Plan, Recipe
from edgeml_converters.recipes.known import recipes_for
from edgeml_converters.results import Candidate, Latency, Standing
from edgeml_converters.rules import check_profile
from tests.support import models

INPUTS = (TensorSpec("image", "float32", (-1, 1, 8, 8)),)
OUTPUTS = (TensorSpec("logits", "float32", (-1, 10)),)
RUNTIME = {
    "onnx-optimised": "onnxruntime",
    "ort": "onnxruntime",
    "openvino-ir": "openvino",
    "openvino-device": "openvino",
    "openvino-device-f16": "openvino",
    "gpu": "onnxruntime",
}
CPU = load_profile("cpu-x86-64")


def variant(product, runtime, device=""):
    return Variant(
        "v", "p", runtime, "fp32", "r", (), product.entry, product.inputs, product.outputs,
        Evidence(EvidenceState.CHECKED, ""), Tolerance(0.0, 0.0), device=device,
    )  # fmt: skip


@pytest.mark.parametrize("target", sorted(RUNTIME))
def test_a_form_gives_what_the_model_gives(target, tmp_path):
    model = models.cnn()
    product = load("targets", target)().write(model, tmp_path, INPUTS, OUTPUTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(product.files)
    image = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    program = open_variant(tmp_path, variant(product, RUNTIME[target]), INPUTS, OUTPUTS)
    got = program.session().run({"image": image})["logits"]
    want = run_model(model, {"image": image})["logits"]
    near = 2e-3 if target.endswith("f16") else 1e-5
    np.testing.assert_allclose(got, want, rtol=near, atol=near)
    program.close()


@pytest.mark.parametrize("target", sorted(set(RUNTIME) - {"ort"}))
def test_a_form_is_a_function_of_the_model(target, tmp_path):
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        product = load("targets", target)().write(models.cnn(), folder, INPUTS, OUTPUTS)
        made.append({file: (folder / file).read_bytes() for file in product.files})
    assert made[0] == made[1]


def test_the_optimised_graph_holds_no_layout_of_one_processor(tmp_path):
    load("targets", "onnx-optimised")().write(models.cnn(), tmp_path, INPUTS, OUTPUTS)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert {node.domain for node in graph.node} <= {"", "com.microsoft"}
    assert len(graph.node) < len(models.cnn().graph.node)


@pytest.mark.parametrize("target", ["onnx-optimised", "ort", "openvino-ir"])
def test_what_a_runtime_cannot_read_is_said_in_one_line(target, tmp_path):
    model = models.cnn()
    model.graph.node[0].op_type = "Unheard"
    with pytest.raises(ModelError) as caught:
        load("targets", target)().write(model, tmp_path, INPUTS, OUTPUTS)
    assert "\n" not in caught.value.message


def seen(recipe, ms, runtime="onnxruntime", **more):
    return Candidate(
        runtime, "int8", recipe, latency_ms=Latency(ms, ms, ms), size_bytes=1000, **more
    )


def test_the_best_of_each_runtime_that_may_win_is_written_in_other_forms():
    quick = Recipe("int8-static", "int8", "8 bits", {"onnxruntime": {}, "openvino": {"A": "1"}})
    plain = Recipe("fp32", "fp32", "as it is", {"onnxruntime": {}})
    plan = Plan(CPU, tried=(quick, plain))
    assert not list(formats.recipes(plan))  # nothing is known in the first stage
    results = (seen("int8-static", 1.0), seen("fp32", 3.0), seen("int8-static", 1.05, "openvino"))
    made = list(formats.recipes(msgspec.structs.replace(plan, seen=results)))
    assert [r.name for r in made] == ["int8-static-opt", "int8-static-ir"]
    assert made[1].options == {"openvino": {"A": "1"}}
    assert all(r.passes for r in made)
    slow = (*results[:2], seen("int8-static", 2.0, "openvino"))
    made = list(formats.recipes(msgspec.structs.replace(plan, seen=slow)))
    assert {r.target for r in made} == {"onnx-optimised"}
    arm = msgspec.structs.replace(CPU, match=load_profile("cpu-arm64").match)
    made = list(formats.recipes(msgspec.structs.replace(plan, profile=arm, seen=results)))
    assert {r.target for r in made} == {"openvino-ir"}  # fusing depends on the machine type


def test_of_equals_the_one_that_loads_in_clearly_less_time_wins():
    gain = {"speedup": None, "verdict": Standing.PASSED}
    base = seen("fp32", 9.0, verdict=Standing.FAILED)
    slow = seen("int8", 1.0, load_ms=40.0, **gain)
    near = seen("int8-opt", 1.0, load_ms=40.0 / LOAD + 1, **gain)
    fast = seen("int8-ort", 1.01, load_ms=4.0, **gain)
    assert choose([base, slow, near], BASELINE).winner == "onnxruntime.int8"
    assert choose([base, slow, near, fast], BASELINE).winner == "onnxruntime.int8-ort"


@pytest.mark.parametrize("target", ["ort", "onnx-optimised", "openvino-ir"])
def test_a_profile_may_ask_for_a_form(target):
    profile = msgspec.structs.replace(CPU, target=target)
    check_profile(profile)
    chosen = dict((r.name, (r.target, names)) for r, names in recipes_for(Plan(profile)))
    assert chosen.pop("fp32") == ("cpu", ("onnxruntime",))  # to compare with
    assert {where for where, _names in chosen.values()} == {target}
    assert {names for _where, names in chosen.values()} == {(RUNTIME[target],)}


@pytest.mark.parametrize(
    ("name", "device"),
    [("gpu-nvidia", "CUDAExecutionProvider"), ("gpu-intel", "GPU"), ("npu-intel", "NPU")],
)
def test_an_accelerator_that_is_not_here_gets_a_variant_that_claims_nothing(name, device, tmp_path):
    onnx.save(models.cnn(), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(80, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x_calib=images[:16], x_test=images[16:])
    found = edgeml.convert(
        tmp_path / "m.onnx", name, data=tmp_path / "d.npz", max_drop=0.2, effort="quick",
        shape={"image": (1, 1, 8, 8)}, out=tmp_path / "b.edgeml",
    )  # fmt: skip
    (result,) = found.results
    assert result.winner.evidence == "checked"
    assert result.winner.latency_ms is None
    assert result.speedup is None
    bundle = Bundle.open(tmp_path / "b.edgeml")
    first = bundle.manifest.variants[0]
    assert first.device == device
    assert first.evidence.state is EvidenceState.CHECKED
    folder = tmp_path / "unpacked"
    bundle.unpack(folder)
    with pytest.raises(DeviceError):  # never placed on the processor in silence
        open_variant(folder, first, bundle.manifest.inputs, bundle.manifest.outputs)
    if name == "gpu-nvidia":  # what the device falls back to, and says so
        model = Model(bundle, name, tmp_path / "cache")
        chain = Chain(model.variants, model.open, model.check, lambda *_event: None)
        assert (chain.variant.device, chain.variant.recipe) == ("", "fp32")
        assert chain.placement == "CPUExecutionProvider"
        assert device in chain.degraded
        chain.close()


def test_a_gpu_that_no_runtime_reaches_does_not_fit():
    profile = load_profile("gpu-nvidia")
    facts = DeviceFacts(
        "x86_64", "Linux", accelerators=("nvidia-gpu",), runtimes={"onnxruntime": "1"}
    )
    assert fits(profile, facts) == ""  # an older agent does not say
    offered = {"onnxruntime": ("CPUExecutionProvider",)}
    assert "CUDAExecutionProvider" in fits(profile, msgspec.structs.replace(facts, devices=offered))
    offered = {"onnxruntime": ("CUDAExecutionProvider", "CPUExecutionProvider")}
    assert fits(profile, msgspec.structs.replace(facts, devices=offered)) == ""


def test_devices_of_a_profile_are_checked():
    profile = load_profile("gpu-nvidia")
    with pytest.raises(ProfileError, match=r"needs \[devices\]"):
        check_profile(msgspec.structs.replace(profile, devices={}))
    with pytest.raises(ProfileError, match="not in 'runtimes'"):
        check_profile(msgspec.structs.replace(profile, devices={"openvino": ("GPU",)}))
