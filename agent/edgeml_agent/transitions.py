"""The updater as a printed table: which event leads from which phase to which.

::

    phase     done      retry     failed    faulty     crashed   superseded  exhausted  resumed
    --------  --------  --------  --------  ---------  --------  ----------  ---------  --------
    idle      (target -> fetch, satisfied -> idle, refused -> idle)                     idle
    idle      (withdrawn -> rollback, crashing -> rollback!)
    fetch     verify    fetch     rollback  -          -         rollback    -          fetch
    verify    stage     fetch+    rollback  rollback!  -         rollback    rollback   verify+
    stage     warmup    -         rollback  rollback!  -         rollback    rollback   stage+
    warmup    trial     -         rollback  rollback!  warmup+   rollback    rollback!  warmup+
    trial     commit    -         rollback  rollback!  warmup+   rollback    rollback!  warmup+
    commit    idle      -         -         -          -         -           -          commit
    rollback  idle      -         -         -          -         -           -          rollback

``+`` is counted, and beyond ``MAX_RESUMES`` becomes ``exhausted``: no endless loop of crashes or
reboots. ``!`` puts the candidate's digest into quarantine: the bundle is at fault, not the network
or the disk. A fetch is never counted: a device that is switched off every evening must still get
through a long download.

What a transition does to the state is here and pure; what a phase *does* is in ``updater``. The
new state is on the disk before its act begins. Entering ``commit`` is the point of no return: the
same write makes the candidate ``last_verified``. Only two things change it otherwise: the fleet
forbids it (``withdrawn``), or the data plane crashes again and again under it (``crashing``). Then
the version before it takes its place, if there is one that may run; else the slot is empty.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from edgeml.errors import InternalError
from edgeml.messages.payloads import DesiredState, Ref, SlotTarget

MAX_RESUMES = 3
_DETAIL = 500


class Phase(StrEnum):
    """Where the updater of a slot stands."""

    IDLE = "idle"
    FETCH = "fetch"
    VERIFY = "verify"
    STAGE = "stage"
    WARMUP = "warmup"
    TRIAL = "trial"
    COMMIT = "commit"
    ROLLBACK = "rollback"


class Happening(StrEnum):
    """What can happen to a slot."""

    TARGET = "target"
    SATISFIED = "satisfied"
    REFUSED = "refused"
    DONE = "done"
    RETRY = "retry"
    FAILED = "failed"
    FAULTY = "faulty"
    CRASHED = "crashed"
    SUPERSEDED = "superseded"
    EXHAUSTED = "exhausted"
    RESUMED = "resumed"
    WITHDRAWN = "withdrawn"
    CRASHING = "crashing"


class Slot(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is stored of one slot.

    Attributes:
        phase: Where its updater stands.
        active: What serves; the candidate during a trial.
        last_verified: What a rollback goes back to; changed by entering ``commit``, and when it
            is withdrawn itself.
        previous: What was last verified before that; kept on disk for a quick way back.
        candidate: What is being brought in.
        target: What was asked for in this attempt.
        attempted: Generation of this attempt, or of the last one.
        outcome: Of the last attempt: "", ``committed``, ``rolled_back`` or ``refused``.
        resumes: Counted restarts of this attempt.
        detail: Reason of the last failure.
    """

    phase: Phase = Phase.IDLE
    active: Ref | None = None
    last_verified: Ref | None = None
    previous: Ref | None = None
    candidate: Ref | None = None
    target: SlotTarget | None = None
    attempted: int = 0
    outcome: str = ""
    resumes: int = 0
    detail: str = ""

    def kept(self) -> tuple[Ref, ...]:
        """Return the versions whose bytes must stay on the disk."""
        refs = (self.active, self.last_verified, self.previous, self.candidate)
        return tuple(ref for ref in refs if ref is not None)


