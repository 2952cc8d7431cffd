"""agent.toml: the agent's configuration, decoded strictly.

An unknown key is an error that names the nearest known one. Paths are relative to the file's own
folder. ``EDGEML_AGENT_BROKER_HOST``, ``..._BROKER_PORT`` and ``..._STATE`` override the file, for
containers.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgeml.errors import UsageError, nearest
from edgeml.messages.topics import check_name
from edgeml_agent import durable
from edgeml_agent.serve.settings import Settings, check_settings

_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]+)`(?: - at `(?P<at>[^`]+)`)?")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ENVIRONMENT = {
    "EDGEML_AGENT_STATE": ("state", str),
    "EDGEML_AGENT_BROKER_HOST": ("broker.host", str),
    "EDGEML_AGENT_BROKER_PORT": ("broker.port", int),
}


class Broker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the fleet's broker is.

    Attributes:
        host: Name or address.
        port: TCP port.
    """

    host: str
    port: int = 1883


class TelemetrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is told to the fleet.

    Attributes:
        window_seconds: Length of one window of counts.
    """

    window_seconds: float = 30.0


class SlotSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Lower bounds of every trial, whatever the fleet asks for.

    Attributes:
        min_requests: A trial asks for at least so many requests ...
        min_seconds: ... or lasts at least so long.
    """

    min_requests: int = 0
    min_seconds: float = 0.0


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything in agent.toml.

    Attributes:
        device: Id of this device; also its MQTT client id.
        fleet: Name of the fleet.
        state: Folder of everything that the agent must remember.
        root: The root of trust (TUF's root.json, as it was at enrolment).
        broker: Where the broker is.
        profile: Hardware profile, or ``auto``.
        tags: Tags that the fleet's selectors may use.
        serve: Settings of the data plane.
        telemetry: What is told to the fleet.
        slots: Lower bounds of trials.
    """

    device: str
    fleet: str
    state: str
    root: str
    broker: Broker
    profile: str = "auto"
    tags: dict[str, str] = {}
    serve: Settings = Settings()
    telemetry: TelemetrySettings = TelemetrySettings()
    slots: SlotSettings = SlotSettings()


def load(path: Path, environment: Mapping[str, str] = os.environ) -> AgentConfig:
    """Return the configuration in a file; its paths absolute.

    Args:
        path: agent.toml.
        environment: Variables that override it.

    Raises:
        UsageError: No such file, not TOML, an unknown key, or a value that cannot be used.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", "make it with 'edgeml-agent enrol FILE'"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    _override(document, environment)
    try:
        found = msgspec.convert(document, AgentConfig)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {error}", _hint(str(error))) from error
    _check(found, path)
    base = path.resolve().parent
    return msgspec.structs.replace(
        found, state=str(base / found.state), root=str(base / found.root)
    )


def dump(config: AgentConfig, head: str = "") -> str:
    """Return a configuration as TOML.

    Args:
        config: What to write; only what differs from the defaults is.
        head: Comment lines to put before it.
    """
    plain = msgspec.to_builtins(config)
    defaults = msgspec.to_builtins(
        AgentConfig(device="", fleet="", state="", root="", broker=Broker(""))
    )
    plain = {key: value for key, value in plain.items() if value != defaults[key]}
    lines = [f"# {line}" for line in head.splitlines()]
    lines += [f"{_key(k)} = {_scalar(v)}" for k, v in plain.items() if not isinstance(v, dict)]
    for name, table in plain.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]"] + [f"{_key(k)} = {_scalar(v)}" for k, v in table.items()]
    return "\n".join(lines) + "\n"


def write(config: AgentConfig, path: Path, head: str = "") -> None:
    """Write a configuration, whole or not at all. Raises OSError."""
    durable.write(path, dump(config, head).encode())


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _scalar(name)


def _scalar(value: object) -> str:
    # TOML's basic strings, numbers and booleans are written as in JSON.
    return msgspec.json.encode(value).decode()


def _override(document: dict[str, Any], environment: Mapping[str, str]) -> None:
    for variable, (key, kind) in _ENVIRONMENT.items():
        if variable not in environment:
            continue
        table, _, name = key.rpartition(".")
        place = document.setdefault(table, {}) if table else document
        try:
            place[name] = kind(environment[variable])
        except ValueError as error:
            raise UsageError(
                f"{variable} is '{environment[variable]}', expected a number"
            ) from error


def _hint(message: str) -> str:
    found = _UNKNOWN.search(message)
    if found is None:
        return "agent.example.toml explains every key"
    table = (found["at"] or "$").removeprefix("$").strip(".")
    tables: dict[str, type[msgspec.Struct]] = {
        "": AgentConfig,
        "broker": Broker,
        "serve": Settings,
        "telemetry": TelemetrySettings,
        "slots": SlotSettings,
    }
    known = [field.name for field in msgspec.structs.fields(tables.get(table, AgentConfig))]
    return nearest(found["key"], known)


def _check(config: AgentConfig, path: Path) -> None:
    check_name(config.device, "device")
    check_name(config.fleet, "fleet")
    check_settings(config.serve)
    if not 0 < config.broker.port < 65536:
        raise UsageError(f"{path}: broker.port is {config.broker.port}, expected 1 to 65535")
    if not 0.1 <= config.telemetry.window_seconds <= 86_400:
        raise UsageError(
            f"{path}: telemetry.window_seconds is {config.telemetry.window_seconds}, "
            "expected 0.1 to 86400"
        )
    if config.slots.min_requests < 0 or config.slots.min_seconds < 0:
        raise UsageError(f"{path}: [slots] holds a negative number")
