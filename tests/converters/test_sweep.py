"""edgeml sweep, as a user types it."""

import json

import numpy as np
import onnx
import pytest

from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import COMMANDS
from tests.support import models


@pytest.fixture
def folder(tmp_path, monkeypatch, own_profile):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGEML_TRACK", raising=False)
    (tmp_path / "models").mkdir()
    onnx.save(models.mlp(), "models/first.onnx")
    onnx.save(models.mlp(seed=2), "models/second.onnx")
    (tmp_path / "models/broken.onnx").write_bytes(b"no model at all")
    rng = np.random.default_rng(0)
    np.savez("models/data.npz", x_test=rng.normal(size=(200, 4)).astype(np.float32))
    own_profile("swept", runtimes="'onnxruntime'", precisions="'fp32'")
    tight = "[budgets]\nsize_bytes = 1"
    profiles = {
        "swept": own_profile("swept", runtimes="'onnxruntime'", precisions="'fp32'"),
        "tight": own_profile("tight", tight, runtimes="'onnxruntime'", precisions="'fp32'"),
    }

    def write(text):
        for name, path in profiles.items():
            text = text.replace(f"@{name}", path)
        (tmp_path / "models/sweep.toml").write_text(text)
        return tmp_path

    write.path = tmp_path
    return write


DEFAULTS = "out = '../out'\n[defaults]\nprofile = ['@swept']\neffort = 'quick'\ndata = 'data.npz'\n"
FIRST, SECOND = (
    "[[model]]\npath = 'first.onnx'\n",
    "[[model]]\npath = 'second.onnx'\nname = '2nd'\n",
)


def edgeml(capsys, *words):
    code = run(LazyGroup(COMMANDS, name="edgeml"), ["sweep", "models/sweep.toml", *words])
    return code, capsys.readouterr()


def test_one_that_fails_stops_no_other_and_the_index_leads_to_all(folder, capsys):
    tight = "[[model]]\npath = 'first.onnx'\nname = 'too-big'\nprofile = '@tight'\n"
    root = folder(DEFAULTS + "[[model]]\npath = 'broken.onnx'\n" + tight + SECOND)
    code, said = edgeml(capsys, "--json")
    assert code == 1
    told = json.loads(said.out)
    assert [(one["name"], one["state"], one["exit_code"]) for one in told["models"]] == [
        ("broken", "error", 2), ("too-big", "gate", 1), ("2nd", "done", 0),
    ]  # fmt: skip
    assert "broken.onnx" in told["models"][0]["error"]
    assert told["models"][2]["results"][0]["winner"]["precision"] == "fp32"
    names = sorted(p.name for p in (root / "out").iterdir())
    assert "2nd-1.0.0.edgeml" in names
    assert not [name for name in names if name.startswith(("broken", "too-big", "."))]
    html = (root / "out/report.html").read_text()
    assert 'href="2nd/report.html"' in html
    assert (root / "out/2nd/report.html").is_file()
    assert "a gate said no" in html
    assert "[2/3] too-big" in said.err


def test_what_is_done_is_not_done_again_and_one_alone_can_be(folder, capsys):
    root = folder(DEFAULTS + FIRST + SECOND)
    code, said = edgeml(capsys, "--json")
    assert code == 0
    before = json.loads(said.out)["models"]
    bundle = (root / "out/2nd-1.0.0.edgeml").read_bytes()
    code, said = edgeml(capsys, "--json")
    after = json.loads(said.out)["models"]
    for one, again in zip(before, after, strict=True):
        assert one["digest"] == again["digest"], "it was measured again"
    assert (root / "out/2nd-1.0.0.edgeml").read_bytes() == bundle
    code, said = edgeml(capsys, "--only", "2nd")
    assert code == 0
    assert "first" not in said.out
    assert "[1/1] 2nd" in said.err
    html = (root / "out/report.html").read_text()
    assert 'href="first/report.html"' in html
    assert 'href="2nd/report.html"' in html


@pytest.mark.parametrize(
    ("text", "words", "says"),
    [
        (DEFAULTS + FIRST + "max_drop = 0.1\n", [], "max-drop"),
        (DEFAULTS + FIRST + "metrics = 'top1'\n", [], "did you mean 'metric'?"),
        ("outt = 'x'\n" + DEFAULTS + FIRST, [], "did you mean 'out'?"),
        (DEFAULTS + "effrt = 'quick'\n" + FIRST, [], "did you mean 'effort'?"),
        (DEFAULTS.replace("quick", "quik") + FIRST, [], "quik"),
        (DEFAULTS, [], "model"),
        (DEFAULTS + "[[model]]\npath = 'frist.onnx'\n", [], "did you mean 'first.onnx'?"),
        (DEFAULTS + FIRST + "data = 'nope.npz'\n", [], "nope.npz"),
        (DEFAULTS + FIRST + FIRST, [], "two models are called 'first'"),
        (FIRST, [], "profile"),
        (DEFAULTS.replace("@swept", "cpu-x86-6") + FIRST, [], "cpu-x86-64"),
        (DEFAULTS + FIRST + "max-drop = -1\n", [], "max-drop"),
        (DEFAULTS + FIRST + "budget = '5 apples'\n", [], "5 apples"),
        ("[[model]\n", [], "not TOML"),
        (DEFAULTS + FIRST + SECOND, ["--only", "2n"], "did you mean '2nd'?"),
    ],
)
def test_a_wrong_file_is_one_line_and_a_hint_before_any_work(folder, capsys, text, words, says):
    root = folder(text)
    code, said = edgeml(capsys, *words, "--json")
    assert code == 2
    error = json.loads(said.out)["error"]
    assert says in error["message"] + error["hint"]
    assert error["hint"]
    assert "Traceback" not in said.err
    assert not (root / "out").exists()


def test_a_file_that_is_not_there_is_told(folder, capsys):
    code, said = edgeml(capsys)
    assert code == 2
    assert "models/sweep.toml" in said.err
    assert "hint:" in said.err
