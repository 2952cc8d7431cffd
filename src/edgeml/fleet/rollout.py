"""The rollout: a pure state machine. No clock, no network, no disk.

``step(rollout, event)`` returns the next rollout and what the shell must do now. Time comes in
with the events, generations come in with ``Issued``, so that any history can be played again.

::

    draft -> running <-> holding -> done
               |  ^         |         |
               v  |         v         v
              paused     rolling_back -> rolled_back
    abort: from any state before the end -> aborted

``running``: devices of the current wave are installing. ``holding``: they have ended, a gate
waits. A gate that fails rolls back from every state in which devices run the new version, also
from ``paused``: harm does not wait for people. The digest is quarantined, unless only the install
gate failed and no device found the bundle at fault (disks were full, a network was slow): then it
may come again. Reports may be late, repeated or out of order;
what counts of a report is monotone (the generation that was attempted), so they do no harm.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from edgeml.gates import AnyGate, Verdict
from edgeml.messages.payloads import Ref, SlotReport


class State(StrEnum):
    """Where a rollout stands."""

    DRAFT = "draft"
    RUNNING = "running"
    HOLDING = "holding"
    PAUSED = "paused"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    DONE = "done"
    ABORTED = "aborted"


#: States in which a rollout still does something, and holds its slot.
ACTIVE = frozenset({State.DRAFT, State.RUNNING, State.HOLDING, State.PAUSED, State.ROLLING_BACK})
_FORWARD = frozenset({State.RUNNING, State.HOLDING, State.PAUSED})


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """One device's part in a rollout.

    Attributes:
        wave: Index of its wave.
        state: ``waiting`` for its wave, ``sent`` (told), ``trying``, ``committed``, ``failed``.
        generation: Generation that told it to take the new version; 0 when it was not told.
        before: Its own last verified version; what it goes back to.
        back: Generation that told it to go back; 0 when it was not told.
        restored: Whether it said that it went back.
        stranded: Whether it has no version to go back to, and still runs this one.
        detail: Its reason for a failure.
        boots: Boots of the device that were known when it was told.
        was_degraded: Whether the slot ran on a fallback already then.
        faulty: Whether the device found the bundle itself at fault, and put it into quarantine.
    """

    wave: int
    state: Literal["waiting", "sent", "trying", "committed", "failed"] = "waiting"
    generation: int = 0
    before: Ref | None = None
    back: int = 0
    restored: bool = False
    stranded: bool = False
    detail: str = ""
    boots: int = 0
    was_degraded: bool = False
    faulty: bool = False


class Rollout(msgspec.Struct, frozen=True, omit_defaults=True):
    """A version on its way to devices.

    Attributes:
        id: Short id; also the salt of the waves.
        ref: The version.
        slot: The slot that it goes into.
        selector: What chose the devices.
        strategy: Name of the strategy that made the waves.
        wave_sizes: Devices per wave.
        parts: Device -> its part.
        gates: Judged in this order.
        trial_requests: Requests that a device's own trial must serve before it commits.
        trial_seconds: Or this long.
        created: Unix seconds.
        author: Who made it.
        state: Where it stands.
        wave: Index of the current wave.
        wave_since: When the current wave was released.
        since: When this state began.
        reason: Why it stands there.
        passed: Gates that passed at the end of a wave, with something to judge.
    """

    id: str
    ref: Ref
    slot: str
    selector: str
    strategy: str
    wave_sizes: tuple[int, ...]
    parts: dict[str, Part]
    gates: tuple[AnyGate, ...]
    trial_requests: int = 20
    trial_seconds: float = 10.0
    created: float = 0.0
    author: str = ""
    state: State = State.DRAFT
    wave: int = -1
    wave_since: float = 0.0
    since: float = 0.0
    reason: str = ""
    passed: tuple[str, ...] = ()

    @property
    def touched(self) -> tuple[str, ...]:
        """Devices that were told to take the new version."""
        return tuple(d for d, p in self.parts.items() if p.generation)


class Start(msgspec.Struct, frozen=True):
    """People want it to begin."""

    now: float


class Pause(msgspec.Struct, frozen=True):
    """People want no further wave."""

    now: float
    reason: str = ""


class Resume(msgspec.Struct, frozen=True):
    """People want it to go on."""

    now: float


class Abort(msgspec.Struct, frozen=True):
    """People want it to stop: what is committed stays, the rest goes back."""

    now: float
    reason: str = ""


class RollBack(msgspec.Struct, frozen=True):
    """People want every touched device back where it was."""

    now: float
    reason: str = ""


class Issued(msgspec.Struct, frozen=True):
    """The shell wrote a generation for a device.

    Attributes:
        way: ``out`` with the new version, ``back`` with the old one.
        before: For ``out``: the device's last verified version at that moment; for ``back``: the
            version that it is to go back to.
        boots: For ``out``: boots of the device that were known.
        degraded: For ``out``: whether the slot ran on a fallback.
    """

    now: float
    device: str
    generation: int
    way: Literal["out", "back"]
    before: Ref | None = None
    boots: int = 0
    degraded: bool = False


class DeviceReported(msgspec.Struct, frozen=True):
    """A device said what it holds in this rollout's slot; None when it holds nothing.

    Attributes:
        faulty: Whether it has put the rollout's digest into its own quarantine.
    """

    now: float
    device: str
    generation: int
    slot: SlotReport | None
    faulty: bool = False


class Tick(msgspec.Struct, frozen=True):
    """Time passed.

    Attributes:
        verdicts: Of the current wave's gates, in their order; empty when none was judged.
        online: Devices that can be reached.
    """

    now: float
    verdicts: tuple[Verdict, ...] = ()
    online: frozenset[str] = frozenset()


AnyEvent = Start | Pause | Resume | Abort | RollBack | Issued | DeviceReported | Tick


class SendOut(msgspec.Struct, frozen=True):
    """Tell a device to take the new version; answer with Issued."""

    device: str


class SendBack(msgspec.Struct, frozen=True):
    """Tell a device to go back to its own version (None: empty the slot); answer with Issued."""

    device: str
    to: Ref | None


class Quarantine(msgspec.Struct, frozen=True):
    """Never run this digest again."""

    ref: Ref
    reason: str


class Note(msgspec.Struct, frozen=True):
    """Write a decision down, with what it rests on."""

    kind: str
    message: str
    verdicts: tuple[Verdict, ...] = ()


Command = SendOut | SendBack | Quarantine | Note
Result = tuple[Rollout, tuple[Command, ...]]


def step(rollout: Rollout, event: AnyEvent) -> Result:
    """Return the rollout after an event, and what must be done now.

    An event that does not fit the state changes nothing: whether people may ask for something is
    for the shell to check with ``allowed``.
    """
    match event:
        case Start(now=now):
            if rollout.state is State.DRAFT:
                return _release(rollout, 0, now)
        case Pause(now=now, reason=reason):
            if rollout.state in _FORWARD - {State.PAUSED}:
                return _enter(rollout, State.PAUSED, now, reason or "paused by hand")
        case Resume(now=now):
            if rollout.state is State.PAUSED:
                return _enter(rollout, State.RUNNING, now, "resumed by hand")
        case Abort(now=now, reason=reason):
            if rollout.state in ACTIVE:
                return _abort(rollout, now, reason or "aborted by hand")
        case RollBack(now=now, reason=reason):
            if rollout.state in _FORWARD | {State.DONE, State.ABORTED}:
                return _roll_back(rollout, now, reason or "rolled back by hand")
        case Issued():
            return _issued(rollout, event)
        case DeviceReported():
            return _reported(rollout, event)
        case Tick():
            return _tick(rollout, event)
    return rollout, ()


def allowed(state: State) -> tuple[str, ...]:
    """Return what people may ask for in a state."""
    if state is State.DRAFT:
        return ("start", "abort")
    if state in {State.RUNNING, State.HOLDING}:
        return ("pause", "abort", "rollback")
    if state is State.PAUSED:
        return ("resume", "abort", "rollback")
    if state is State.ROLLING_BACK:
        return ("abort",)
    return ("rollback",) if state in {State.DONE, State.ABORTED} else ()


def _change(rollout: Rollout, device: str, part: Part) -> Rollout:
    return msgspec.structs.replace(rollout, parts={**rollout.parts, device: part})


def _enter(
    rollout: Rollout,
    state: State,
    now: float,
    reason: str,
    verdicts: tuple[Verdict, ...] = (),
    commands: tuple[Command, ...] = (),
) -> Result:
    """Go to a state, and note it."""
    changed = msgspec.structs.replace(rollout, state=state, since=now, reason=reason)
    return changed, (*commands, Note(state.value, reason, verdicts))


def _release(rollout: Rollout, wave: int, now: float, verdicts: tuple[Verdict, ...] = ()) -> Result:
    """Let the next wave out, or finish after the last."""
    passed = {*rollout.passed, *(v.gate for v in verdicts if v.state == "pass")}
    rollout = msgspec.structs.replace(rollout, passed=tuple(sorted(passed)))
    unjudged = _unjudged(rollout, verdicts)
    if wave >= len(rollout.wave_sizes):
        touched = len(rollout.touched)
        good = sum(p.state == "committed" for p in rollout.parts.values())
        reason = f"{good} of {count_of(touched, 'device')} committed {rollout.ref.version}"
        reason += unjudged
        return _enter(rollout, State.DONE, now, reason, verdicts)
    members = sorted(d for d, p in rollout.parts.items() if p.wave == wave)
    reason = f"wave {wave + 1} of {len(rollout.wave_sizes)}: {count_of(len(members), 'device')}"
    reason += unjudged
    moved = msgspec.structs.replace(rollout, wave=wave, wave_since=now)
    commands = tuple(SendOut(device) for device in members)
    return _enter(moved, State.RUNNING, now, reason, verdicts, commands)


def _unjudged(rollout: Rollout, verdicts: tuple[Verdict, ...]) -> str:
    """Return the gates that let it go on, and have not seen anything to judge in any wave."""
    undecided = [v for v in verdicts if v.state == "undecided" and v.gate not in rollout.passed]
    return "".join(f"; {v.gate} gate undecided: {v.reasons[0]}" for v in undecided)


def count_of(number: int, noun: str) -> str:
    """Return ``1 device``, ``2 devices``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _roll_back(
    rollout: Rollout, now: float, reason: str, verdicts: tuple[Verdict, ...] = ()
) -> Result:
    """Send every touched device back to its own version, and quarantine the digest."""
    commands: list[Command] = []
    told: tuple[Note, ...] = ()
    if _own_causes(rollout, verdicts):
        kept = "not quarantined: no device found the bundle at fault; it may be deployed again"
        told = (Note("kept", kept),)
    else:
        commands.append(Quarantine(rollout.ref, reason))
    commands += [SendBack(d, rollout.parts[d].before) for d in rollout.touched]
    changed, notes = _enter(rollout, State.ROLLING_BACK, now, reason, verdicts, tuple(commands))
    return changed, (*notes, *told)


