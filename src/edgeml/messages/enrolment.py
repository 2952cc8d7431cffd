"""Enrolment: the one file that turns a machine into a device of a fleet.

``edgeml fleet enrol`` writes it, ``edgeml-agent enrol`` takes it. It carries the root of trust, so
it must reach the device on a way that the owner trusts.
"""

from __future__ import annotations

import msgspec

from edgeml.errors import InputError
from edgeml.messages.topics import check_name

#: Version of this file.
SCHEMA = 1
_MAX_BYTES = 1 << 20


class Enrolment(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who a device is to be, and whom it trusts.

    Attributes:
        fleet: Name of the fleet.
        device: The device's id; also its MQTT client id.
        broker_host: Host of the broker, as the device sees it.
        broker_port: Its port.
        root: The text of TUF's ``root.json``: the root of trust.
        profile: Hardware profile, or ``auto``.
        tags: Tags that selectors may use.
        schema: Version of this file.
    """

    fleet: str
    device: str
    broker_host: str
    broker_port: int
    root: str
    profile: str = "auto"
    tags: dict[str, str] = {}
    schema: int = SCHEMA


def decode_enrolment(data: bytes) -> Enrolment:
    """Return the enrolment in a file's bytes.

    Raises:
        InputError: It is not such a file, or a value in it cannot be used.
        UsageError: A name in it cannot stand in a topic.
    """
    if len(data) > _MAX_BYTES:
        raise InputError(f"enrolment of {len(data)} bytes, expected at most {_MAX_BYTES}")
    try:
        found = msgspec.json.decode(data, type=Enrolment)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"not an enrolment: {error}", "make one with 'edgeml fleet enrol DEVICE -o FILE'"
        ) from error
    if found.schema > SCHEMA:
        raise InputError(f"enrolment of schema {found.schema}, expected at most {SCHEMA}")
    check_name(found.fleet, "fleet")
    check_name(found.device, "device")
    if not 0 < found.broker_port < 65536:
        raise InputError(f"broker port {found.broker_port}, expected 1 to 65535")
    return found
