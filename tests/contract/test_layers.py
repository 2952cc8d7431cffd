"""The layers hold, and the linter that holds them can fail."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_layers_hold():
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_only_cli_and_plugins_import_by_string():
    for package in ("src/edgeml", "agent", "converters"):
        for path in (ROOT / package).rglob("*.py"):
            inner = path.relative_to(ROOT).as_posix()
            if inner.startswith("src/edgeml/cli/") or inner == "src/edgeml/plugins.py":
                continue
            text = path.read_text()
            for line in ("import importlib\n", "import_module(", "__import__("):
                assert line not in text, f"{inner} imports by string"


def test_the_name_of_somebody_else_is_never_installed():
    """``edgeml`` on the package index belongs to somebody else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "edgeml-kit"
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py")]:
        text = path.read_text()
        assert "pip install edgeml\n" not in text
        assert "pip install 'edgeml[" not in text, path
