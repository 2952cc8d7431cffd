"""Enrol: from the fleet's enrolment file to a configured agent, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from edgeml.errors import InputError, UsageError
from edgeml.messages.enrolment import Enrolment, decode_enrolment
from edgeml_agent import config, durable
from edgeml_agent.serve.settings import Settings
from edgeml_agent.state import in_use

_HEAD = "Written by 'edgeml-agent enrol'; agent.example.toml explains every key."


def read(path: Path) -> Enrolment:
    """Return the enrolment in a file.

    Raises:
        InputError: It cannot be read, or is not one.
        UsageError: A name in it cannot be used.
        NotTrustedError: Its root of trust is not well-formed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return decode_enrolment(data)


def enrol(
    enrolment: Enrolment, folder: Path, *, http: str = "", force: bool = False
) -> config.AgentConfig:
    """Write ``agent.toml`` and ``root.json`` into a folder.

    Args:
        enrolment: What the fleet says.
        folder: Where; made when it is not there. The agent's state goes into ``state`` below.
        http: ``HOST:PORT`` of the data plane; empty for the default.
        force: Whether an earlier enrolment may be replaced. What the device has remembered
            (generation, versions) stays when fleet and device are the same.

    Returns:
        The configuration as it was written, with absolute paths.

    Raises:
        UsageError: The device is enrolled already, or an agent runs on this folder.
        NotTrustedError: The root of trust is not well-formed.
        OSError: The folder cannot be written.
    """
    target = folder / "agent.toml"
    if target.exists() and not force:
        raise UsageError(f"{folder} is enrolled already", "use --force to enrol it anew")
    state = folder / "state"
    if in_use(state):
        raise UsageError(f"an agent runs on {state}", "stop it first")
    durable.private_folder(folder)
    _check_root(enrolment.root.encode())
    found = config.AgentConfig(
        device=enrolment.device,
        fleet=enrolment.fleet,
        state="state",
        root="root.json",
        broker=config.Broker(enrolment.broker_host, enrolment.broker_port),
        profile=enrolment.profile,
        tags=enrolment.tags,
        serve=Settings(http=http) if http else Settings(),
    )
    if force and target.exists():
        _retire(target, enrolment, state)
    durable.write(folder / "root.json", enrolment.root.encode())
    config.write(found, target, _HEAD)
    return config.load(target, {})


def _check_root(root: bytes) -> None:
    """Check that a root of trust can be used, before anything is written."""
    import tempfile

    from edgeml.trust.client import TrustClient

    with tempfile.TemporaryDirectory() as scratch:
        TrustClient(Path(scratch), root, _no_network)


def _no_network(name: str) -> bytes:
    raise FileNotFoundError(name)


def _retire(target: Path, enrolment: Enrolment, state: Path) -> None:
    """Put the state of another device, or of another root of trust, aside."""
    before = config.load(target, {})
    root = Path(before.root)
    same = (before.fleet, before.device) == (enrolment.fleet, enrolment.device)
    if same and root.exists() and root.read_bytes() == enrolment.root.encode():
        return
    if state.exists():
        number = 1
        while (aside := state.with_name(f"state.{number}")).exists():
            number += 1
        state.rename(aside)
        durable.sync_folder(state.parent)
