"""OpenAPI from msgspec structs: FastAPI knows the paths, the structs know their schemas."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Response

from edgeml.fleet import measurement, views
from edgeml.messages.payloads import Ref

_TEMPLATE = "#/components/schemas/{name}"


class Problem(msgspec.Struct, frozen=True):
    """An error (RFC 9457): what went wrong, and what to do next.

    Attributes:
        type: Name of the family of ``edgeml.errors``.
        title: The same in words.
        status: The HTTP status.
        detail: One line: what, got, expected, where.
        hint: One line: what to do next.
        exit_code: What the command line ends with.
    """

    type: str
    title: str
    status: int
    detail: str
    hint: str = ""
    exit_code: int = 70


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Name and password."""

    user: str
    password: str


class Alias(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The version that an alias shall point to."""

    version: str


class Control(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Why something is asked for."""

    reason: str = ""


class Enrol(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Who a new device is to be."""

    profile: str = "auto"
    tags: dict[str, str] | None = None


_KINDS: tuple[type, ...] = (
    Problem, Login, Alias, Control, Enrol, Ref, measurement.Measurement,
    views.Change, views.DeviceDetail, views.DeviceRow, views.EventRow, views.FleetHealth,
    views.Plan, views.Released, views.RolloutDetail, views.RolloutRequest, views.RolloutRow,
    views.Session, views.VersionDetail, views.VersionRow,
)  # fmt: skip


def reply(value: object, status: int = 200) -> Response:
    """Return a struct, or a list of them, as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def shape(kind: type, *, many: bool = False, takes: type | None = None) -> dict[str, Any]:
    """Return what a route says of its reply and of its body, for ``app.get(..., **shape(X))``.

    Args:
        kind: The struct that comes back.
        many: Whether a list of them does.
        takes: The struct in the body, if any.
    """
    schema: dict[str, Any] = {"$ref": _TEMPLATE.format(name=kind.__name__)}
    if many:
        schema = {"type": "array", "items": schema}
    problem = {"schema": {"$ref": _TEMPLATE.format(name="Problem")}}
    said: dict[str, Any] = {
        "responses": {
            200: {"description": "Done", "content": {"application/json": {"schema": schema}}},
            "default": {
                "description": "An error",
                "content": {"application/problem+json": problem},
            },
        }
    }
    if takes is not None:
        body = {"schema": {"$ref": _TEMPLATE.format(name=takes.__name__)}}
        said["openapi_extra"] = {
            "requestBody": {"required": True, "content": {"application/json": body}}
        }
    return said


def install(app: FastAPI) -> None:
    """Add the schemas of the structs to the application's OpenAPI document."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        _, components = msgspec.json.schema_components(_KINDS, ref_template=_TEMPLATE)
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
