"""Profiles: all thirteen decode, are documented, and say what is wrong with a user's own."""

import re
import tomllib
from pathlib import Path

import pytest

from edgeml.errors import ProfileError
from edgeml.hardware import (
    SECTIONS,
    DeniedOp,
    DeviceFacts,
    Ops,
    best_profile,
    fits,
    load_profile,
    profile_names,
)

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    *["cpu-arm64", "cpu-armv7", "cpu-x86-64", "gpu-intel", "gpu-nvidia", "npu-intel"],
    *["npu-qualcomm-htp", "npu-rockchip-rk3588", "tpu-lite-edgetpu", "tpu-lite-ethos-u55-128"],
    *["tpu-lite-ethos-u65-512", "tpu-lite-ethos-u85-256", "tpu-lite-generic"],
]
MINIMAL = """
name = "mine"
title = "Mine"
description = "My board"
kind = "cpu"
target = "cpu"
runtimes = ["onnxruntime"]
precisions = ["fp32"]
"""


def facts(machine="x86_64", **more):
    return DeviceFacts(
        machine, "Linux", **{"runtimes": {"onnxruntime": "1", "litert": "2"}, **more}
    )


def test_names():
    assert list(profile_names()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_a_shipped_profile_is_explained_where_it_first_stands(name):
    profile = load_profile(name)
    assert profile.name == name
    lines = (ROOT / "hardware_profiles" / f"{name}.toml").read_text().splitlines()
    seen, section = set(), ""
    for above, line in zip(["", *lines], lines, strict=False):
        if head := re.fullmatch(r"\[+([\w.]+)\]+", line):
            section = head[1]
        elif key := re.match(r"(\w+) = ", line):
            full = (section, key[1])
            assert above.startswith("#") or full in seen or section == "compiler.options", full
            seen.add(full)


def test_every_key_is_in_the_reference():
    text = (ROOT / "docs" / "reference" / "profile-keys.md").read_text()
    keys = {
        f"{section}.{field}" if section else field
        for section, struct in SECTIONS.items()
        for field in struct.__struct_fields__
    }
    assert set(re.findall(r"^\| `([\w.]+)` \|", text, re.M)) == keys


def test_extras_of_compilers_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {"", *extras["optional-dependencies"]}
    assert {load_profile(name).compiler.extra for name in NAMES} <= known


def test_int8_depends_on_the_instruction_sets():
    profile = load_profile("cpu-x86-64")
    vnni, plain = profile.int8_rule(("avx2", "vnni")), profile.int8_rule(("avx2",))
    assert (vnni.activations, vnni.weights, vnni.per_channel) == ("uint8", "int8", True)
    assert (vnni.reduce_range, plain.reduce_range) == (False, True)


def test_rules_for_operators():
    assert load_profile("cpu-x86-64").ops.problem("Anything") == ""
    edge = load_profile("tpu-lite-edgetpu").ops
    assert edge.problem("CONV_2D") == ""
    assert "GELU" in edge.problem("GELU")
    assert Ops(denied=(DeniedOp("X", "too slow"),)).problem("X") == "too slow"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (facts(), "cpu-x86-64"),
        (facts(isa=("avx2", "vnni"), accelerators=("intel-gpu",)), "cpu-x86-64"),
        (facts("aarch64", isa=("neon",)), "cpu-arm64"),
        (facts("armv7l", isa=("neon",)), "cpu-armv7"),
        (facts("armv7l"), "tpu-lite-generic"),
    ],
)
def test_best(given, expected, monkeypatch):
    monkeypatch.setattr("edgeml.hardware.table", lambda _kind: {"cpu": "", "tflite": ""})
    assert best_profile(given).name == expected


def test_an_accelerator_wins_when_its_target_is_built(monkeypatch):
    monkeypatch.setattr("edgeml.hardware.table", lambda _kind: {"cpu": "", "gpu": ""})
    assert best_profile(facts(accelerators=("nvidia-gpu",))).name == "gpu-nvidia"


def test_nothing_fits():
    with pytest.raises(ProfileError, match="no profile fits") as error:
        best_profile(facts("riscv64"))
    assert "cpu-arm64: it is for aarch64, this is riscv64" in error.value.hint


def test_why_it_does_not_fit():
    assert fits(load_profile("cpu-x86-64"), facts()) == ""
    assert "intel-npu" in fits(load_profile("npu-intel"), facts())
    assert "neon" in fits(load_profile("cpu-armv7"), facts("armv7l"))
    assert "no machine" in fits(load_profile("tpu-lite-ethos-u55-128"), facts())
    assert "runtimes" in fits(load_profile("cpu-x86-64"), facts(runtimes={}))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("presicions = []", "unknown key 'presicions'", "precisions"),
        ("[shapes]\nstatc = true", "'statc' in [shapes]", "static"),
        ("[[int8]]\nweigths = 'int8'", "'weigths' in [int8]", "weights"),
        ("[[ops.denied]]\nop='X'\nreason='r'\nsauce='s'", "'sauce' in [ops.denied]", "source"),
        ("threads = [0]", ">= 1", "profile-keys"),
        ("threads = 'many'", "threads", "profile-keys"),
        ("[budgets]\nlatency_ms = -1", "latency_ms", ""),
        ("threads = [", "not TOML", ""),
        ("name = 'again'", "not TOML", ""),
    ],
)
def test_what_is_wrong_in_a_file_of_ones_own(tmp_path, text, message, hint):
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    assert load_profile(str(path)).name == "mine"
    path.write_text(MINIMAL + text)
    with pytest.raises(ProfileError) as error:
        load_profile(str(path))
    assert message in error.value.message
    assert hint in error.value.hint
    assert str(path) in error.value.message


def test_files_that_cannot_be_read(tmp_path):
    for data in (b"\xff\xfe\0", b"a = " + b"[" * 100_000, b"#" * ((1 << 20) + 1), b""):
        path = tmp_path / "x.toml"
        path.write_bytes(data)
        with pytest.raises(ProfileError):
            load_profile(str(path))
    with pytest.raises(ProfileError, match="cannot read"):
        load_profile("./none.toml")
    with pytest.raises(ProfileError, match="unknown profile") as error:
        load_profile("cpu-x86_64")
    assert error.value.hint == "did you mean 'cpu-x86-64'?"
