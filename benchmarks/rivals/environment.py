"""The environment of the peers: pinned versions, made once, never part of the product's."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

#: ``requests`` and ``sympy`` are what olive-ai and onnxruntime's pre-processing import without
#: declaring them.
PINS = (
    "onnxruntime==1.31.1",
    "openvino==2026.4.1",
    "nncf==3.4.0",
    "olive-ai==0.13.0",
    "requests",
    "sympy",
)
#: Which pin a way of converting needs.
NEEDS = {"ort static": 0, "ort U8S8": 0, "ort dynamic": 0, "nncf on openvino": 2, "olive": 3}


def ensure(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return the environment's Python, and what could not be installed: package -> reason.

    Args:
        folder: Where it is, or is made.
    """
    python = folder / "bin" / "python"
    made = folder / "made.json"
    wanted = list(PINS)
    if made.is_file():
        known = json.loads(made.read_text())
        if known["pins"] == wanted:
            return python, known["missing"]
    if not python.is_file():
        venv.create(folder, with_pip=True)
    missing = {}
    if _install(python, wanted):
        for pin in wanted:
            reason = _install(python, [pin])
            if reason:
                missing[pin] = reason
    made.write_text(json.dumps({"pins": wanted, "missing": missing}))
    return python, missing


def _install(python: Path, pins: list[str]) -> str:
    """Install; return why it failed, empty when it did not."""
    print(f"installing {', '.join(pins)} for the peers (once) ...", file=sys.stderr)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *pins], capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines[-1] if lines else f"exit {done.returncode}")
