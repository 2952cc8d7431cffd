"""Report: what the device says of itself, made from what is stored and what serves."""

from __future__ import annotations

from collections.abc import Mapping

from edgeml.messages.payloads import Reported, SlotReport
from edgeml_agent.control import SlotStatus
from edgeml_agent.transitions import DeviceState, Slot


def slot_report(
    slot: Slot, status: SlotStatus | None, failure: str, progress: tuple[int, int]
) -> SlotReport:
    """Return the report of one slot.

    Args:
        slot: What is stored of it.
        status: What the data plane says of it; None when it serves nothing.
        failure: Why it does not load; empty when it does.
        progress: Bytes fetched, and bytes to fetch.
    """
    return SlotReport(
        phase=slot.phase.value,
        active=status.ref if status is not None else None,
        last_verified=slot.last_verified,
        candidate=slot.candidate,
        variant=status.variant if status is not None else "",
        placement=status.placement if status is not None else "",
        degraded=status.degraded if status is not None else "",
        detail=slot.detail or failure,
        progress=progress,
        attempted=slot.attempted,
        outcome=slot.outcome,
    )


def health(
    state: DeviceState,
    statuses: Mapping[str, SlotStatus],
    failures: Mapping[str, str],
    *,
    ready: bool,
    crashes: int,
) -> str:
    """Return ``ok``, ``degraded`` or ``failing``.

    Degraded: a fallback runs, it crashed lately, or the version before serves in its place.

    Args:
        state: What is stored.
        statuses: What serves.
        failures: Why a slot does not load, by slot.
        ready: Whether the data plane runs and was loaded.
        crashes: Its crashes in a row.
    """
    should = {name for name, slot in state.slots.items() if slot.last_verified is not None}
    if not ready or crashes > 2 or should - set(statuses):
        return "failing"
    if crashes or failures or any(status.degraded for status in statuses.values()):
        return "degraded"
    return "ok"


def report(
    state: DeviceState,
    statuses: Mapping[str, SlotStatus],
    failures: Mapping[str, str],
    progress: Mapping[str, tuple[int, int]],
    *,
    device: str,
    boot: str,
    clock: str,
    ready: bool,
    crashes: int,
) -> Reported:
    """Return the whole report, with sequence 0; its sender numbers it.

    Args:
        state: What is stored.
        statuses: What serves, by slot.
        failures: Why a slot does not load, by slot.
        progress: Bytes fetched and bytes to fetch, by slot.
        device: Our id.
        boot: Id of this start of the agent.
        clock: ``trusted`` or ``untrusted``.
        ready: Whether the data plane runs and was loaded.
        crashes: Its crashes in a row.
    """
    slots = {
        name: slot_report(
            slot, statuses.get(name), failures.get(name, ""), progress.get(name, (0, 0))
        )
        for name, slot in state.slots.items()
    }
    return Reported(
        device=device,
        boot=boot,
        sequence=0,
        generation=state.generation,
        slots=slots,
        quarantined=tuple(sorted(state.quarantined)),
        health=health(state, statuses, failures, ready=ready, crashes=crashes),
        clock=clock,
    )
