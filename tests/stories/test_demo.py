"""``edgeml demo`` as a user runs it: real processes, and the figures that it must leave behind.

Its tests stand in three files, because each is long and the workers share files out.
"""

import json
import subprocess

import pytest

from tests.support.demo import DEMO, children_below


@pytest.mark.slow
def test_the_whole_story(tmp_path):
    out = tmp_path / "demo"
    done = subprocess.run(
        [*DEMO, "--out", str(out)], capture_output=True, text=True, timeout=280, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())

    outcomes = [(r["version"], r["outcome"]) for r in summary["rollouts"]]
    assert outcomes == [("1.0.0", "done"), ("2.0.0", "done"), ("3.0.0", "rolled_back")]
    assert "labels" in summary["rollouts"][2]["reason"]

    requests = summary["requests"]
    assert requests["lost"] == 0
    assert requests["wrong_shape"] == 0
    assert requests["sent"] == requests["answered"] > 100

    assert {w["profile"] for w in summary["convert"]} >= {"tpu-lite-generic"}
    assert len(summary["convert"]) == 6
    assert {d["version"] for d in summary["devices"]} == {"2.0.0"}
    assert len(summary["devices"]) == 4
    assert summary["accuracy"]["3.0.0"] < 0.5 < summary["accuracy"]["2.0.0"]

    assert "rolled back" in done.stdout
    assert children_below(out) == []


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    done = subprocess.run([*DEMO, "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "not an earlier demo" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]
