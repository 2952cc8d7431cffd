"""FleetClient: the API from the command line's side, with the standard library alone."""

from __future__ import annotations

import http
import http.client
import io
import tarfile
import tempfile
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from edgeml import errors
from edgeml.errors import EdgemlError, InputError, InternalError, UnreachableError, UsageError
from edgeml.fleet import views
from edgeml.fleet.measurement import Measurement, MeasureRequest

T = TypeVar("T")
_TIMEOUT = 60.0


class _Problem(msgspec.Struct, frozen=True):
    type: str = "InternalError"
    detail: str = ""
    hint: str = ""


class FleetClient:
    """A fleet server, as the command line sees it.

    Args:
        server: Its address, for example ``http://127.0.0.1:8080``.
        token: Bearer token.

    Raises:
        UsageError: The address is not one.
    """

    def __init__(self, server: str, token: str) -> None:
        """Keep the address; every call is a connection of its own."""
        parts = urllib.parse.urlsplit(server)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(
                f"server '{server}' is no address", "for example --server http://127.0.0.1:8080"
            )
        self._server = server.rstrip("/")
        self._tls = parts.scheme == "https"
        self._host, self._port, self._base = parts.hostname, parts.port, parts.path.rstrip("/")
        self._token = token

    def devices(self) -> list[views.DeviceRow]:
        """Return all devices."""
        return self._get("devices", list[views.DeviceRow])

    def device(self, name: str) -> views.DeviceDetail:
        """Return one device."""
        return self._get(f"devices/{_quoted(name)}", views.DeviceDetail)

    def enrol(
        self, device: str, profile: str, tags: Mapping[str, str] | None
    ) -> tuple[bytes, bool]:
        """Make a device known; return its enrolment file, and whether it was known already.

        Without tags a known device keeps its own.
        """
        body = {"profile": profile, "tags": dict(tags) if tags is not None else None}
        stream = io.BytesIO(msgspec.json.encode(body))
        path = f"devices/{_quoted(device)}/enrol"
        status, data = self._exchange("POST", path, stream, "application/json")
        return data, status != http.HTTPStatus.CREATED

    def versions(self, model: str = "") -> list[views.VersionRow]:
        """Return the versions in the registry."""
        return self._get(f"models?model={_quoted(model)}", list[views.VersionRow])

    def version(self, model: str, version: str) -> views.VersionDetail:
        """Return one version."""
        return self._get(f"models/{_quoted(model)}/{_quoted(version)}", views.VersionDetail)

    def push(self, path: Path) -> views.VersionRow:
        """Send a bundle: a tar as it is, a folder as a tar.

        Raises:
            InputError: It cannot be read.
        """
        try:
            with _opened(path) as stream:
                data = self._request("POST", "models", stream, "application/octet-stream")
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        return _decode(data, views.VersionRow)

    def measure(self, path: Path, request: MeasureRequest) -> Measurement:
        """Send a bundle whose variants devices shall measure.

        Raises:
            InputError: It cannot be read.
        """
        query = urllib.parse.urlencode(msgspec.to_builtins(request))
        try:
            with _opened(path) as stream:
                place = f"measurements?{query}"
                data = self._request("POST", place, stream, "application/octet-stream")
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        return _decode(data, Measurement)

    def measurement(self, job: str) -> Measurement:
        """Return a measurement with what its devices said."""
        return self._get(f"measurements/{_quoted(job)}", Measurement)

    def cancel_measurement(self, job: str) -> Measurement:
        """End a measurement."""
        return _decode(self._send("POST", f"measurements/{_quoted(job)}/cancel", {}), Measurement)

    def set_alias(self, model: str, alias: str, version: str) -> views.VersionRow:
        """Point an alias at a version."""
        path = f"models/{_quoted(model)}/aliases/{_quoted(alias)}"
        return _decode(self._send("PUT", path, {"version": version}), views.VersionRow)

    def release(self, model: str, version: str, reason: str) -> views.Released:
        """Lift a version's quarantine."""
        path = f"models/{_quoted(model)}/{_quoted(version)}/release"
        return _decode(self._send("POST", path, {"reason": reason}), views.Released)

    def rollouts(self) -> list[views.RolloutRow]:
        """Return rollouts, newest first."""
        return self._get("rollouts", list[views.RolloutRow])

    def rollout(self, rollout: str) -> views.RolloutDetail:
        """Return one rollout."""
        return self._get(f"rollouts/{_quoted(rollout)}", views.RolloutDetail)

    def preview(self, request: views.RolloutRequest) -> views.Plan:
        """Return what a rollout would do."""
        return _decode(self._send("POST", "rollouts/preview", request), views.Plan)

    def create(self, request: views.RolloutRequest) -> views.RolloutRow:
        """Make a rollout and start it."""
        return _decode(self._send("POST", "rollouts", request), views.RolloutRow)

    def control(self, rollout: str, action: str, reason: str) -> views.RolloutRow:
        """Ask a rollout to pause, resume, abort or rollback."""
        path = f"rollouts/{_quoted(rollout)}/{_quoted(action)}"
        return _decode(self._send("POST", path, {"reason": reason}), views.RolloutRow)

    def events(self, limit: int, device: str = "") -> list[views.EventRow]:
        """Return the newest events."""
        return self._get(f"events?limit={limit}&device={_quoted(device)}", list[views.EventRow])

    def health(self) -> views.FleetHealth:
        """Return the fleet at a glance."""
        return self._get("health", views.FleetHealth)

    def _get(self, path: str, kind: type[T]) -> T:
        return _decode(self._request("GET", path, None, ""), kind)

    def _send(self, method: str, path: str, body: object) -> bytes:
        return self._request(
            method, path, io.BytesIO(msgspec.json.encode(body)), "application/json"
        )

    def _request(self, method: str, path: str, body: IO[bytes] | None, kind: str) -> bytes:
        return self._exchange(method, path, body, kind)[1]

    def _exchange(
        self, method: str, path: str, body: IO[bytes] | None, kind: str
    ) -> tuple[int, bytes]:
        """Return status and body of a good reply.

        Raises:
            EdgemlError: What the server said, as the family that it named.
            UnreachableError: There is no server, or it does not speak like one.
        """
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        if body is not None:
            headers["Content-Type"] = kind
            headers["Content-Length"] = str(body.seek(0, io.SEEK_END))
            body.seek(0)
        maker = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = maker(self._host, self._port, timeout=_TIMEOUT)
        try:
            connection.request(method, f"{self._base}/api/v1/{path}", body, headers)
            reply = connection.getresponse()
            data = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(
                f"no fleet answers at {self._server}: {error or type(error).__name__}",
                "start one with 'edgeml fleet serve', or give its address with --server",
            ) from error
        finally:
            connection.close()
        if reply.status >= 400:
            raise self._error(reply.status, data)
        return reply.status, data

    def _error(self, status: int, data: bytes) -> EdgemlError:
        try:
            problem = msgspec.json.decode(data, type=_Problem)
        except msgspec.DecodeError:
            return UnreachableError(f"{self._server} answers with status {status}, not as a fleet")
        hint = problem.hint
        if status == 401 and not hint:
            hint = "give the token in DATA/admin-token of the server with --token or EDGEML_TOKEN"
        family = getattr(errors, problem.type, InternalError)
        if not (isinstance(family, type) and issubclass(family, EdgemlError)):
            family = InternalError
        return family(problem.detail, hint)


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="@")


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise UnreachableError(f"the server's reply cannot be understood: {error}") from error


def _opened(path: Path) -> IO[bytes]:
    """Return a bundle as one stream of bytes."""
    if not path.is_dir():
        return path.open("rb")
    if not (path / "oci-layout").is_file():
        raise InputError(f"the folder {path} is not a bundle", "it holds no file oci-layout")
    stream = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("oci-layout", "index.json"):
            tar.add(path / name, name)
        for blob in sorted((path / "blobs" / "sha256").iterdir()):
            tar.add(blob, f"blobs/sha256/{blob.name}", recursive=False)
    return stream
