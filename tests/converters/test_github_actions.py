"""The example for GitHub Actions: its own commands pass a good model and refuse a bad one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx.reference import ReferenceEvaluator

from tests.support import models

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/github-actions/convert.yml"


@pytest.fixture(scope="module")
def job():
    return yaml.safe_load(EXAMPLE.read_text())["jobs"]["convert"]


@pytest.fixture
def folder(tmp_path, own_profile):
    """A checkout: data, and the bundle that was released."""
    (tmp_path / "models").mkdir()
    onnx.save(models.mlp(), tmp_path / "models/model.onnx")
    x = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    y = ReferenceEvaluator(models.mlp()).run(None, {"x": x})[0].argmax(axis=1)
    arrays = {"calib/x": x[:100], "test/x": x[100:], "test/labels": y[100:]}
    np.savez(tmp_path / "models/eval.npz", **arrays)
    return tmp_path


def edgeml_steps(job):
    return [step for step in job["steps"] if step.get("run", "").startswith("edgeml ")]


def play(job, steps, folder, profile):
    """Run steps as a runner does: in a shell that stops at the first failure."""
    env = {
        **os.environ,
        **job["env"],
        "PROFILE": profile,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
    }
    for step in steps:
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
        if done.returncode:
            return step["name"], done
    return "", done


def test_the_gate_passes_a_good_model_and_refuses_a_bad_one(job, folder, own_profile):
    profile = own_profile("action", runtimes="'onnxruntime'", precisions="'fp32'")
    convert, compare = edgeml_steps(job)
    named = dict(job, env={**job["env"], "MODEL": "models/model.onnx"})
    assert play(named, [convert], folder, profile)[0] == ""
    (folder / "build/model.edgeml").rename(folder / "models/released.edgeml")

    show = next(step for step in job["steps"] if "SUMMARY" in step.get("run", ""))
    failed, done = play(named, [convert, compare, show], folder, profile)
    assert failed == "", done.stdout + done.stderr
    assert "action" in (folder / "summary.md").read_text()

    onnx.save(models.mlp(seed=7), folder / "models/model.onnx")  # trained wrongly
    failed, done = play(named, [convert, compare], folder, profile)
    assert failed == compare["name"]
    assert done.returncode == 1
    assert "max-drop 0.01: fails" in done.stdout


def test_nothing_else_of_the_example_can_hide_a_failure(job):
    for step in job["steps"]:
        assert "continue-on-error" not in step
        if step in edgeml_steps(job):
            assert "||" not in step["run"]
            assert "if" not in step