def _own_causes(rollout: Rollout, verdicts: tuple[Verdict, ...]) -> bool:
    """Tell whether devices failed to install for causes of their own, and nothing else is wrong."""
    failed = {v.gate for v in verdicts if v.state == "fail"}
    return failed == {"install"} and not any(part.faulty for part in rollout.parts.values())


def _abort(rollout: Rollout, now: float, reason: str) -> Result:
    """Stop. Devices that have not committed are told to stay where they were."""
    commands: tuple[Command, ...] = ()
    if rollout.state is not State.ROLLING_BACK:
        commands = tuple(
            SendBack(d, rollout.parts[d].before)
            for d in rollout.touched
            if rollout.parts[d].state != "committed"
        )
    return _enter(rollout, State.ABORTED, now, reason, (), commands)


def _issued(rollout: Rollout, event: Issued) -> Result:
    part = rollout.parts.get(event.device)
    if part is None:
        return rollout, ()
    if event.way == "back":
        back = msgspec.structs.replace(
            part, back=event.generation, before=event.before, restored=False
        )
        return _change(rollout, event.device, back), ()
    sent = msgspec.structs.replace(
        part,
        generation=event.generation,
        state="sent",
        before=event.before,
        detail="",
        boots=event.boots,
        was_degraded=event.degraded,
    )
    return _change(rollout, event.device, sent), ()


