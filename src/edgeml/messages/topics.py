"""Every MQTT topic, in one place.

``edgeml/v1/{fleet}/{device}/up/{kind}`` is written by the device alone,
``edgeml/v1/{fleet}/{device}/down/{kind}`` is read by the device alone.

======  ===========  ========  =========================================================
way     kind         retained  payload
======  ===========  ========  =========================================================
up      birth        yes       Birth: facts, profile, agent version, boot id
up      state        yes       State: online or not; also the last will
up      reported     yes       Reported: what runs, and where the updater stands
up      telemetry    no        Telemetry: one window of counts (msgpack)
up      event        no        Event: something that people should know
up      rpc          no        Reply to a request
up      block        no        BlockRequest: a piece of a blob or of trust metadata
down    desired      yes       DSSE envelope over DesiredState
down    rpc          no        Request, or the acknowledgement of additive messages
down    block        no        BlockReply (msgpack)
======  ===========  ========  =========================================================
"""

from __future__ import annotations

import re
from typing import NamedTuple

from edgeml.errors import UsageError

PREFIX = "edgeml/v1"
UP = ("birth", "state", "reported", "telemetry", "event", "rpc", "block")
DOWN = ("desired", "rpc", "block")
RETAINED = frozenset({"up/birth", "up/state", "up/reported", "down/desired"})

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str, what: str) -> str:
    """Return ``name`` when it may stand in a topic.

    Raises:
        UsageError: It is empty, too long, or holds a character other than A-Z a-z 0-9 . _ -.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{what} '{name}' is not a name",
            "1 to 64 of A-Z a-z 0-9 . _ - and a letter or digit first",
        )
    return name


class Address(NamedTuple):
    """A topic taken apart."""

    fleet: str
    device: str
    way: str
    kind: str


def up(fleet: str, device: str, kind: str) -> str:
    """Return a topic that the device writes. ``kind`` is one of ``UP``."""
    assert kind in UP, kind
    return f"{PREFIX}/{fleet}/{device}/up/{kind}"


def down(fleet: str, device: str, kind: str) -> str:
    """Return a topic that the device reads. ``kind`` is one of ``DOWN``."""
    assert kind in DOWN, kind
    return f"{PREFIX}/{fleet}/{device}/down/{kind}"


def all_up(fleet: str, kind: str = "#") -> str:
    """Return the pattern of what all devices of a fleet write."""
    return f"{PREFIX}/{fleet}/+/up/{kind}"


def all_down(fleet: str, device: str) -> str:
    """Return the pattern of everything that one device reads."""
    return f"{PREFIX}/{fleet}/{device}/down/#"


def parse(topic: str) -> Address | None:
    """Take a topic apart; None when it is not one of ours."""
    parts = topic.split("/")
    if len(parts) != 6 or "/".join(parts[:2]) != PREFIX:
        return None
    _, _, fleet, device, way, kind = parts
    if kind not in {"up": UP, "down": DOWN}.get(way, ()):
        return None
    return Address(fleet, device, way, kind)
