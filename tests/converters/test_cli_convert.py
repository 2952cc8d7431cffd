"""edgeml convert on the command line."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest

from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import COMMANDS
from tests.support import models
from tests.support.bounded import killed_after


@pytest.fixture
def folder(tmp_path, monkeypatch):
    onnx.save(models.mlp(), tmp_path / "mlp.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x_test=rng.normal(size=(400, 4)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edgeml(*words):
    return run(LazyGroup(COMMANDS, name="edgeml"), ["convert", *words])


def test_json_goes_to_stdout_and_progress_to_stderr(folder, own_profile, capsys):
    words = [
        "mlp.onnx",
        "--profile",
        own_profile("lean"),
        "--data",
        "data.npz",
        "--effort",
        "quick",
    ]
    assert edgeml(*words, "--json", "--name", "small", "--version", "2.1.0") == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["bundle"] == "small-2.1.0.edgeml"
    assert (folder / told["bundle"]).is_file()
    (one,) = told["results"]
    assert one["winner"]["metric"]["name"] == "agreement"
    assert "measuring" in captured.err
    assert sorted(p.name for p in folder.iterdir()) == ["data.npz", "mlp.onnx", told["bundle"]]


def test_people_get_a_table_the_winner_and_what_to_type_next(folder, own_profile, capsys):
    profile = own_profile("lone", runtimes="'onnxruntime'")
    words = ["mlp.onnx", "--profile", profile, "--effort", "quick", "-o", "out/m.edgeml"]
    assert edgeml(*words, "--shape", "x=-1,4", "--report", "rep") == 0
    out = capsys.readouterr().out
    assert "onnxruntime.fp32" in out
    assert "winner" in out
    assert "edgeml inspect out/m.edgeml" in out
    assert (folder / "rep" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["mlp.onnx"], 2, "--profile"),
        (["mlp.onnx", "--profile", "cpu-x86"], 2, "cpu-x86-64"),
        (["no.onnx", "--profile", "cpu-x86-64"], 2, "no.onnx"),
        (["mlp.onnx", "--profile", "npu-qualcomm-htp"], 3, "not built yet"),
        (["mlp.onnx", "--profile", "cpu-x86-64", "--shape", "x"], 2, "NAME=1,3,8,8"),
        (["mlp.onnx", "--profile", "cpu-x86-64", "--shape", "x=0,4"], 2, "NAME=1,3,8,8"),
        (["mlp.onnx", "--profile", "cpu-x86-64", "--max-drop", "-1"], 2, "max-drop"),
        (["mlp.onnx", "--profile", "cpu-x86-64", "--metric", "top1"], 2, "--data"),
        (["mlp.onnx", "--profile", "cpu-x86-64", "-o", "."], 2, "exists"),
    ],
)
def test_bad_words_are_one_line_and_a_hint(folder, capsys, words, code, says):
    assert edgeml(*words, "--json") == code
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["exit_code"] == code
    assert says in error["message"] + error["hint"]
    lines = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    assert sorted(p.name for p in folder.iterdir()) == ["data.npz", "mlp.onnx"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(folder, number):
    temporary = folder / "tmp"
    temporary.mkdir()
    words = ["mlp.onnx", "--profile", "cpu-x86-64", "--data", "data.npz"]
    child = subprocess.Popen(
        [sys.executable, "-m", "edgeml.cli", "convert", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        # Whoever started the tests may ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with killed_after(child):
        told = [child.stderr.readline() for _ in range(2)]  # the first file is built
        child.send_signal(number)
        rest = child.stderr.read()
        assert child.wait() == 130
    child.stderr.close()
    assert "Traceback" not in "".join(told) + rest
    assert rest.splitlines()[-1] == "error: interrupted"
    assert list(temporary.iterdir()) == []
    assert sorted(p.name for p in folder.iterdir()) == ["data.npz", "mlp.onnx", "tmp"]


def test_help_is_quick_for_it_imports_no_toolchain():
    code = (
        "import sys; from edgeml.cli.group import LazyGroup, run; "
        "from edgeml.cli.table import COMMANDS; run(LazyGroup(COMMANDS), ['convert', '--help']); "
        "print([m for m in ('onnx', 'onnxruntime', 'openvino', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_address_of_a_fleet_that_nothing_asks_is_refused(folder, own_profile, capsys):
    words = ["mlp.onnx", "--profile", own_profile("lean"), "--server", "http://127.0.0.1:1"]
    assert edgeml(*words) == 2
    assert "--on-device is not given" in capsys.readouterr().err


def test_more_threads_than_processors_are_no_gain(folder, own_profile, capsys):
    profile = own_profile("lean")
    assert edgeml("mlp.onnx", "--profile", profile, "--threads", "9999") == 2
    told = capsys.readouterr().err.splitlines()
    assert "processors" in told[-2]
    assert told[-1].startswith("hint: give ")
    assert sorted(p.name for p in folder.iterdir()) == ["data.npz", "mlp.onnx"]