def _reported(rollout: Rollout, event: DeviceReported) -> Result:
    part = rollout.parts.get(event.device)
    if part is None or not part.generation:
        return rollout, ()
    slot = event.slot
    if part.before is None and slot is not None and not part.back:
        # A device that was never heard of when it was told: now we know what it can go back to.
        verified = slot.last_verified
        if verified is not None and verified.digest != rollout.ref.digest:
            part = msgspec.structs.replace(part, before=verified)
            rollout = _change(rollout, event.device, part)
    if event.generation < part.generation:
        return rollout, ()
    if event.faulty and not part.faulty:
        part = msgspec.structs.replace(part, faulty=True)
        rollout = _change(rollout, event.device, part)
    if part.back:
        if part.restored or event.generation < part.back:
            return rollout, ()
        changed = _change(rollout, event.device, _way_back(part, slot))
        return _finish_back(changed, event.now, None)
    if part.state in {"committed", "failed"}:
        return rollout, ()
    return _change(rollout, event.device, _attempt(rollout.ref, part, slot)), ()


def _way_back(part: Part, slot: SlotReport | None) -> Part:
    """Return the part after a report that has seen the order to go back.

    It is back when the version is verified and serves; a trial of it may still fail.
    """
    held = slot or SlotReport("idle")
    wanted = part.before.digest if part.before is not None else ""
    holds = {ref.digest if ref else "" for ref in (held.active, held.last_verified)}
    if held.phase == "idle" and holds == {wanted}:
        return msgspec.structs.replace(part, restored=True, stranded=False)
    return msgspec.structs.replace(part, stranded=not wanted)


