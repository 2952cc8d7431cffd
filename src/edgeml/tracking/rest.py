"""MLflow's REST interface, as far as a tracker needs it.

The paths and fields are those of MLflow's documentation ("REST API"); they have been stable since
version 1, and the artefact proxy since version 1.24.
"""

from __future__ import annotations

import base64
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgeml.errors import UnreachableError, UsageError

_API = "api/2.0/mlflow/"
_ARTIFACTS = "api/2.0/mlflow-artifacts/artifacts/"
_TIMEOUT_S = 30.0
_REFUSED = (401, 403)


class RestError(UsageError):
    """The server answered, and said no.

    Args:
        message: One line.
        hint: What to do.
        code: MLflow's own error code, for example ``RESOURCE_ALREADY_EXISTS``.
    """

    def __init__(self, message: str, hint: str = "", code: str = "") -> None:
        """Keep the code beside the message."""
        super().__init__(message, hint)
        self.code = code


class Rest:
    """One MLflow server.

    Credentials are those that MLflow's own client takes: in the address, or
    ``MLFLOW_TRACKING_TOKEN``, or ``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD``.
    """

    def __init__(self, address: str) -> None:
        """Take the address; nothing is sent yet.

        Raises:
            UsageError: It is no address.
        """
        parts = urllib.parse.urlsplit(address)
        try:
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(
                f"'{address}' is no address: {error}", "expected http://HOST:PORT or https://HOST"
            ) from error
        if parts.scheme not in ("http", "https") or not host:
            raise UsageError(
                f"'{address}' is no address of an MLflow server",
                "expected http://HOST:PORT or https://HOST",
            )
        netloc = f"[{host}]" if ":" in host else host
        netloc += f":{port}" if port else ""
        self.address = f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}"
        self._headers = _authorization(parts)

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """Ask; see ``post``."""
        return self._json("GET", f"{_API}{path}?{urllib.parse.urlencode(query)}", None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send one object, and return the answer.

        Raises:
            RestError: The server said no.
            UnreachableError: It does not answer, or not as an MLflow server does.
        """
        return self._json("POST", _API + path, msgspec.json.encode(body))

    def put_artifact(self, path: str, data: bytes | Path) -> None:
        """Hand a file to the server, which puts it where its artefacts are; files are streamed.

        Raises:
            RestError: The server said no.
            UnreachableError: It does not answer.
        """
        place = _ARTIFACTS + urllib.parse.quote(path)
        if isinstance(data, bytes):
            self._send("PUT", place, data, {"Content-Type": "application/octet-stream"})
            return
        with data.open("rb") as stream:
            size = {"Content-Length": str(data.stat().st_size)}
            self._send("PUT", place, stream, {"Content-Type": "application/octet-stream", **size})

    def _json(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        answer = self._send(method, path, body, {"Content-Type": "application/json"})
        try:
            return msgspec.json.decode(answer or b"{}", type=dict[str, Any])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise UnreachableError(
                f"'{self.address}' does not answer as an MLflow server does", "check the address"
            ) from error

    def _send(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> bytes:
        request = urllib.request.Request(
            f"{self.address}/{path}", body, {**self._headers, **headers}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error.code, error.read(), path) from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise UnreachableError(
                f"the MLflow server {self.address} does not answer: {reason}",
                "start it, check the address, or leave --track out",
            ) from error

    def _refusal(self, status: int, answer: bytes, path: str) -> RestError | UnreachableError:
        try:
            told = msgspec.json.decode(answer, type=dict[str, Any])
        except (msgspec.DecodeError, msgspec.ValidationError):
            told = {}
        text = str(told.get("message") or http.client.responses.get(status, "no reason given"))
        said = f"{self.address} said {status} to {path.partition('?')[0]}: {text[:300]}"
        if status >= 500:
            return UnreachableError(said, "look into the log of the MLflow server")
        hint = "check the address, and the version of the MLflow server"
        if status in _REFUSED:
            hint = "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and ..._PASSWORD"
        return RestError(said, hint, str(told.get("error_code", "")))


def _authorization(parts: urllib.parse.SplitResult) -> dict[str, str]:
    """Return the header that proves who asks; empty without credentials."""
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")
    user = parts.username or os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    password = parts.password or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if user:
        pair = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password)}"
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
    return {"Authorization": f"Bearer {token}"} if token else {}
