"""Deploy: from what people ask for to a plan, and from a plan to a rollout.

Both run inside a transaction and change nothing by themselves but, in ``create``, the engine.
"""

from __future__ import annotations

import secrets

import msgspec

from edgeml.errors import GateError, InputError, UsageError
from edgeml.fleet import catalogue, history, inventory, telemetry
from edgeml.fleet.engine import RolloutEngine
from edgeml.fleet.inventory import Device
from edgeml.fleet.rollout import (
    Abort,
    AnyEvent,
    Note,
    Part,
    Pause,
    Resume,
    RollBack,
    Rollout,
    Start,
    State,
    allowed,
)
from edgeml.fleet.selector import fits, parse_selector
from edgeml.fleet.strategies import parse_waves, plan
from edgeml.fleet.views import Plan, RolloutRequest
from edgeml.fleet.work import Work
from edgeml.gates import AnyGate, HealthGate, InstallGate, LabelGate
from edgeml.manifest import Manifest
from edgeml.messages.payloads import Ref
from edgeml.messages.topics import check_name

DEFAULT_GATES: tuple[AnyGate, ...] = (InstallGate(), HealthGate(), LabelGate())


def make_plan(work: Work, request: RolloutRequest) -> Plan:
    """Return what a rollout would do.

    Raises:
        UsageError: The selector, the strategy or the waves cannot be used, or no device fits.
        InputError: There is no such version.
        GateError: The version is quarantined.
    """
    ref, manifest = catalogue.resolve(work.db, request.model, request.version)
    banned = inventory.quarantined(work.db).get(ref.digest)
    if banned:
        raise GateError(
            f"{ref.model} {ref.version} is quarantined: {banned}",
            "push a better one as a new version, or lift it: "
            f"edgeml registry release {ref.model}@{ref.version} --reason TEXT",
        )
    slot = check_name(request.slot or ref.model, "slot")
    terms = parse_selector(request.selector)
    chosen, skipped = [], {}
    devices = inventory.all_devices(work.db)
    for name, device in devices.items():
        if not fits(terms, name, device.profile, device.tags):
            continue
        why = _unfit(work, device, slot, ref, manifest)
        if why:
            skipped[name] = why
        else:
            chosen.append(name)
    if not chosen:
        raise _nobody(request.selector, skipped)
    salt = check_name(request.id, "rollout") if request.id else secrets.token_hex(4)
    return Plan(
        id=salt,
        ref=ref,
        slot=slot,
        selector=request.selector,
        strategy=request.strategy,
        waves=plan(request.strategy, chosen, salt, parse_waves(request.waves)),
        gates=_gates(request.gates),
        offline=tuple(name for name in chosen if not devices[name].online),
        skipped=skipped,
    )


def _unfit(work: Work, device: Device, slot: str, ref: Ref, manifest: Manifest) -> str:
    """Return why a device takes no part; empty when it does."""
    profiles = {variant.profile for variant in manifest.variants}
    if device.profile and device.profile not in profiles:
        return f"no variant for its profile {device.profile}"
    running = device.running(slot)
    desired = inventory.desired_of(work.db, "", device.device)
    wanted = desired.slots.get(slot) if desired else None
    here = running is not None and running.digest == ref.digest
    if here and wanted is not None and wanted.ref.digest == ref.digest:
        return "runs it already"
    return ""


def _nobody(selector: str, skipped: dict[str, str]) -> UsageError:
    if not skipped:
        hint = "look at 'edgeml fleet devices'"
        return UsageError(f"selector '{selector}' fits no device", hint)
    some = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:3])
    hint = "choose another version, or other devices with --to"
    return UsageError(f"no device of '{selector}' can take it: {some}", hint)


def _gates(wanted: tuple[AnyGate, ...]) -> tuple[AnyGate, ...]:
    """Return the default gates, those of the same name replaced."""
    mine = {gate.name: gate for gate in wanted}
    unknown = sorted(set(mine) - {gate.name for gate in DEFAULT_GATES})
    if unknown:
        raise UsageError(f"unknown gate '{unknown[0]}'", "known: health, install, labels")
    return tuple(mine.get(gate.name, gate) for gate in DEFAULT_GATES)