class DeviceState(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything that the agent must remember over a power cut.

    Attributes:
        boots: How often the agent was started.
        clean: Whether it was told to stop last time; then what was in flight is not suspect.
        generation: Highest generation of desired state that was accepted.
        desired: That desired state.
        envelope: Digest of the envelope that it came in.
        slots: Slot name -> its state.
        quarantined: Digest -> why this device will not run it.
        schema: Version of this file.
    """

    boots: int = 0
    clean: bool = False
    generation: int = 0
    desired: DesiredState | None = None
    envelope: str = ""
    slots: dict[str, Slot] = {}
    quarantined: dict[str, str] = {}
    schema: int = 1

    def slot(self, name: str) -> Slot:
        """Return a slot; an empty one when it is not known yet."""
        return self.slots.get(name, Slot())

    def forbids(self, digest: str) -> bool:
        """Tell whether a digest is in quarantine, here or in the fleet."""
        return digest in self.quarantined or (
            self.desired is not None and digest in self.desired.quarantined
        )


_P, _H = Phase, Happening
#: (phase, happening) -> the next phase.
TABLE: dict[tuple[Phase, Happening], Phase] = {
    (_P.IDLE, _H.TARGET): _P.FETCH,
    (_P.IDLE, _H.SATISFIED): _P.IDLE,
    (_P.IDLE, _H.REFUSED): _P.IDLE,
    (_P.IDLE, _H.RESUMED): _P.IDLE,
    (_P.IDLE, _H.WITHDRAWN): _P.ROLLBACK,
    (_P.IDLE, _H.CRASHING): _P.ROLLBACK,
    (_P.FETCH, _H.DONE): _P.VERIFY,
    (_P.FETCH, _H.RETRY): _P.FETCH,
    (_P.FETCH, _H.FAILED): _P.ROLLBACK,
    (_P.FETCH, _H.SUPERSEDED): _P.ROLLBACK,
    (_P.FETCH, _H.RESUMED): _P.FETCH,
    (_P.VERIFY, _H.DONE): _P.STAGE,
    (_P.VERIFY, _H.RETRY): _P.FETCH,
    (_P.VERIFY, _H.FAILED): _P.ROLLBACK,
    (_P.VERIFY, _H.FAULTY): _P.ROLLBACK,
    (_P.VERIFY, _H.SUPERSEDED): _P.ROLLBACK,
    (_P.VERIFY, _H.EXHAUSTED): _P.ROLLBACK,
    (_P.VERIFY, _H.RESUMED): _P.VERIFY,
    (_P.STAGE, _H.DONE): _P.WARMUP,
    (_P.STAGE, _H.FAILED): _P.ROLLBACK,
    (_P.STAGE, _H.FAULTY): _P.ROLLBACK,
    (_P.STAGE, _H.SUPERSEDED): _P.ROLLBACK,
    (_P.STAGE, _H.EXHAUSTED): _P.ROLLBACK,
    (_P.STAGE, _H.RESUMED): _P.STAGE,
    (_P.WARMUP, _H.DONE): _P.TRIAL,
    (_P.WARMUP, _H.FAILED): _P.ROLLBACK,
    (_P.WARMUP, _H.FAULTY): _P.ROLLBACK,
    (_P.WARMUP, _H.CRASHED): _P.WARMUP,
    (_P.WARMUP, _H.SUPERSEDED): _P.ROLLBACK,
    (_P.WARMUP, _H.EXHAUSTED): _P.ROLLBACK,
    (_P.WARMUP, _H.RESUMED): _P.WARMUP,
    (_P.TRIAL, _H.DONE): _P.COMMIT,
    (_P.TRIAL, _H.FAILED): _P.ROLLBACK,
    (_P.TRIAL, _H.FAULTY): _P.ROLLBACK,
    (_P.TRIAL, _H.CRASHED): _P.WARMUP,
    (_P.TRIAL, _H.SUPERSEDED): _P.ROLLBACK,
    (_P.TRIAL, _H.EXHAUSTED): _P.ROLLBACK,
    (_P.TRIAL, _H.RESUMED): _P.WARMUP,
    (_P.COMMIT, _H.DONE): _P.IDLE,
    (_P.COMMIT, _H.RESUMED): _P.COMMIT,
    (_P.ROLLBACK, _H.DONE): _P.IDLE,
    (_P.ROLLBACK, _H.RESUMED): _P.ROLLBACK,
}

#: Transitions that count towards ``MAX_RESUMES``.
COUNTED = frozenset(
    [(phase, _H.RESUMED) for phase in (_P.VERIFY, _P.STAGE, _P.WARMUP, _P.TRIAL)]
    + [(_P.WARMUP, _H.CRASHED), (_P.TRIAL, _H.CRASHED), (_P.VERIFY, _H.RETRY)]
)

#: Transitions that put the candidate into quarantine, or what is active where there is none.
QUARANTINE = frozenset(
    [(phase, _H.FAULTY) for phase in (_P.VERIFY, _P.STAGE, _P.WARMUP, _P.TRIAL)]
    + [(_P.WARMUP, _H.EXHAUSTED), (_P.TRIAL, _H.EXHAUSTED), (_P.IDLE, _H.CRASHING)]
)


def advance(
    state: DeviceState,
    name: str,
    happening: Happening,
    *,
    target: SlotTarget | None = None,
    detail: str = "",
    counted: bool = True,
) -> DeviceState:
    """Return the state after something happened to a slot. Pure.

    Args:
        state: Before.
        name: The slot.
        happening: What happened.
        target: For ``target``, ``satisfied`` and ``refused``: what was asked for.
        detail: Why, for people.
        counted: Whether what is counted is counted; not after a stop that was asked for.

    Raises:
        InternalError: The table has no such transition.
    """
    slot = state.slot(name)
    if counted and (slot.phase, happening) in COUNTED:
        if slot.resumes >= MAX_RESUMES:
            happening = Happening.EXHAUSTED
            detail = f"{slot.phase} did not come through {MAX_RESUMES + 1} times: {detail}"
        else:
            slot = msgspec.structs.replace(slot, resumes=slot.resumes + 1)
    key = (slot.phase, happening)
    if key not in TABLE:
        raise InternalError(f"the updater has no transition for '{happening}' in '{slot.phase}'")
    quarantined = state.quarantined
    suspect = slot.candidate or slot.active
    if key in QUARANTINE and suspect is not None:
        quarantined = {**quarantined, suspect.digest: detail[:_DETAIL]}
    slot = _entered(slot, state, TABLE[key], happening, target, detail[:_DETAIL])
    return msgspec.structs.replace(
        state, slots={**state.slots, name: slot}, quarantined=quarantined
    )


def _entered(
    slot: Slot,
    state: DeviceState,
    phase: Phase,
    happening: Happening,
    target: SlotTarget | None,
    detail: str,
) -> Slot:
    """Return the slot as it is when it has entered a phase."""
    change: dict[str, object] = {"phase": phase}
    if slot.phase is Phase.IDLE and phase is Phase.ROLLBACK:
        before = slot.previous
        usable = before is not None and not state.forbids(before.digest)
        change |= {
            "active": before if usable else None,
            "last_verified": before if usable else None,
            "previous": None,
            "outcome": "rolled_back",
            "detail": detail,
        }
    elif slot.phase is Phase.IDLE and happening is not Happening.RESUMED:
        assert target is not None
        outcomes = {Happening.SATISFIED: "committed", Happening.REFUSED: "refused"}
        change |= {
            "target": target,
            "attempted": state.generation,
            "outcome": outcomes.get(happening, ""),
            "candidate": target.ref if happening is Happening.TARGET else None,
            "resumes": 0,
            "detail": detail,
        }
    elif phase is Phase.TRIAL:
        change |= {"active": slot.candidate}
    elif phase is Phase.COMMIT and slot.phase is not Phase.COMMIT:
        change |= {
            "active": slot.candidate,
            "last_verified": slot.candidate,
            "previous": slot.last_verified,
            "outcome": "committed",
            "detail": "",
        }
    elif phase is Phase.ROLLBACK and slot.phase is not Phase.ROLLBACK:
        refused = slot.phase is Phase.FETCH and happening is Happening.FAILED
        change |= {
            "active": slot.last_verified,
            "outcome": "refused" if refused else "rolled_back",
            "detail": detail,
        }
    elif phase is Phase.IDLE:
        change |= {"candidate": None, "resumes": 0}
    else:
        change |= {"active": slot.last_verified} | ({"detail": detail} if detail else {})
    return msgspec.structs.replace(slot, **change)
