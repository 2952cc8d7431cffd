"""The tracker for MLflow: a run with its artefacts, and a version of a registered model.

It speaks REST, and needs no package: docs/decisions/0020 says why.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec

from edgeml import __version__
from edgeml.errors import EdgemlError, UsageError
from edgeml.tracking.base import Record
from edgeml.tracking.rest import Rest, RestError

_ADDRESS = "MLFLOW_TRACKING_URI"
_EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"
#: One call of log-batch takes at most so many of each (MLflow's documentation).
_PARAMS, _METRICS = 100, 1000
_LONGEST_VALUE = 500
_STRANGE = re.compile(r"[^A-Za-z0-9_.\- /:]+")


class MlflowTracker:
    """Keeps records on an MLflow server."""

    name: ClassVar[str] = "mlflow"

    def __init__(self, rest: Rest, experiment: str) -> None:
        """Take the server and the id of the experiment; use ``open``."""
        self._rest = rest
        self._experiment = experiment

    @classmethod
    def open(cls, address: str) -> Self:
        """Return the tracker, its experiment made when it is not there.

        Args:
            address: Of the server; ``MLFLOW_TRACKING_URI`` when empty. The experiment is
                ``MLFLOW_EXPERIMENT_NAME``, else ``edgeml``.

        Raises:
            UsageError: There is no such address, or the server refuses us.
            UnreachableError: It does not answer.
        """
        chosen = address or os.environ.get(_ADDRESS, "")
        if not chosen:
            raise UsageError(
                f"'--track mlflow' needs the address of a server, and {_ADDRESS} is not set",
                f"set {_ADDRESS}, or give the address: --track http://HOST:PORT",
            )
        rest = Rest(chosen)
        return cls(rest, _experiment(rest, os.environ.get(_EXPERIMENT) or "edgeml"))

    def keep(self, record: Record) -> str:
        """Make the run, log to it, hand its files over, and register the version.

        Returns:
            The address of the run's page.

        Raises:
            UsageError: The server refuses something; the run is marked as failed.
            UnreachableError: It does not answer.
        """
        run = self._start(record)
        run_id = run["info"]["run_id"]
        try:
            self._log(run_id, record)
            source = self._upload(run["info"]["artifact_uri"], run_id, record)
            self._register(run_id, source, record)
        except EdgemlError:
            self._end(run_id, "FAILED")
            raise
        self._end(run_id, "FINISHED")
        return f"{self._rest.address}/#/experiments/{self._experiment}/runs/{run_id}"

    def _start(self, record: Record) -> dict[str, Any]:
        tags = {
            "mlflow.source.name": "edgeml convert",
            "mlflow.source.type": "LOCAL",
            "edgeml.version": __version__,
            **_prefixed(record),
        }
        body = {
            "experiment_id": self._experiment,
            "run_name": f"{record.name} {record.version}",
            "start_time": _now(),
            "tags": _pairs(tags),
        }
        run: dict[str, Any] = self._rest.post("runs/create", body)["run"]
        return run

    def _end(self, run_id: str, status: str) -> None:
        body = {"run_id": run_id, "status": status, "end_time": _now()}
        self._rest.post("runs/update", body)

    def _log(self, run_id: str, record: Record) -> None:
        for part in _parts(_pairs(record.params, _LONGEST_VALUE), _PARAMS):
            self._rest.post("runs/log-batch", {"run_id": run_id, "params": part})
        metrics = [
            {"key": _key(k), "value": v, "timestamp": _now(), "step": 0}
            for k, v in record.metrics.items()
        ]
        for part in _parts(metrics, _METRICS):
            self._rest.post("runs/log-batch", {"run_id": run_id, "metrics": part})

    def _upload(self, root: str, run_id: str, record: Record) -> str:
        """Hand over the model, the report and the lineage; return where the model lies."""
        lineage = msgspec.json.format(msgspec.json.encode(record.lineage), indent=2)
        model = f"model/{record.bundle.name}"
        files: dict[str, bytes | Path] = {
            **{f"report/{name}": data for name, data in record.files.items()},
            "lineage.json": lineage,
            "model/MLmodel": _mlmodel(run_id, record),
            **dict(_bundle_files(record.bundle, model)),
        }
        for path, data in files.items():
            self._put(root, path, data)
        return f"{root}/model"

    def _put(self, root: str, path: str, data: bytes | Path) -> None:
        """Put one artefact where the run's artefacts are.

        Raises:
            UsageError: They are in a store that the server does not stand before.
        """
        scheme, _, _ = root.partition(":")
        if scheme == "mlflow-artifacts":
            place = urllib.parse.urlsplit(root).path.strip("/")
            self._rest.put_artifact(f"{place}/{path}", data)
            return
        folder = Path(urllib.parse.unquote(urllib.parse.urlsplit(root).path))
        if scheme == "file" or root.startswith("/"):
            try:
                _copy(folder / path, data)
            except OSError as error:
                raise UsageError(
                    f"cannot write artefacts of MLflow to '{folder}': {error.strerror}",
                    "start 'mlflow server' with --serve-artifacts: then it takes them itself",
                ) from error
            return
        raise UsageError(
            f"the artefacts of this MLflow server are at '{root}', which it does not take itself",
            "start 'mlflow server' with --serve-artifacts and --artifacts-destination",
        )

    def _register(self, run_id: str, source: str, record: Record) -> None:
        try:
            self._rest.post("registered-models/create", {"name": record.name})
        except RestError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
        body = {
            "name": record.name,
            "source": source,
            "run_id": run_id,
            "description": f"{record.name} {record.version}, made by edgeml {__version__}",
            "tags": _pairs({"edgeml.bundle_version": record.version, **_prefixed(record)}),
        }
        self._rest.post("model-versions/create", body)


def _experiment(rest: Rest, name: str) -> str:
    """Return the id of an experiment, made when it is not there."""
    try:
        found = rest.get("experiments/get-by-name", experiment_name=name)["experiment"]
    except RestError as error:
        if error.code != "RESOURCE_DOES_NOT_EXIST":
            raise
    else:
        return str(found["experiment_id"])
    try:
        return str(rest.post("experiments/create", {"name": name})["experiment_id"])
    except RestError as error:
        if error.code != "RESOURCE_ALREADY_EXISTS":  # somebody was quicker
            raise
        found = rest.get("experiments/get-by-name", experiment_name=name)["experiment"]
        return str(found["experiment_id"])


def _prefixed(record: Record) -> dict[str, str]:
    return {f"edgeml.{key}": value for key, value in record.tags.items()}


def _mlmodel(run_id: str, record: Record) -> bytes:
    """Return the file by which MLflow knows a folder as a model (YAML, of which JSON is a part)."""
    told = {
        "artifact_path": "model",
        "run_id": run_id,
        "flavors": {
            "edgeml": {
                "bundle": record.bundle.name,
                "digest": record.digest,
                "edgeml_version": __version__,
            }
        },
    }
    return msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n"


def _bundle_files(bundle: Path, root: str) -> Iterator[tuple[str, Path]]:
    """Yield path of an artefact and file: a bundle is one file, or a folder of them."""
    if bundle.is_file():
        yield root, bundle
        return
    for path in sorted(p for p in bundle.rglob("*") if p.is_file()):
        yield f"{root}/{path.relative_to(bundle).as_posix()}", path


def _copy(target: Path, data: bytes | Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, Path):
        shutil.copyfile(data, target)
    else:
        target.write_bytes(data)


def _pairs(values: Mapping[str, str], longest: int = 5000) -> list[dict[str, str]]:
    return [{"key": _key(key), "value": value[:longest]} for key, value in values.items()]


def _key(name: str) -> str:
    """Return a name in the letters that MLflow allows."""
    return _STRANGE.sub("_", name)[:250]


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _now() -> int:
    return time.time_ns() // 1_000_000
