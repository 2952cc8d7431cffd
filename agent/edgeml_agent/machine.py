"""What this machine is, and how the data plane is started on it.

Trying every runtime takes seconds, so what was found is kept for as long as the machine is not
booted anew and this release is not replaced: after a crash the device serves at once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgeml import __version__
from edgeml.hardware import DeviceFacts
from edgeml.runtime.facts import device_facts
from edgeml_agent import child, durable
from edgeml_agent.config import AgentConfig
from edgeml_agent.supervisor import Machine

logger = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class _Known(msgspec.Struct, frozen=True):
    key: str
    facts: DeviceFacts


def this_machine(config: AgentConfig) -> Machine:
    """Return what the supervisor needs to know of this machine.

    Raises:
        ProfileError: The configured profile is unknown, or none fits this machine.
        DeviceError: The state folder cannot be made.
    """
    facts = known_facts(durable.private_folder(Path(config.state)) / "machine.json")
    return Machine(
        facts, resolve_profile(config.profile, facts), plane_command, plane_environment(config)
    )


def resolve_profile(name: str, facts: DeviceFacts) -> str:
    """Return the name of a profile; for ``auto`` the best one that fits.

    Raises:
        ProfileError: It is unknown, or none fits.
    """
    from edgeml.hardware import best_profile, load_profile

    return best_profile(facts).name if name == "auto" else load_profile(name).name


def known_facts(path: Path) -> DeviceFacts:
    """Return the facts of this machine, from a file that is still true or by trying again."""
    try:
        key = f"{__version__} {_BOOT_ID.read_text().strip()}"
    except OSError:
        return device_facts()
    try:
        known = msgspec.json.decode(path.read_bytes(), type=_Known)
        if known.key == key:
            return known.facts
    except (OSError, msgspec.DecodeError) as error:
        logger.debug("no known facts: %s", error)
    facts = device_facts()
    try:
        durable.write(path, msgspec.json.encode(_Known(key, facts)), durable=False)
    except OSError as error:
        logger.warning("cannot keep the facts of this machine: %s", error)
    return facts


def plane_command(socket: Path) -> Sequence[str]:
    """Return the command line of the real data plane, for a control socket."""
    return child.command("edgeml_agent.serve", "--control", str(socket))


def plane_environment(config: AgentConfig) -> dict[str, str]:
    """Return the data plane's settings as its environment; what it unpacks goes below the state.

    Not on the command line: the settings hold the token, and everybody may read a command line.
    """
    settings = config.serve
    if not settings.cache:
        settings = msgspec.structs.replace(settings, cache=str(Path(config.state) / "cache"))
    return {"EDGEML_SERVE_SETTINGS": msgspec.json.encode(settings).decode()}