def _attempt(ref: Ref, part: Part, slot: SlotReport | None) -> Part:
    """Return the part after a report that has seen our generation."""
    if slot is None or slot.attempted < part.generation or not slot.outcome:
        return msgspec.structs.replace(part, state="trying")
    here = slot.active is not None and slot.active.digest == ref.digest
    if slot.outcome == "committed" and here:
        return msgspec.structs.replace(part, state="committed")
    detail = slot.detail or slot.outcome
    return msgspec.structs.replace(part, state="failed", detail=detail)


def _tick(rollout: Rollout, event: Tick) -> Result:
    if rollout.state is State.ROLLING_BACK:
        return _finish_back(rollout, event.now, event.online)
    if rollout.state not in _FORWARD or not event.verdicts:
        return rollout, ()
    failed = [v for v in event.verdicts if v.state == "fail"]
    if failed:
        reason = f"{failed[0].gate} gate: {failed[0].reasons[0]}"
        return _roll_back(rollout, event.now, reason, event.verdicts)
    if rollout.state is State.PAUSED:
        return rollout, ()
    waiting = [v for v in event.verdicts if v.state == "wait"]
    if not waiting:
        return _release(rollout, rollout.wave + 1, event.now, event.verdicts)
    installing = waiting[0].gate == "install"
    wanted = State.RUNNING if installing else State.HOLDING
    if rollout.state is wanted:
        return rollout, ()
    reason = f"{waiting[0].gate} gate waits: {waiting[0].reasons[0]}"
    return _enter(rollout, wanted, event.now, reason, event.verdicts)


def _finish_back(rollout: Rollout, now: float, online: frozenset[str] | None) -> Result:
    """End the way back when every touched device is restored, or offline (it will find its order).

    ``online`` is None when nothing is known of it: then only restored devices count.
    """
    if rollout.state is not State.ROLLING_BACK:
        return rollout, ()
    left = {d: p for d, p in rollout.parts.items() if p.generation and not p.restored}
    away = [d for d, p in left.items() if not p.stranded]
    if (online is None and away) or any(d in (online or ()) for d in away):
        return rollout, ()
    changed, notes = _enter(rollout, State.ROLLED_BACK, now, rollout.reason)
    if away:
        told = f"left to go back on return: {count_of(len(away), 'device')}"
        notes = (*notes, Note("offline", told))
    if len(left) > len(away):
        stuck = count_of(len(left) - len(away), "device")
        told = f"without an earlier version, and still on this one: {stuck}"
        notes = (*notes, Note("stranded", told))
    return changed, notes
