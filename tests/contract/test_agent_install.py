"""What a device installs: ``edgeml-kit[agent]`` from the wheel is light, and works."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_MIB = 150
HEAVY = {
    "onnx",
    "openvino",
    "torch",
    "tensorflow",
    "scipy",
    "pandas",
    "matplotlib",
    "fastapi",
    "nicegui",
    "sqlalchemy",
    "pydantic",
    "sympy",
    "scikit-learn",
}


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """An empty environment with the wheel and its extra ``agent``."""
    folder = tmp_path_factory.mktemp("device")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(folder),
            str(ROOT),
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("edgeml_kit-*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv/bin/python"
    subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--disable-pip-version-check",
            f"{wheel}[agent]",
        ],
        check=True,
        capture_output=True,
    )
    return python


@pytest.mark.slow
def test_it_is_light(device):
    listed = subprocess.run(
        [device, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
        check=True,
        capture_output=True,
        text=True,
    )
    names = {row["name"].lower() for row in json.loads(listed.stdout)}
    assert not names & HEAVY
    size = sum(
        f.stat().st_size
        for f in device.parent.parent.glob("lib/python*/site-packages/**/*")
        if f.is_file()
        and not f.is_symlink()
        and f.suffix != ".pyc"
        and not f.relative_to(device.parent.parent).parts[3].startswith(("pip", "setuptools"))
    )
    assert size / 2**20 < LIMIT_MIB, f"{size / 2**20:.1f} MiB in {sorted(names)}"


@pytest.mark.slow
def test_it_works(device):
    """The profiles are in the wheel, the agent answers, the converter says what is missing."""
    bin_ = Path(device).parent
    listed = subprocess.run([bin_ / "edgeml", "profiles", "--json"], capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    assert "cpu-x86-64" in listed.stdout
    done = subprocess.run([bin_ / "edgeml-agent", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [bin_ / "edgeml", "convert", "x.onnx", "--profile", "cpu-x86-64"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert "pip install 'edgeml-kit[convert]'" in done.stderr
