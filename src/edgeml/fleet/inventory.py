"""Inventory: which devices there are, what they hold, and what they should hold.

Functions over an open transaction (``Store.write`` or ``Store.read``). A device says who it is by
Birth, whether it is there by State, and what it holds by Reported; messages may be late, repeated
or out of order, and what is stale changes nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from edgeml.fleet import tables
from edgeml.hardware import DeviceFacts
from edgeml.messages.payloads import Birth, DesiredState, Ref, Reported, SlotTarget, State

_KEPT_BOOTS = 16
_devices = tables.devices


class Device(msgspec.Struct, frozen=True, omit_defaults=True):
    """One device of the inventory.

    Attributes:
        device: Id.
        profile: Hardware profile; empty until its first Birth.
        tags: Tags.
        agent_version: Version of its agent.
        facts: What the machine is; None until its first Birth.
        boot: Id of its current boot.
        boots: Boots that were seen.
        online: Whether it is connected.
        state_since: When ``online`` changed last.
        enrolled: When it became known.
        seen: When it was heard of last.
        reported: What it holds; None until it said so.
    """

    device: str
    profile: str = ""
    tags: dict[str, str] = {}
    agent_version: str = ""
    facts: DeviceFacts | None = None
    boot: str = ""
    boots: int = 0
    online: bool = False
    state_since: float = 0.0
    enrolled: float = 0.0
    seen: float = 0.0
    reported: Reported | None = None

    def running(self, slot: str) -> Ref | None:
        """Return what serves in a slot."""
        held = self.reported.slots.get(slot) if self.reported else None
        return held.active if held else None


def _device(row: Any) -> Device:
    return Device(
        device=row.device,
        profile=row.profile,
        tags=msgspec.json.decode(row.tags, type=dict[str, str]),
        agent_version=row.agent_version,
        facts=msgspec.json.decode(row.facts, type=DeviceFacts) if row.facts else None,
        boot=row.boot,
        boots=row.boots,
        online=row.online,
        state_since=row.state_since,
        enrolled=row.enrolled,
        seen=row.seen,
        reported=msgspec.json.decode(row.reported, type=Reported) if row.reported else None,
    )


def text(value: object) -> str:
    """Return a value as JSON text."""
    return msgspec.json.encode(value).decode()


def all_devices(db: sa.Connection) -> dict[str, Device]:
    """Return id -> device, sorted by id."""
    rows = db.execute(sa.select(_devices).order_by(_devices.c.device))
    return {row.device: _device(row) for row in rows}


def find_device(db: sa.Connection, device: str) -> Device | None:
    """Return one device, or None."""
    row = db.execute(sa.select(_devices).where(_devices.c.device == device)).first()
    return _device(row) if row else None


def enrol(
    db: sa.Connection, device: str, profile: str, tags: dict[str, str] | None, now: float
) -> tuple[bool, dict[str, str]]:
    """Make a device known before it has ever connected; a known one only gets what is new.

    Returns:
        Whether it was known, and its tags: those that it had when none are given.
    """
    before = find_device(db, device)
    _ensure(db, device, now)
    labels = tags if tags is not None else (before.tags if before else {})
    values: dict[str, Any] = {"tags": text(labels)}
    if profile != "auto":
        values["profile"] = profile
    db.execute(_devices.update().where(_devices.c.device == device).values(values))
    return before is not None, labels


def _ensure(db: sa.Connection, device: str, now: float) -> Any:
    """Return the device's row, made when there was none."""
    query = sa.select(_devices).where(_devices.c.device == device)
    row = db.execute(query).first()
    if row is None:
        values = {"device": device, "enrolled": now, "state_since": now}
        db.execute(_devices.insert().values(values))
        row = db.execute(query).first()
    return row


def _boot(row: Any, boot: str) -> dict[str, Any] | None:
    """Return what changes when a message of ``boot`` came in; None when that boot is over."""
    if boot == row.boot:
        return {}
    past: list[str] = msgspec.json.decode(row.past_boots)
    if boot in past:
        return None
    kept = [*past, row.boot][-_KEPT_BOOTS:] if row.boot else past
    return {"boot": boot, "past_boots": text(kept), "boots": row.boots + 1}


def apply_birth(db: sa.Connection, birth: Birth, now: float) -> bool:
    """Take in who a device is; tell whether anything changed."""
    row = _ensure(db, birth.device, now)
    changes = _boot(row, birth.boot)
    if changes is None:
        return False
    changes |= {
        "profile": birth.profile,
        "tags": text(birth.tags),
        "agent_version": birth.agent_version,
        "facts": text(birth.facts),
        "seen": now,
    }
    db.execute(_devices.update().where(_devices.c.device == birth.device).values(changes))
    return True


def apply_state(db: sa.Connection, state: State, now: float) -> bool:
    """Take in whether a device is there; tell whether that changed."""
    row = _ensure(db, state.device, now)
    changes = _boot(row, state.boot)
    if changes is None:
        return False
    if row.online != state.online:
        changes |= {"online": state.online, "state_since": now}
    changed = bool(changes)
    if state.online:
        changes["seen"] = now
    if changes:
        db.execute(_devices.update().where(_devices.c.device == state.device).values(changes))
    return changed


def apply_reported(db: sa.Connection, reported: Reported, now: float) -> bool:
    """Take in what a device holds, unless something newer is known; tell whether it was taken."""
    row = _ensure(db, reported.device, now)
    changes = _boot(row, reported.boot)
    if changes is None:
        return False
    if reported.boot == row.reported_boot and reported.sequence <= row.reported_sequence:
        return False
    changes |= {
        "reported": text(reported),
        "reported_boot": reported.boot,
        "reported_sequence": reported.sequence,
        "seen": now,
    }
    db.execute(_devices.update().where(_devices.c.device == reported.device).values(changes))
    for slot, held in reported.slots.items():
        if held.last_verified is not None:
            _remember(db, reported.device, slot, held.last_verified, now)
    return True


