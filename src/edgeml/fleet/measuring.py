"""Measuring on devices: who takes part, what they are told, and what they answer.

Called on the controller's thread, inside a transaction. An order is repeated until its device has
said its last word, so that a broker or an agent that goes away costs time and nothing else; a
device that has none to say when the time is over is told that it is cancelled.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from edgeml.errors import InputError, UnreachableError, UsageError
from edgeml.fleet import inventory, tables, telemetry
from edgeml.fleet.inventory import Device
from edgeml.fleet.measurement import CANCELLED, DONE, RUNNING, Measurement, MeasureRequest
from edgeml.fleet.selector import fits, parse_selector
from edgeml.fleet.work import Work
from edgeml.manifest import Manifest
from edgeml.messages.measuring import MeasureOrder, MeasureStatus
from edgeml.messages.payloads import Ref, Rpc

logger = logging.getLogger(__name__)

#: Seconds between two times that a device is told the same.
REPEAT = 3.0
#: So long a device that did not hear of the end is told it, in seconds.
_FAREWELL = 30.0
_table = tables.measurements


def create(
    work: Work, ref: Ref, size: int, manifest: Manifest, request: MeasureRequest, author: str
) -> Measurement:
    """Begin to measure the variants of a bundle.

    Raises:
        UsageError: The selector cannot be used, no device fits, or the bundle is of two profiles.
        UnreachableError: All devices that fit are away.
    """
    profiles = sorted({variant.profile for variant in manifest.variants})
    if len(profiles) != 1:
        raise UsageError(f"candidates of the profiles {', '.join(profiles)}, expected one profile")
    known = {variant.id for variant in manifest.variants}
    if request.baseline not in known:
        raise UsageError(f"the baseline '{request.baseline}' is no variant of the bundle")
    chosen, skipped = _chosen(work, request.selector, profiles[0])
    job = secrets.token_hex(6)
    # Milliseconds: above every number that was given before, also when the database is an older
    # copy of itself.
    number = int(work.now * 1000)
    numbers = {name: max(number, _last_number(work, name) + 1) for name in chosen}
    made = Measurement(
        id=job,
        state=RUNNING,
        ref=ref,
        size=size,
        profile=profiles[0],
        request=request,
        author=author,
        created=work.now,
        numbers=numbers,
        parts={name: MeasureStatus(job, numbers[name], "asked") for name in chosen},
        skipped=skipped,
    )
    row = {"id": job, "created": work.now, "state": made.state, "body": inventory.text(made)}
    work.db.execute(_table.insert(), row)
    count = len(manifest.variants)
    told = f"{author} measures {count} candidates on {', '.join(chosen)} ({job})"
    telemetry.add_event(work.db, "measure", "info", told, work.now)
    work.changed("measurement", job)
    _repeat(work, made)
    return made


def _chosen(work: Work, selector: str, profile: str) -> tuple[list[str], dict[str, str]]:
    """Return who takes part, and who does not and why."""
    terms = parse_selector(selector)
    busy = {name for job in running(work.db) for name in job.open}
    chosen: list[str] = []
    skipped: dict[str, str] = {}
    for name, device in inventory.all_devices(work.db).items():
        if fits(terms, name, device.profile, device.tags):
            why = _unfit(device, profile, name in busy)
            if why:
                skipped[name] = why
            else:
                chosen.append(name)
    if chosen:
        return chosen, skipped
    if not skipped:
        raise UsageError(f"selector '{selector}' fits no device", "see 'edgeml fleet devices'")
    some = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:3])
    away = [name for name, why in skipped.items() if why == "offline"]
    error = UnreachableError if away else UsageError
    raise error(f"no device of '{selector}' can measure for {profile}: {some}", "name others")


def _unfit(device: Device, profile: str, busy: bool) -> str:
    if device.profile != profile:
        return f"its profile is {device.profile or 'not known yet'}"
    if not device.online:
        return "offline"
    return "measures already" if busy else ""


def _last_number(work: Work, device: str) -> int:
    query = sa.select(_table.c.body).order_by(_table.c.created.desc()).limit(100)
    numbers = (_decoded(body).numbers.get(device, 0) for body in work.db.scalars(query))
    return max(numbers, default=0)


def _decoded(body: str) -> Measurement:
    return msgspec.json.decode(body, type=Measurement)


def running(db: sa.Connection) -> list[Measurement]:
    """Return the measurements that are not over."""
    query = sa.select(_table.c.body).where(_table.c.state == RUNNING)
    return [_decoded(body) for body in db.scalars(query)]


def newest(db: sa.Connection, limit: int = 100) -> list[Measurement]:
    """Return measurements, newest first."""
    query = sa.select(_table.c.body).order_by(_table.c.created.desc()).limit(limit)
    return [_decoded(body) for body in db.scalars(query)]


def find(db: sa.Connection, job: str) -> Measurement:
    """Return one measurement.

    Raises:
        InputError: There is no such one.
    """
    body = db.scalar(sa.select(_table.c.body).where(_table.c.id == job))
    if body is None:
        raise InputError(f"no measurement '{job}'", "it may belong to another fleet")
    return _decoded(body)


def replied(work: Work, device: str, reply: Rpc) -> None:
    """Take what a device says of a measurement; what is not asked for changes nothing."""
    body = work.db.scalar(sa.select(_table.c.body).where(_table.c.id == reply.id))
    if body is None:
        return
    job = _decoded(body)
    number = job.numbers.get(device, 0)
    if reply.error:
        status = MeasureStatus(job.id, number, "refused", reply.error)
    else:
        status = _status(reply.result, device)
    changed = job.told(device, status) if status.id == job.id else job
    if changed != job:
        _store(work, changed)


def _status(result: Any, device: str) -> MeasureStatus:
    try:
        return msgspec.convert(result, MeasureStatus)
    except msgspec.ValidationError as error:
        logger.warning("status of a measurement of %s is dropped: %s", device, error)
        return MeasureStatus("", 0, "")


def cancel(work: Work, job_id: str, author: str) -> Measurement:
    """End a measurement; one that is over is left as it is.

    Raises:
        InputError: There is no such one.
    """
    job = find(work.db, job_id)
    if job.state != RUNNING:
        return job
    ended = job.cut(work.now, CANCELLED, "cancelled", f"cancelled by {author}")
    _store(work, ended)
    _say_goodbye(work, job)
    return ended


def tick(work: Work, devices: Mapping[str, Device]) -> set[str]:
    """Repeat orders, end what takes too long; return the digests that are still needed."""
    needed: set[str] = set()
    for job in running(work.db):
        if work.now > job.ends:
            _store(work, job.cut(work.now, DONE, "failed", "no answer in time"))
        else:
            needed.add(job.ref.digest)
            _repeat(work, job, devices)
    for job in newest(work.db, 20):
        if job.ended and work.now < job.ended + _FAREWELL:
            _say_goodbye(work, job)
    return needed


def _repeat(work: Work, job: Measurement, devices: Mapping[str, Device] | None = None) -> None:
    """Tell every device its order that has not said its last word."""
    for name in job.open:
        known = devices.get(name) if devices is not None else None
        if devices is None or (known is not None and known.online):
            work.orders.append(_order(job, name))


def _order(job: Measurement, device: str) -> MeasureOrder:
    return MeasureOrder(
        fleet="",  # the controller's, which signs it
        device=device,
        id=job.id,
        number=job.numbers[device],
        ref=job.ref,
        size=job.size,
        profile=job.profile,
        baseline=job.request.baseline,
        rounds=job.request.rounds,
        budget_s=job.request.budget_s,
        limit_s=2.0 * job.request.budget_s + 120.0,
        not_after=job.ends,
    )


def _say_goodbye(work: Work, job: Measurement) -> None:
    for name, part in job.parts.items():
        if part.state != "done":
            call = Rpc(id=job.id, method="measure_cancel", params={"id": job.id})
            work.calls.append((name, call))


def _store(work: Work, job: Measurement) -> None:
    mine = _table.c.id == job.id
    work.db.execute(_table.update().where(mine).values(state=job.state, body=inventory.text(job)))
    work.changed("measurement", job.id)
