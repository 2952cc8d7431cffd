"""``edgeml demo`` as a user runs it: real processes, and the figures that it must leave behind."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

DEMO = [sys.executable, "-m", "edgeml.cli", "demo"]


def children_below(folder):
    """Command lines of processes that still mention a folder."""
    found = []
    for folder_of in Path("/proc").glob("[0-9]*"):
        try:
            words = (
                (folder_of / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
        except OSError:
            continue
        if str(folder) in words and folder_of.name != str(os.getpid()):
            found.append(words)
    return found


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
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


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
def test_serve_stays_up_and_ends_with_ctrl_c(tmp_path):
    out = tmp_path / "demo"
    child = subprocess.Popen(
        [*DEMO, "--out", str(out), "--serve"], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        address = password = ""
        for line in child.stdout:
            if "dashboard: " in line:
                address = line.split("dashboard: ")[1].strip()
            if "password: " in line:
                password = line.split("password: ")[1].strip()
                break
        assert address and password
        body = json.dumps({"user": "admin", "password": password}).encode()
        request = urllib.request.Request(
            f"{address}/api/v1/login", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert reply.status == 200
        child.send_signal(signal.SIGINT)
        child.stdout.read()
        assert child.wait(timeout=60) == 0
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    end = time.monotonic() + 10
    while children_below(out) and time.monotonic() < end:
        time.sleep(0.1)
    assert children_below(out) == []


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_it_is_killed(tmp_path, number):
    out = tmp_path / "demo"
    child = subprocess.Popen([*DEMO, "--out", str(out)], stdout=subprocess.PIPE, text=True)
    try:
        for line in child.stdout:
            if "devices enrolled and online" in line:
                break
        assert children_below(out)
        child.send_signal(number)
        assert child.wait(timeout=60) != 0
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    end = time.monotonic() + 20
    while children_below(out) and time.monotonic() < end:
        time.sleep(0.1)
    assert children_below(out) == []


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    done = subprocess.run([*DEMO, "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "not an earlier demo" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]