def _remember(db: sa.Connection, device: str, slot: str, ref: Ref, now: float) -> None:
    """Append to the versions that a device has verified, unless it is the newest already."""
    newest = _verified(db, device, slot, limit=1)
    if newest and newest[0].digest == ref.digest:
        return
    row = {"device": device, "slot": slot, "digest": ref.digest, "ref": text(ref), "at": now}
    db.execute(tables.verified.insert(), row)


def _verified(db: sa.Connection, device: str, slot: str, limit: int = 50) -> list[Ref]:
    table = tables.verified
    query = (
        sa.select(table.c.ref)
        .where(table.c.device == device, table.c.slot == slot)
        .order_by(table.c.id.desc())
        .limit(limit)
    )
    return [msgspec.json.decode(row, type=Ref) for row in db.scalars(query)]


def last_good(db: sa.Connection, device: str, slot: str, without: str = "") -> Ref | None:
    """Return the newest version that a device has verified itself and that may still run.

    Args:
        db: Open transaction.
        device: The device.
        slot: The slot.
        without: A digest that does not count.
    """
    banned = {*quarantined(db), without}
    return next((r for r in _verified(db, device, slot) if r.digest not in banned), None)


def set_desired(db: sa.Connection, device: str, slot: str, target: SlotTarget | None) -> int:
    """Write what a slot should hold (None: nothing) and return the new generation.

    The generation is one more than any that was written, or that the device says it has seen:
    also after the database was restored from an old copy.
    """
    table = tables.desired
    row = db.execute(sa.select(table).where(table.c.device == device)).first()
    slots: dict[str, SlotTarget] = {}
    generation = 0
    if row is not None:
        slots = msgspec.json.decode(row.slots, type=dict[str, SlotTarget])
        generation = row.generation
    known = find_device(db, device)
    if known is not None and known.reported is not None:
        generation = max(generation, known.reported.generation)
    slots.pop(slot, None)
    if target is not None:
        slots[slot] = target
    values = {
        "generation": generation + 1,
        "slots": text(slots),
        "quarantined": text(sorted(quarantined(db))),
    }
    if row is None:
        db.execute(table.insert().values(device=device, **values))
    else:
        db.execute(table.update().where(table.c.device == device).values(values))
    return generation + 1


def catch_up(db: sa.Connection, device: str, generation: int) -> bool:
    """Renumber what a device should hold when it has seen a higher generation than we wrote.

    That happens when the database was restored from an old copy: the device would refuse every
    order until the numbers have caught up.

    Returns:
        Whether it was renumbered, and must be published again.
    """
    table = tables.desired
    behind = sa.and_(table.c.device == device, table.c.generation < generation)
    done = db.execute(table.update().where(behind).values(generation=generation + 1))
    return bool(done.rowcount)


def outnumber(db: sa.Connection, least: int) -> None:
    """Give every order a generation of at least ``least``: after an old copy was restored."""
    table = tables.desired
    for row in db.execute(sa.select(table)).all():
        generation = max(row.generation + 1, least)
        mine = table.c.device == row.device
        db.execute(table.update().where(mine).values(generation=generation))


def desired_of(db: sa.Connection, fleet: str, device: str) -> DesiredState | None:
    """Return what a device should hold, or None when nothing was ever asked of it."""
    row = db.execute(sa.select(tables.desired).where(tables.desired.c.device == device)).first()
    return _desired(fleet, row) if row else None


def all_desired(db: sa.Connection, fleet: str) -> list[DesiredState]:
    """Return what every device should hold."""
    rows = db.execute(sa.select(tables.desired).order_by(tables.desired.c.device))
    return [_desired(fleet, row) for row in rows]


def _desired(fleet: str, row: Any) -> DesiredState:
    return DesiredState(
        fleet=fleet,
        device=row.device,
        generation=row.generation,
        slots=msgspec.json.decode(row.slots, type=dict[str, SlotTarget]),
        quarantined=tuple(msgspec.json.decode(row.quarantined, type=list[str])),
    )


def add_quarantine(db: sa.Connection, ref: Ref, reason: str, now: float) -> None:
    """Forbid a digest for ever; a second time changes nothing."""
    if ref.digest in quarantined(db):
        return
    row = {
        "digest": ref.digest,
        "model": ref.model,
        "version": ref.version,
        "reason": reason,
        "at": now,
    }
    db.execute(tables.quarantine.insert(), row)


def lift_quarantine(db: sa.Connection, digest: str) -> list[str]:
    """Allow a digest again.

    Returns:
        Devices whose orders named it: these have a new generation, and must be published.
    """
    db.execute(tables.quarantine.delete().where(tables.quarantine.c.digest == digest))
    table = tables.desired
    changed = []
    for row in db.execute(sa.select(table)).all():
        banned: list[str] = msgspec.json.decode(row.quarantined, type=list[str])
        if digest in banned:
            banned.remove(digest)
            values = {"quarantined": text(banned), "generation": row.generation + 1}
            db.execute(table.update().where(table.c.device == row.device).values(values))
            changed.append(row.device)
    return changed


def quarantined(db: sa.Connection) -> dict[str, str]:
    """Return digest -> reason of everything that must not run."""
    rows = db.execute(sa.select(tables.quarantine.c.digest, tables.quarantine.c.reason))
    return {row.digest: row.reason for row in rows}
