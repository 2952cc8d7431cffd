"""RolloutEngine: carries out what the pure rollouts ask for.

Keeps the rollouts that still matter in memory, feeds them with events, writes what their commands
say into the transaction at hand, and judges their gates. Runs on the controller's thread only.
"""

from __future__ import annotations

import logging
from collections import deque

import msgspec

from edgeml.fleet import history, inventory, telemetry
from edgeml.fleet.inventory import Device
from edgeml.fleet.rollout import (
    ACTIVE,
    AnyEvent,
    Command,
    DeviceReported,
    Issued,
    Note,
    Quarantine,
    Rollout,
    SendBack,
    SendOut,
    State,
    Tick,
    step,
)
from edgeml.fleet.work import Work
from edgeml.gates import Observation, Verdict, WaveDevice
from edgeml.messages.payloads import Ref, Reported, SlotReport, SlotTarget

logger = logging.getLogger(__name__)

#: Rollouts that have ended and are still told of late devices.
_KEPT_ENDED = 50
_SEVERITY = {State.ROLLING_BACK: "critical", State.ROLLED_BACK: "warning", State.ABORTED: "warning"}


class RolloutEngine:
    """All rollouts of a fleet."""

    def __init__(self) -> None:
        """Start empty; ``load`` reads what there is."""
        self._rollouts: dict[str, Rollout] = {}
        self._dirty: set[str] = set()
        #: Rollout -> what its gates said last. Read by other threads, replaced whole.
        self.verdicts: dict[str, tuple[Verdict, ...]] = {}

    def load(self, work: Work) -> None:
        """Read the rollouts from the database, forgetting what is in memory."""
        found = [*history.newest(work.db, _KEPT_ENDED), *history.active(work.db)]
        self._rollouts = {rollout.id: rollout for rollout in found}
        self._dirty.clear()

    def active(self, slot: str = "") -> list[Rollout]:
        """Return the rollouts that still do something (in one slot, when one is given)."""
        return [r for r in self._rollouts.values() if r.state in ACTIVE and slot in {"", r.slot}]

    def all(self) -> list[Rollout]:
        """Return all rollouts that are in memory."""
        return list(self._rollouts.values())

    def add(self, work: Work, rollout: Rollout) -> None:
        """Take a new rollout in."""
        self._rollouts[rollout.id] = rollout
        self._mark(work, rollout)

    def get(self, work: Work, rollout_id: str) -> Rollout | None:
        """Return a rollout, from memory or from the database."""
        if rollout_id not in self._rollouts:
            found = history.find(work.db, rollout_id)
            if found is None:
                return None
            self._rollouts[rollout_id] = found
        return self._rollouts[rollout_id]

    def save(self, work: Work) -> None:
        """Write the rollouts that have changed."""
        for rollout_id in sorted(self._dirty):
            history.save(work.db, self._rollouts[rollout_id])
        self._dirty.clear()

    def feed(self, work: Work, rollout_id: str, event: AnyEvent) -> bool:
        """Feed a rollout, and carry out what follows; tell whether a decision was noted."""
        pending: deque[AnyEvent] = deque([event])
        noted = False
        while pending:
            before = self._rollouts[rollout_id]
            after, commands = step(before, pending.popleft())
            if after is not before:
                self._rollouts[rollout_id] = after
                self._mark(work, after)
            for command in commands:
                noted = noted or isinstance(command, Note)
                pending.extend(self._carry_out(work, after, command))
        return noted

    def reported(self, work: Work, reported: Reported) -> None:
        """Tell the rollouts what a device holds."""
        if inventory.catch_up(work.db, reported.device, reported.generation):
            work.desired.add(reported.device)
        for rollout_id, rollout in list(self._rollouts.items()):
            if reported.device in rollout.parts:
                slot = reported.slots.get(rollout.slot)
                faulty = rollout.ref.digest in reported.quarantined
                told = DeviceReported(work.now, reported.device, reported.generation, slot, faulty)
                self.feed(work, rollout_id, told)

    def tick(self, work: Work) -> None:
        """Judge the gates of every rollout that is on its way."""
        running = self.active()
        if not running:
            return
        devices = inventory.all_devices(work.db)
        online = frozenset(name for name, device in devices.items() if device.online)
        for rollout in running:
            verdicts: tuple[Verdict, ...] = ()
            if rollout.wave >= 0 and rollout.state is not State.ROLLING_BACK:
                seen = observe(work, rollout, devices)
                verdicts = tuple(gate.judge(seen) for gate in rollout.gates)
            noted = self.feed(work, rollout.id, Tick(work.now, verdicts, online))
            self._remember(work, rollout, verdicts, noted)

    def _remember(
        self, work: Work, rollout: Rollout, verdicts: tuple[Verdict, ...], noted: bool
    ) -> None:
        """Keep the newest verdicts, and write down when a gate has changed its mind."""
        if not verdicts:
            return
        earlier = {v.gate: v.state for v in self.verdicts.get(rollout.id, ())}
        self.verdicts = {**self.verdicts, rollout.id: verdicts}
        changed = [v for v in verdicts if earlier.get(v.gate) != v.state]
        if changed and not noted:
            said = "; ".join(f"{v.gate}: {v.state}, {v.reasons[0]}" for v in changed)
            history.record(work.db, rollout.id, Note("gates", said, verdicts), work.now)
            work.changed("rollout", rollout.id)

    def _mark(self, work: Work, rollout: Rollout) -> None:
        self._dirty.add(rollout.id)
        work.changed("rollout", rollout.id)

    def _carry_out(self, work: Work, rollout: Rollout, command: Command) -> list[AnyEvent]:
        match command:
            case SendOut(device=device):
                return [self._send_out(work, rollout, device)]
            case SendBack(device=device, to=to):
                return [self._send_back(work, rollout, device, to)]
            case Quarantine(ref=ref, reason=reason):
                self._quarantine(work, rollout, ref, reason)
            case Note():
                history.record(work.db, rollout.id, command, work.now)
                severity = _SEVERITY.get(rollout.state, "info")
                message = f"rollout {rollout.id} of {rollout.ref.model} {rollout.ref.version}"
                message += f" {command.kind.replace('_', ' ')}: {command.message}"
                telemetry.add_event(work.db, "rollout", severity, message, work.now)
                work.changed("event")
                logger.info("%s", message)
        return []

    def _send_out(self, work: Work, rollout: Rollout, device: str) -> Issued:
        known = inventory.find_device(work.db, device)
        held = _slot(known, rollout.slot)
        target = SlotTarget(rollout.ref, rollout.trial_requests, rollout.trial_seconds)
        return Issued(
            now=work.now,
            device=device,
            generation=self._set(work, device, rollout.slot, target),
            way="out",
            before=inventory.last_good(work.db, device, rollout.slot, rollout.ref.digest),
            boots=known.boots if known else 0,
            degraded=bool(held and held.degraded),
        )

    def _send_back(self, work: Work, rollout: Rollout, device: str, to: Ref | None) -> Issued:
        if to is not None and to.digest in {*inventory.quarantined(work.db), rollout.ref.digest}:
            to = inventory.last_good(work.db, device, rollout.slot, rollout.ref.digest)
        # It was verified on this very device before: its trial may be short.
        seconds = min(2.0, rollout.trial_seconds)
        target = SlotTarget(to, rollout.trial_requests, seconds) if to is not None else None
        generation = self._set(work, device, rollout.slot, target)
        return Issued(work.now, device, generation, "back", to)

    def _set(self, work: Work, device: str, slot: str, target: SlotTarget | None) -> int:
        work.desired.add(device)
        work.changed("device", device)
        return inventory.set_desired(work.db, device, slot, target)

    def _quarantine(self, work: Work, rollout: Rollout, ref: Ref, reason: str) -> None:
        """Forbid a digest, also on devices that had it from elsewhere than this rollout."""
        inventory.add_quarantine(work.db, ref, reason, work.now)
        telemetry.add_event(
            work.db,
            "quarantine",
            "warning",
            f"{ref.model} {ref.version} ({ref.digest[:19]}) must not run: {reason}",
            work.now,
        )
        touched = set(rollout.touched)
        held = {
            (name, slot)
            for name, device in inventory.all_devices(work.db).items()
            if device.reported is not None
            for slot, report in device.reported.slots.items()
            if report.active is not None and report.active.digest == ref.digest
        }
        wanted = {
            (state.device, slot)
            for state in inventory.all_desired(work.db, "")
            for slot, target in state.slots.items()
            if target.ref.digest == ref.digest
        }
        for name, slot in sorted(held | wanted):
            if name in touched and slot == rollout.slot:
                continue
            good = inventory.last_good(work.db, name, slot, ref.digest)
            self._set(work, name, slot, SlotTarget(good) if good else None)
        work.changed("model", ref.model)


