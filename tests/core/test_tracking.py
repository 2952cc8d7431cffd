"""Trackers: a folder, and an MLflow server."""

import base64
import json
import os
import threading
import urllib.request
import uuid
from urllib.parse import urlencode

import pytest

from edgeml.errors import UnreachableError, UsageError
from edgeml.tracking import Record, open_tracker
from tests.support.mlflow_server import small_server

REAL = os.environ.get("EDGEML_TEST_MLFLOW", "")
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def record(tmp_path):
    bundle = tmp_path / "digits-1.0.0.edgeml"
    bundle.write_bytes(b"a bundle" * 1000)
    name = f"digits-{uuid.uuid4().hex[:8]}"
    return Record(
        name=name,
        version="1.0.0",
        bundle=bundle,
        digest=DIGEST,
        params={"metric": "top1", "data": "x" * 9000, "odd (name)": "1"},
        metrics={"cpu.speedup": 2.5, "cpu.latency_p50_ms": 0.25},
        tags={"digest": DIGEST, "profiles": "cpu-x86-64"},
        lineage={"source": "digits.onnx", "steps": {}},
        files={"report.html": b"<html></html>", "report.md": b"# told\n"},
    )


@pytest.fixture
def server(monkeypatch):
    for name in ("URI", "TOKEN", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    with small_server() as (address, state):
        yield address, state


def test_a_folder_keeps_one_line_for_each_conversion_and_the_report(tmp_path, record):
    tracker = open_tracker(str(tmp_path / "runs"))
    assert tracker.name == "files"
    where = tracker.keep(record)
    open_tracker(f"files:{tmp_path / 'runs'}").keep(record)
    lines = [json.loads(line) for line in (tmp_path / "runs/runs.jsonl").read_text().splitlines()]
    assert [line["digest"] for line in lines] == [DIGEST, DIGEST]
    assert lines[0]["metrics"] == record.metrics
    assert where == str(tmp_path / "runs" / lines[0]["folder"])
    kept = tmp_path / "runs" / lines[0]["folder"]
    assert sorted(p.name for p in kept.iterdir()) == ["lineage.json", "report.html", "report.md"]
    assert json.loads((kept / "lineage.json").read_text())["source"] == "digits.onnx"


def test_many_writers_share_a_folder(tmp_path, record):
    threads = [
        threading.Thread(
            target=open_tracker(str(tmp_path / "runs")).keep, args=(record,), daemon=True
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    lines = (tmp_path / "runs/runs.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 8


def ask(address, place, /, **query):
    with urllib.request.urlopen(f"{address}/api/2.0/{place}?{urlencode(query)}") as answer:
        return json.load(answer)


@pytest.mark.mlflow
def test_a_real_mlflow_server_shows_run_artefacts_and_version(record):
    where = open_tracker(REAL).keep(record)
    open_tracker(REAL).keep(record)
    run = ask(REAL, "mlflow/runs/get", run_id=where.rpartition("/")[2])["run"]
    assert run["info"]["status"] == "FINISHED"
    params = {p["key"]: p["value"] for p in run["data"]["params"]}
    assert params["metric"] == "top1"
    metrics = {m["key"]: m["value"] for m in run["data"]["metrics"]}
    assert metrics == record.metrics
    root = run["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
    found = ask(REAL, "mlflow/artifacts/list", run_id=run["info"]["run_id"], path="model")
    sizes = {f["path"]: int(f["file_size"]) for f in found["files"]}
    assert sizes["model/digits-1.0.0.edgeml"] == 8000
    name = urlencode({"x": f"{root}/model/digits-1.0.0.edgeml"})[2:].replace("%2F", "/")
    with urllib.request.urlopen(f"{REAL}/api/2.0/mlflow-artifacts/artifacts/{name}") as answer:
        assert answer.read() == record.bundle.read_bytes()
    wanted = f"name='{record.name}'"
    versions = ask(REAL, "mlflow/model-versions/search", filter=wanted)["model_versions"]
    assert sorted(v["version"] for v in versions) == ["1", "2"]
    assert {v["run_id"] for v in versions} >= {run["info"]["run_id"]}
    tags = {t["key"]: t["value"] for t in versions[0]["tags"]}
    assert tags["edgeml.digest"] == DIGEST
    assert tags["edgeml.bundle_version"] == "1.0.0"


def test_mlflow_gets_a_run_with_artefacts_and_a_version_of_the_model(server, record):
    address, state = server
    where = open_tracker(address).keep(record)
    (run_id, run), *_ = state.runs.items()
    assert where.endswith(run_id)
    assert run["status"] == "FINISHED"
    assert run["metrics"] == record.metrics
    assert run["params"]["odd _name_"] == "1"
    assert run["tags"]["edgeml.digest"] == DIGEST
    artifacts = {k.partition("artifacts/")[2]: v for k, v in state.artifacts.items()}
    assert artifacts["model/digits-1.0.0.edgeml"] == record.bundle.read_bytes()
    assert artifacts["report/report.md"] == b"# told\n"
    assert json.loads(artifacts["model/MLmodel"])["flavors"]["edgeml"]["digest"] == DIGEST
    (version,) = state.versions
    assert version["source"] == f"mlflow-artifacts:/1/{run_id}/artifacts/model"
    open_tracker(address).keep(record)
    assert [v["version"] for v in state.versions] == ["1", "2"]
    assert list(state.experiments) == ["edgeml"]


def test_a_store_on_this_machine_is_written_to(server, record, tmp_path):
    address, state = server
    state.artifact_root = (tmp_path / "a store").as_uri()
    open_tracker(address).keep(record)
    (kept,) = (tmp_path / "a store").rglob("*.edgeml")
    assert kept.read_bytes() == record.bundle.read_bytes()


def test_what_goes_wrong_marks_the_run_as_failed(server, record):
    address, state = server
    state.artifact_root = "s3://bucket"
    with pytest.raises(UsageError, match="s3://bucket") as caught:
        open_tracker(address).keep(record)
    assert "--serve-artifacts" in caught.value.hint
    assert [run["status"] for run in state.runs.values()] == ["FAILED"]
    assert state.versions == []


def test_mlflow_in_the_environment_is_used_only_when_it_is_asked_for(
    server, record, monkeypatch, tmp_path
):
    address, state = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    open_tracker(str(tmp_path / "runs")).keep(record)
    assert state.calls == []
    open_tracker("mlflow").keep(record)
    told = base64.b64encode(b"ann:secret").decode()
    assert {h.get("Authorization") for h in state.headers} == {f"Basic {told}"}


def test_a_server_that_refuses_us_says_what_to_set(server):
    address, state = server
    state.fail["mlflow/experiments/get-by-name"] = (401, "UNAUTHENTICATED")
    with pytest.raises(UsageError) as caught:
        open_tracker(address)
    assert "MLFLOW_TRACKING_TOKEN" in caught.value.hint
    state.fail["mlflow/experiments/get-by-name"] = (500, "INTERNAL_ERROR")
    with pytest.raises(UnreachableError):
        open_tracker(address)


@pytest.mark.parametrize(
    ("place", "error", "says"),
    [
        ("", UsageError, "empty"),
        ("http://127.0.0.1:1", UnreachableError, "does not answer"),
        ("http://127.0.0.1:x", UsageError, "no address"),
        ("sqlite:///mlflow.db", UsageError, "sqlite"),
        ("mlflow", UsageError, "MLFLOW_TRACKING_URI"),
        ("mlflow:ftp://x", UsageError, "ftp://x"),
        ("/dev/null/runs", UsageError, "/dev/null/runs"),
    ],
)
def test_a_place_that_is_none_is_one_line_and_a_hint(place, error, says, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(error) as caught:
        open_tracker(place)
    assert says in caught.value.message
    assert caught.value.hint
