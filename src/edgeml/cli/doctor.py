"""``edgeml doctor``: what works here, what does not, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from typing import Any

import click

from edgeml.errors import ProfileError
from edgeml.plugins import missing

#: Module -> distribution. Without these nothing works.
_CORE = {
    "click": "click",
    "msgspec": "msgspec",
    "numpy": "numpy",
    "paho": "paho-mqtt",
    "securesystemslib": "securesystemslib",
    "tuf": "tuf",
}
#: Module -> distribution of what an extra brings.
_OPTIONAL = {
    "httptools": "httptools",
    "onnx": "onnx",
    "matplotlib": "matplotlib",
    "fastapi": "fastapi",
    "nicegui": "nicegui",
    "sqlalchemy": "sqlalchemy",
    "uvicorn": "uvicorn",
    "amqtt": "amqtt",
}
_PYTHONS = ((3, 11), (3, 13))
_EXIT_MISSING = 3


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> int:
    """Tell what works on this machine, and how to get the rest."""
    report = examine()
    click.echo(json.dumps(report) if as_json else _text(report))
    return 0 if report["ok"] else _EXIT_MISSING


def examine() -> dict[str, Any]:
    """Return everything that the command reports, as plain values."""
    import msgspec

    from edgeml.runtime.facts import device_facts, host_line, probe_runtimes

    runtimes = probe_runtimes()
    facts = device_facts(runtimes)
    core = [_package(module, name) for module, name in _CORE.items()]
    python_ok = _PYTHONS[0] <= sys.version_info[:2] <= _PYTHONS[1]
    python = {
        "name": "python",
        "version": platform.python_version(),
        "ok": python_ok,
        "hint": "" if python_ok else "edgeml runs on Python 3.11 to 3.13",
    }
    return {
        "ok": python_ok and all(package["ok"] for package in core),
        "host": host_line(facts),
        "core": [python, *core],
        "runtimes": [
            {"name": name, "version": state.version, "ok": state.usable, "reason": state.reason,
             "hint": state.hint, "devices": list(state.devices)}
            for name, state in runtimes.items()
        ],
        "optional": [_package(module, name) for module, name in _OPTIONAL.items()],
        "programs": [_mosquitto()],
        "profile": _profile(facts),
        "facts": msgspec.to_builtins(facts),
    }  # fmt: skip


def _package(module: str, distribution: str) -> dict[str, Any]:
    """Return whether a distribution is installed, in which version, or how to install it."""
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return {"name": distribution, "version": "", "ok": False, "hint": missing(module).hint}
    return {"name": distribution, "version": version, "ok": True, "hint": ""}


def _mosquitto() -> dict[str, Any]:
    """Return whether the broker that `fleet serve` starts by itself is on the PATH."""
    path = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if path is None:
        hint = "apt install mosquitto (without it: amqtt, on loopback only)"
        return {"name": "mosquitto", "version": "", "ok": False, "hint": hint}
    done = subprocess.run([path, "-h"], capture_output=True, text=True, check=False, timeout=10)
    first = (done.stdout.splitlines() or [""])[0]
    version = first.removeprefix("mosquitto version ").strip()
    return {"name": "mosquitto", "version": version, "ok": bool(version), "hint": ""}


def _profile(facts: Any) -> dict[str, Any]:
    """Return the profile that fits this machine best."""
    from edgeml.hardware import best_profile

    try:
        profile = best_profile(facts)
    except ProfileError as error:
        return {"name": "", "ok": False, "hint": f"{error.message}: {error.hint}"}
    return {"name": profile.name, "ok": True, "hint": ""}


def _text(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [report["host"]]
    titles = {"core": "core", "runtimes": "runtimes", "optional": "optional packages",
              "programs": "programs"}  # fmt: skip
    for key, title in titles.items():
        lines += ["", f"{title}:"]
        for row in report[key]:
            mark = "ok" if row["ok"] else "--"
            told = "; ".join(text for text in (row.get("reason", ""), row["hint"]) if text)
            devices = ", ".join(row.get("devices", ()))
            extra = f"  ({devices})" if devices else ""
            line = f"  {mark}  {row['name']:18} {row['version']}{extra}  {told}"
            lines.append(line.rstrip())
    profile = report["profile"]
    lines += ["", f"profile: {profile['name'] or 'none fits'}  {profile['hint']}".rstrip()]
    lines += ["", "the core works" if report["ok"] else "the core does not work: see above"]
    return "\n".join(lines)
