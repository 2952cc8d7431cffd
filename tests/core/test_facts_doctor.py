"""The command that tells what works."""

import importlib.metadata
import json

import pytest

from edgeml.cli import doctor
from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import Row
from edgeml.errors import ProfileError

GROUP = LazyGroup({"doctor": Row("edgeml.cli.doctor:command", "")}, name="edgeml")


def test_this_machine(capfd):
    assert run(GROUP, ["doctor", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["ok"]
    assert {row["name"] for row in report["core"]} >= {"python", "numpy", "tuf"}
    assert {row["name"] for row in report["runtimes"]} >= {"onnxruntime", "openvino", "litert"}
    assert all(row["ok"] for row in report["runtimes"] + report["programs"])
    assert report["facts"]["cores"] >= 1
    assert report["programs"][0]["version"][0].isdigit()


def test_for_people(capfd):
    assert run(GROUP, ["doctor"]) == 0
    out = capfd.readouterr().out
    assert "the core works" in out
    assert "onnxruntime" in out


def test_what_is_missing_comes_with_the_line_that_installs_it(monkeypatch, capfd):
    real = importlib.metadata.version

    def version(name):
        if name in ("tuf", "fastapi"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor.shutil, "which", lambda *_, **__: None)
    assert run(GROUP, ["doctor"]) == 3
    out = capfd.readouterr().out
    assert "pip install tuf" in out
    assert "edgeml-kit[fleet]" in out
    assert "apt install mosquitto" in out
    assert "does not work" in out


def test_a_machine_that_no_profile_fits(monkeypatch):
    def none_fits(facts):
        raise ProfileError("no profile fits", "x: it is for y")

    monkeypatch.setattr("edgeml.hardware.best_profile", none_fits)
    assert doctor._profile(None) == {
        "name": "",
        "ok": False,
        "hint": "no profile fits: x: it is for y",
    }


@pytest.mark.parametrize("module", sorted(doctor._OPTIONAL))
def test_every_optional_package_names_its_extra(module):
    assert "edgeml-kit[" in doctor.missing(module).hint
