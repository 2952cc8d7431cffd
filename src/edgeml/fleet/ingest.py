"""Ingest: what a message of a device changes. Called on the controller's thread."""

from __future__ import annotations

import logging

from edgeml.errors import NotTrustedError
from edgeml.fleet import inventory, telemetry
from edgeml.fleet.engine import RolloutEngine
from edgeml.fleet.presence import Presence
from edgeml.fleet.work import Work
from edgeml.link.base import LinkMessage
from edgeml.messages.payloads import (
    SCHEMA,
    Birth,
    Event,
    Reported,
    State,
    Telemetry,
    decode,
)
from edgeml.messages.topics import Address

logger = logging.getLogger(__name__)


def ingest(
    work: Work,
    engine: RolloutEngine,
    presence: Presence,
    address: Address,
    message: LinkMessage,
) -> None:
    """Apply a message. One that cannot be used is logged and changes nothing."""
    if not message.payload:
        return  # a retained slot that was cleared
    try:
        _apply(work, engine, presence, address, message.payload)
    except NotTrustedError as error:
        logger.warning("%s of %s is dropped: %s", address.kind, address.device, error)
    else:
        if not message.retained and address.kind != "state":
            presence.heard(address.device)


def _apply(
    work: Work, engine: RolloutEngine, presence: Presence, address: Address, payload: bytes
) -> None:
    match address.kind:
        case "birth":
            birth = decode(payload, Birth)
            _check(address, birth.device, birth.schema)
            if inventory.apply_birth(work.db, birth, work.now):
                presence.born(birth.device, birth.boot)
                work.changed("device", birth.device)
        case "state":
            state = decode(payload, State)
            _check(address, state.device, state.schema)
            if inventory.apply_state(work.db, state, work.now):
                work.changed("device", state.device)
            known = inventory.find_device(work.db, state.device)
            if known is not None and known.boot == state.boot:  # else it is of a boot that is over
                presence.stated(state.device, known.online, work.now)
        case "reported":
            reported = decode(payload, Reported)
            _check(address, reported.device, reported.schema)
            if inventory.apply_reported(work.db, reported, work.now):
                engine.reported(work, reported)
                work.changed("device", reported.device)
        case "telemetry":
            window = decode(payload, Telemetry)
            _check(address, window.device, window.schema)
            if telemetry.apply_window(work.db, window, work.now):
                work.changed("device", window.device)
            work.acks.setdefault((window.device, window.boot), []).append(window.sequence)
        case "event":
            event = decode(payload, Event)
            _check(address, event.device, event.schema)
            if telemetry.apply_event(work.db, event, work.now):
                work.changed("event", event.device)
            work.acks.setdefault((event.device, event.boot), []).append(event.sequence)


def _check(address: Address, device: str, schema: int) -> None:
    """Refuse a message in another device's name, or of a schema that is not known here.

    Raises:
        NotTrustedError: It is such a message.
    """
    if device != address.device:
        raise NotTrustedError(f"it names the device '{device}'")
    if schema > SCHEMA:
        raise NotTrustedError(f"schema {schema}, expected at most {SCHEMA}", "update the fleet")