def create(work: Work, engine: RolloutEngine, request: RolloutRequest, author: str) -> Rollout:
    """Make a rollout and start it.

    Raises:
        UsageError: Another rollout holds the slot, or see ``make_plan``.
        InputError: See ``make_plan``.
        GateError: See ``make_plan``.
    """
    made = make_plan(work, request)
    busy = engine.active(made.slot)
    if busy:
        raise UsageError(
            f"rollout {busy[0].id} is {busy[0].state.value} in slot '{made.slot}'",
            f"wait for its end, or 'edgeml fleet rollout {busy[0].id} abort'",
        )
    if engine.get(work, made.id) is not None:
        raise UsageError(f"there is a rollout {made.id} already", "make a new preview")
    rollout = Rollout(
        id=made.id,
        ref=made.ref,
        slot=made.slot,
        selector=made.selector,
        strategy=made.strategy,
        wave_sizes=tuple(len(wave) for wave in made.waves),
        parts={d: Part(wave=i) for i, wave in enumerate(made.waves) for d in wave},
        gates=made.gates,
        trial_requests=request.trial_requests,
        trial_seconds=request.trial_seconds,
        created=work.now,
        author=author,
    )
    engine.add(work, rollout)
    engine.feed(work, rollout.id, Start(work.now))
    return _get(work, engine, rollout.id)


def control(
    work: Work, engine: RolloutEngine, rollout_id: str, action: str, reason: str
) -> Rollout:
    """Pause, resume, abort or roll back.

    Raises:
        InputError: There is no such rollout.
        UsageError: Its state does not allow that.
    """
    rollout = _get(work, engine, rollout_id)
    may = allowed(rollout.state)
    if action not in may:
        raise UsageError(
            f"rollout {rollout_id} is {rollout.state.value}: it cannot be asked to '{action}'",
            f"possible now: {', '.join(may)}" if may else "it has ended for good",
        )
    if action == "rollback" and rollout.state in {State.DONE, State.ABORTED}:
        _check_newest(engine, rollout)
    told: dict[str, AnyEvent] = {
        "start": Start(work.now),
        "pause": Pause(work.now, reason),
        "resume": Resume(work.now),
        "abort": Abort(work.now, reason),
        "rollback": RollBack(work.now, reason),
    }
    engine.feed(work, rollout_id, told[action])
    return _get(work, engine, rollout_id)


def release(
    work: Work, engine: RolloutEngine, model: str, version: str, reason: str, author: str
) -> tuple[str, ...]:
    """Lift a version's quarantine; nothing is told to run it by that.

    Returns:
        Devices that found the bundle itself at fault: they keep refusing it.

    Raises:
        InputError: There is no such version.
        UsageError: It is not quarantined, no reason is given, or a rollout is taking it back.
    """
    ref, _ = catalogue.resolve(work.db, model, version)
    name = f"{ref.model} {ref.version}"
    if ref.digest not in inventory.quarantined(work.db):
        raise UsageError(f"{name} is not quarantined", "deploy it with 'edgeml fleet deploy'")
    if not reason.strip():
        raise UsageError(f"no reason why {name} may run again", "say it with --reason TEXT")
    mine = [r for r in engine.all() if r.ref.digest == ref.digest]
    for rollout in mine:
        if rollout.state is State.ROLLING_BACK:
            raise UsageError(
                f"rollout {rollout.id} is still taking {name} back", "release it after its end"
            )
    work.desired.update(inventory.lift_quarantine(work.db, ref.digest))
    told = f"{name} ({ref.digest[:19]}) may run again: {reason} ({author})"
    telemetry.add_event(work.db, "release", "warning", told, work.now)
    for rollout in mine:
        history.record(work.db, rollout.id, Note("release", told), work.now)
        work.changed("rollout", rollout.id)
    work.changed("event")
    work.changed("model", ref.model)
    return tuple(
        name
        for name, device in inventory.all_devices(work.db).items()
        if device.reported is not None and ref.digest in device.reported.quarantined
    )


def _check_newest(engine: RolloutEngine, rollout: Rollout) -> None:
    """Refuse to roll back what a later rollout has already replaced on the same devices."""
    for later in engine.all():
        mine = set(rollout.touched) & set(later.touched)
        if later.slot == rollout.slot and later.created > rollout.created and mine:
            if later.state in {State.ROLLED_BACK}:
                continue
            raise UsageError(
                f"rollout {later.id} came later on {len(mine)} of the same devices",
                f"roll back {later.id} first",
            )


def _get(work: Work, engine: RolloutEngine, rollout_id: str) -> Rollout:
    found = engine.get(work, rollout_id)
    if found is None:
        raise InputError(f"no rollout '{rollout_id}'", "look at 'edgeml fleet rollouts'")
    return found


def with_id(request: RolloutRequest, plan_id: str) -> RolloutRequest:
    """Return a request that asks for exactly the waves of a plan."""
    return msgspec.structs.replace(request, id=plan_id)
