"""What every test shares."""

import os

import pytest

from tests.support.corpus import CORPUS

_left_out: list[str] = []


def pytest_collection_modifyitems(config, items):
    """Deselect what needs the corpus, or a real MLflow, where there is none; the end lists it."""
    absent = {
        "corpus": not CORPUS.is_dir(),
        "mlflow": not os.environ.get("EDGEML_TEST_MLFLOW"),
    }
    marks = [name for name, gone in absent.items() if gone]
    out = [item for item in items if any(item.get_closest_marker(mark) for mark in marks)]
    if out:
        _left_out.extend(item.nodeid for item in out)
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in set(out)]


def pytest_terminal_summary(terminalreporter):
    """List what was deselected, and why."""
    if _left_out:
        terminalreporter.section(
            "deselected: no corpus beside the checkout, or no MLflow server (make test-mlflow)"
        )
        for nodeid in _left_out:
            terminalreporter.line(nodeid)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    """Keep every test away from the user's own configuration and cache."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    for name in ("CONFIG", "CACHE", "STATE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))
    for name in ("EDGEML_TOKEN", "EDGEML_SERVER"):
        monkeypatch.delenv(name, raising=False)
