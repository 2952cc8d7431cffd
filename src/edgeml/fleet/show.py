"""Show: from what is stored to what is shown. Pure functions over structs."""

from __future__ import annotations

from typing import Any

import msgspec

from edgeml.fleet.history import Decision
from edgeml.fleet.inventory import Device
from edgeml.fleet.presence import OFFLINE, ONLINE
from edgeml.fleet.rollout import Part, Rollout, allowed
from edgeml.fleet.telemetry import StoredEvent, VersionCounts
from edgeml.fleet.views import (
    DecisionRow,
    DeviceRow,
    EventRow,
    PartRow,
    RolloutDetail,
    RolloutRow,
    SlotRow,
    TrafficRow,
    WaveRow,
)
from edgeml.gates import Verdict
from edgeml.messages.payloads import DesiredState, SlotReport
from edgeml.stats.buckets import LatencyHistogram

#: Of a slot whose version was taken away, with none before it.
EMPTY = "empty, waiting for a version"


def device_row(device: Device, desired: DesiredState | None, presence: str) -> DeviceRow:
    """Return a device as a row."""
    reported = device.reported
    held = reported.slots if reported else {}
    wanted = desired.slots if desired else {}
    slots = []
    for name in sorted({*held, *wanted}):
        target = wanted.get(name)
        slots.append(_slot_row(name, held.get(name), target.ref.version if target else ""))
    return DeviceRow(
        device=device.device,
        online=presence == ONLINE,
        presence=presence,
        health=reported.health if reported else "unknown",
        profile=device.profile,
        tags=device.tags,
        agent_version=device.agent_version,
        seen=device.seen,
        slots=tuple(slots),
        generation=reported.generation if reported else 0,
        wanted=desired.generation if desired else 0,
        clock=reported.clock if reported else "",
    )


def _slot_row(name: str, held: SlotReport | None, desired: str) -> SlotRow:
    if held is None:
        return SlotRow(slot=name, desired=desired)
    active, verified = held.active, held.last_verified
    idle = active is None and not desired and held.phase == "idle"
    return SlotRow(
        slot=name,
        model=active.model if active else "",
        version=active.version if active else "",
        digest=active.digest if active else "",
        desired=desired,
        phase=held.phase,
        outcome=held.outcome,
        last_verified=verified.version if verified else "",
        variant=held.variant,
        placement=held.placement,
        degraded=held.degraded,
        detail=": ".join(filter(None, (EMPTY if idle else "", held.detail))),
        progress=held.progress,
    )


def traffic_row(counts: VersionCounts, seconds: float) -> TrafficRow:
    """Return the traffic of a version.

    Args:
        counts: Its sums.
        seconds: Length of the time that they were summed over.
    """
    total = counts.requests + counts.errors
    histogram = LatencyHistogram(counts.latency)
    return TrafficRow(
        model=counts.model,
        version=counts.version,
        digest=counts.digest,
        devices=counts.devices,
        requests=counts.requests,
        errors=counts.errors,
        rate=counts.requests / seconds if seconds else 0.0,
        error_share=counts.errors / total if total else 0.0,
        p50_ms=1e3 * histogram.quantile(0.5),
        p99_ms=1e3 * histogram.quantile(0.99),
        labelled=counts.labelled,
        accuracy=counts.correct / counts.labelled if counts.labelled else None,
        fallbacks=counts.fallbacks,
    )


def event_row(event: StoredEvent) -> EventRow:
    """Return an event as a row."""
    return EventRow(
        event.id, event.received, event.device, event.kind, event.severity, event.message,
        event.data,
    )  # fmt: skip


def rollout_row(rollout: Rollout) -> RolloutRow:
    """Return a rollout as a row."""
    waves = []
    for index in range(len(rollout.wave_sizes)):
        states = [p.state for p in rollout.parts.values() if p.wave == index]
        counts = {
            name: states.count(name)
            for name in ("waiting", "sent", "trying", "committed", "failed")
        }
        waves.append(WaveRow(devices=len(states), **counts))
    return RolloutRow(
        id=rollout.id,
        ref=rollout.ref,
        slot=rollout.slot,
        selector=rollout.selector,
        strategy=rollout.strategy,
        state=rollout.state.value,
        reason=rollout.reason,
        created=rollout.created,
        since=rollout.since,
        wave=rollout.wave + 1,
        waves=tuple(waves),
        author=rollout.author,
        may=allowed(rollout.state),
    )


def rollout_detail(
    rollout: Rollout,
    presence: dict[str, str],
    decisions: list[Decision],
    verdicts: tuple[Verdict, ...],
) -> RolloutDetail:
    """Return a rollout with everything about it.

    Args:
        rollout: The rollout.
        presence: Device -> ``online``, ``offline`` or ``unknown``.
        decisions: What was decided.
        verdicts: What the gates said last.
    """
    parts = tuple(
        PartRow(
            device=name,
            wave=part.wave + 1,
            state=part.state,
            online=presence.get(name) == ONLINE,
            presence=presence.get(name, OFFLINE),
            before=part.before.version if part.before else "",
            restored=part.restored,
            detail=_detail(part),
        )
        for name, part in sorted(rollout.parts.items(), key=lambda item: (item[1].wave, item[0]))
    )
    told = tuple(DecisionRow(d.at, d.kind, d.message, d.verdicts) for d in decisions)
    return RolloutDetail(rollout_row(rollout), parts, rollout.gates, told, verdicts)


def _detail(part: Part) -> str:
    """Return what there is to say about a device beyond its state."""
    if part.stranded:
        return "no earlier version to go back to"
    if part.restored and part.before is None:
        return EMPTY
    return part.detail


def plain(value: object) -> dict[str, Any]:
    """Return a struct as a plain dictionary."""
    found: dict[str, Any] = msgspec.to_builtins(value)
    return found