def _slot(device: Device | None, slot: str) -> SlotReport | None:
    if device is None or device.reported is None:
        return None
    return device.reported.slots.get(slot)


def observe(work: Work, rollout: Rollout, devices: dict[str, Device]) -> Observation:
    """Gather what the gates of the current wave look at."""
    touched = rollout.touched
    control = [
        name
        for name, device in devices.items()
        if not rollout.parts.get(name, None) or not rollout.parts[name].generation
        if (ref := device.running(rollout.slot)) is not None
        if ref.model == rollout.ref.model and ref.digest != rollout.ref.digest
    ]
    digest, since = rollout.ref.digest, rollout.wave_since
    return Observation(
        age=work.now - rollout.wave_since,
        wave=rollout.wave,
        devices=tuple(_seen(work.now, rollout, name, devices.get(name)) for name in touched),
        canary=telemetry.arm(work.db, rollout.slot, since, digest, touched, new=True),
        control=telemetry.arm(work.db, rollout.slot, since, digest, control, new=False),
    )


def _seen(now: float, rollout: Rollout, name: str, device: Device | None) -> WaveDevice:
    part = rollout.parts[name]
    assert part.state != "waiting", name  # a touched device was told
    online = device is not None and device.online
    held = _slot(device, rollout.slot)
    seen = WaveDevice(
        device=name, state=part.state, wave=part.wave, online=online, detail=part.detail
    )
    if device is None:
        return seen
    return msgspec.structs.replace(
        seen,
        offline_seconds=0.0 if online else now - device.state_since,
        health=device.reported.health if device.reported else "ok",
        degraded=held.degraded if held and not part.was_degraded else "",
        restarts=max(0, device.boots - part.boots) if part.boots else 0,
    )
