"""profiles, inspect, unpack, verify: as users call them, right and wrong."""

import json

import click
import pytest

from edgeml.bundle import Bundle, pack, write_layout
from edgeml.bundle.store import blob_name
from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import COMMANDS
from tests.golden.make_bundle import sample

INT8 = "cpu-x86-64.onnxruntime.int8"


@pytest.fixture
def edgeml(capsys):
    """Run a command line; return exit code, stdout, stderr."""

    def call(*words):
        code = run(LazyGroup(COMMANDS, name="edgeml"), [str(word) for word in words])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def packed(tmp_path):
    return pack(*sample(), tmp_path / "golden-0.1.0.edgeml").path


def test_profiles(edgeml):
    code, out, _ = edgeml("profiles")
    assert (code, len(out.splitlines())) == (0, 13)
    assert edgeml("profiles", "list")[1] == out
    rows = json.loads(edgeml("profiles", "list", "--json")[1])["profiles"]
    assert [row["name"] for row in rows] == [line.split()[0] for line in out.splitlines()]
    assert json.loads(edgeml("profiles", "--json")[1])["profiles"] == rows
    assert edgeml("profiles", "--json", "list")[0] == 2


def test_profile_show(edgeml):
    code, out, _ = edgeml("profiles", "show", "tpu-lite-ethos-u55-128")
    assert code == 0
    assert "memory-mode: Shared_Sram" in out
    shown = json.loads(edgeml("profiles", "show", "cpu-x86-64", "--json")[1])
    assert shown["runtimes"][0] == "onnxruntime"
    code, out, err = edgeml("profiles", "show", "cpu-x86-46")
    assert (code, out) == (2, "")
    assert "did you mean 'cpu-x86-64'?" in err


def test_profile_of_ones_own(edgeml, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("nmae = 'x'")
    code, _, err = edgeml("profiles", "show", path)
    assert code == 2
    assert "did you mean 'name'?" in err


def test_detect(edgeml, monkeypatch):
    from edgeml.hardware import DeviceFacts

    facts = DeviceFacts("x86_64", "Linux", cpu="A CPU", runtimes={"onnxruntime": "1"})
    monkeypatch.setattr("edgeml.runtime.facts.device_facts", lambda: facts)
    code, out, _ = edgeml("profiles", "detect")
    assert code == 0
    assert "* cpu-x86-64" in out
    assert json.loads(edgeml("profiles", "detect", "--json")[1])["best"] == "cpu-x86-64"


def test_inspect_a_bundle(edgeml, packed):
    code, out, _ = edgeml("inspect", packed)
    assert code == 0
    for text in ("golden 0.1.0", "x float32 [?, 4]", INT8, "measured by onnxruntime", "mlp.onnx"):
        assert text in out
    page = json.loads(edgeml("inspect", packed, "--json")[1])
    assert page["digest"] == Bundle.open(packed).digest
    assert (page["missing"], page["manifest"]["name"]) == ([], "golden")


def test_inspect_says_what_is_missing(edgeml, packed, tmp_path):
    bundle = Bundle.open(packed)
    folder = tmp_path / "part"
    write_layout(folder, bundle.oci_manifest)
    ref = next(ref for ref in bundle.layers if ref.path == "manifest.json")
    (folder / blob_name(ref.digest)).write_bytes(bundle.read(ref))
    assert "model.onnx  (missing)" in edgeml("inspect", folder)[1]


def test_inspect_hands_a_model_to_the_converter(edgeml, tmp_path, monkeypatch):
    page = {"format": "ONNX", "size_bytes": 2048, "inputs": [{"name": "x"}], "warnings": []}
    asked = []

    def load(reference, extra=""):
        asked.append((reference, extra))
        return lambda path: page

    monkeypatch.setattr("edgeml.cli.inspect.load_object", load)
    (tmp_path / "m.onnx").write_bytes(b"x" * 1000)
    code, out, _ = edgeml("inspect", tmp_path / "m.onnx")
    assert code == 0
    assert "format: ONNX" in out
    assert "size: 2.0 KiB" in out
    assert json.loads(edgeml("inspect", tmp_path / "m.onnx", "--json")[1]) == page
    assert asked[0] == ("edgeml_converters.inspect:inspect_model", "convert")


def test_unpack(edgeml, packed, tmp_path):
    code, out, _ = edgeml("unpack", packed, "--variant", INT8, "-o", tmp_path / "out")
    assert code == 0
    assert str(tmp_path / "out" / "variants/int8/model.onnx") in out
    assert not (tmp_path / "out" / "report").exists()
    said = json.loads(edgeml("unpack", packed, "-o", tmp_path / "all", "--json")[1])
    assert len(said["entries"]) == 2
    assert (tmp_path / "all" / "report" / "index.html").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["unpack", "BUNDLE"], "--output"),
        (["unpack", "none", "-o", "x"], "no bundle at none"),
        (["unpack", "BUNDLE", "--variant", "int8", "-o", "NEW"], "no variant 'int8'"),
        (["unpack", "BUNDLE", "-o", "."], "exists already"),
        (["verify", "none"], "no bundle at none"),
        (["verify"], "BUNDLE"),
    ],
)
def test_what_users_get_wrong(edgeml, packed, tmp_path, words, text):
    known = {"BUNDLE": packed, "NEW": tmp_path / "new"}
    code, out, err = edgeml(*[known.get(word, word) for word in words])
    assert (code, out) == (2, "")
    assert text in err.splitlines()[0]
    assert err.splitlines()[1].startswith("hint: ")
    assert not (tmp_path / "new").exists()


def test_verify(edgeml, packed, tmp_path):
    code, out, _ = edgeml("verify", packed)
    assert code == 0
    assert Bundle.open(packed).digest in out
    assert json.loads(edgeml("verify", packed, "--json")[1])["ok"] is True
    data = packed.read_bytes()
    ref = Bundle.open(packed).manifest.drift
    at = data.index(b"reference", data.index(ref.digest.removeprefix("sha256:").encode()))
    packed.write_bytes(data[:at] + b"R" + data[at + 1 :])
    code, out, err = edgeml("verify", packed)
    assert (code, out) == (4, "")
    assert "drift.bin" in err
    assert json.loads(edgeml("verify", packed, "--json")[1])["error"]["exit_code"] == 4


def test_rows_say_what_the_commands_say():
    for name in ("profiles", "inspect", "unpack", "verify"):
        command = LazyGroup(COMMANDS).get_command(click.Context(click.Command("x")), name)
        assert command.get_short_help_str(200).rstrip(".") == COMMANDS[name].help.rstrip(".")
