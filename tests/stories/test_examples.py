"""The examples run, one after the other, as their first lines say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bounded import killed_after

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name, *words):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.xdist_group("examples")
def test_train_convert_serve_classify(tmp_path):
    said = run("train_digits.py", "--out", tmp_path, "--epochs", "5")
    assert said.count("right on real digits") == 3

    said = run("convert_from_python.py", tmp_path)
    assert "winner: " in said
    bundle = tmp_path / "digits-1.0.0.edgeml"

    agent = subprocess.Popen(
        [
            *(sys.executable, "-c", "from edgeml_agent.cli import main; main()"),
            *("serve", str(bundle), "--http", "127.0.0.1:0", "--json"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with killed_after(agent):
            ready = json.loads(agent.stdout.readline())
        (address,) = ready["addresses"]
        said = run(
            "classify_digits.py", "--data", tmp_path / "digits.npz", "--count", 20,
            "--server", address,
        )  # fmt: skip
        right, _, total = said.split()[:3]
        assert int(total) == 20
        assert int(right) >= 10
    finally:
        agent.terminate()
        assert agent.wait(timeout=30) == 0
        agent.stdout.close()


@pytest.mark.slow
@pytest.mark.xdist_group("examples")
def test_a_wide_network_is_pruned_at_less_than_a_point(tmp_path):
    said = run("prune_digits.py", tmp_path, "--epochs", 6)
    for kind in ("float", "int8"):
        line = next(line for line in said.splitlines() if line.startswith(f"{kind}: pruning"))
        assert float(line.split("costs ")[1].split()[0]) < 1.0
    whole, pruned = (
        (tmp_path / f"digits-wide-float{which}.onnx").stat().st_size for which in ("", "-pruned")
    )
    assert pruned < whole / 2


def test_every_example_is_run_here():
    text = Path(__file__).read_text()
    assert all(path.name in text for path in EXAMPLES.glob("*.py"))
