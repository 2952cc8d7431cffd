"""What converting costs: time and memory on MobileNetV2, a second run, and the start of the CLI."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from rivals import process

from .products import PROFILE

LIMIT_S = 600.0
#: What -> most that it should be.
TARGETS = {
    "quick s": 15.0,
    "normal s": 60.0,
    "normal again s": 3.0,
    "memory ratio": 1.2,
    "help s": 0.2,
}


def measure(paths: tuple[Path, Path | None], work: Path) -> dict[str, float]:
    """Return what it costs; times in seconds, memory in bytes.

    Args:
        paths: MobileNetV2 and its data.
        work: Where the contest has put the record of onnxruntime's static quantisation.
    """
    folder = work / "costs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    found: dict[str, float] = {}
    for what, effort in (("quick", "quick"), ("normal", "normal"), ("normal again", "normal")):
        if what == "normal":
            shutil.rmtree(folder / "cache", ignore_errors=True)
        out = folder / f"{what.replace(' ', '-')}.edgeml"
        model, data = paths
        done = process.run(
            [sys.executable, "-m", "edgeml.cli", "convert", str(model), "--profile", PROFILE,
             "--data", str(data), "--effort", effort, "-o", str(out), "--json"],
            LIMIT_S, cache,
        )  # fmt: skip
        found |= {f"{what} s": done.seconds, f"{what} cpu s": done.cpu,
                  f"{what} peak bytes": float(done.peak_bytes)}  # fmt: skip
    helps = [process.run([sys.executable, "-m", "edgeml.cli", "--help"], 60.0) for _ in range(7)]
    found["help s"] = sorted(done.seconds for done in helps)[3]
    found["help cpu s"] = sorted(done.cpu for done in helps)[3]
    found |= _peer(work / "convert" / "mobilenetv2" / "peers" / "ort-static" / "record.json", found)
    return found


def _peer(record: Path, found: dict[str, float]) -> dict[str, float]:
    import json

    if not record.is_file():
        return {}
    theirs = float(json.loads(record.read_text())["peak"])
    return {"ort static peak bytes": theirs, "memory ratio": found["normal peak bytes"] / theirs}


def lines(found: dict[str, float]) -> list[str]:
    """Return the lines that tell it."""
    out = ["what converting MobileNetV2 costs:"]
    for what, value in found.items():
        shown = f"{value / 1e6:.0f} MB" if what.endswith("bytes") else f"{value:.2f}"
        most = f"  (at most {TARGETS[what]:g})" if what in TARGETS else ""
        out.append(f"  {what:24}{shown:>10}{most}")
    return out
