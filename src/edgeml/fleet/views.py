"""What the fleet shows: the values of the API, the command line and the dashboard.

Frozen structs of the standard library's types and msgspec only, so that a client needs none of
the server's libraries. Times are Unix seconds.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from edgeml.gates import AnyGate, Verdict
from edgeml.messages.payloads import Ref

#: Bounds of a device's own trial: a day, and as many requests as one may see in it.
Trial = Annotated[int, msgspec.Meta(ge=1, le=100_000_000)]
TrialSeconds = Annotated[float, msgspec.Meta(ge=0.0, le=86_400.0)]


class SlotRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one slot of a device holds, and should hold.

    Attributes:
        version: What serves; empty when nothing does.
        desired: What should serve; empty when nothing was asked for.
        phase: Where the updater stands.
        progress: Bytes fetched, and bytes to fetch.
    """

    slot: str
    model: str = ""
    version: str = ""
    digest: str = ""
    desired: str = ""
    phase: str = ""
    outcome: str = ""
    last_verified: str = ""
    variant: str = ""
    placement: str = ""
    degraded: str = ""
    detail: str = ""
    progress: tuple[int, int] = (0, 0)


class DeviceRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One device in a list.

    Attributes:
        health: ``ok``, ``degraded``, ``failing``, or ``unknown`` before its first report.
        generation: Generation that it has accepted.
        wanted: Generation that was written for it.
        presence: ``online``, ``offline``, or ``unknown`` while the broker cannot be reached, and
            until the device was heard of after that. Only ``online`` counts as online.
    """

    device: str
    online: bool
    health: str
    profile: str = ""
    tags: dict[str, str] = {}
    agent_version: str = ""
    seen: float = 0.0
    slots: tuple[SlotRow, ...] = ()
    generation: int = 0
    wanted: int = 0
    clock: str = ""
    presence: str = "offline"


class VersionRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One version in the registry.

    Attributes:
        profiles: Hardware profiles that it has variants for.
        aliases: Names that point to it, for example ``prod``.
        quarantined: Why it must not run; empty when it may.
        devices: Devices that it serves on.
    """

    model: str
    version: str
    digest: str
    size: int
    pushed: float
    profiles: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    quarantined: str = ""
    devices: int = 0
    author: str = ""
    score: str = ""


class Released(msgspec.Struct, frozen=True):
    """A version whose quarantine was lifted.

    Attributes:
        refusing: Devices that found the bundle itself at fault: they keep refusing it.
    """

    row: VersionRow
    refusing: tuple[str, ...]


class VariantRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One variant of a version, and how far it was verified."""

    id: str
    profile: str
    runtime: str
    precision: str
    recipe: str
    size: int
    evidence: str
    by: str


class VersionDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """A version with what its manifest says and where it comes from."""

    row: VersionRow
    variants: tuple[VariantRow, ...]
    source: str
    source_digest: str
    data_digest: str
    tools: dict[str, str] = {}
    parents: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


class TrafficRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one version does, over the windows that came in lately.

    Attributes:
        rate: Requests per second of all devices together.
        error_share: Failed requests, in [0, 1].
        p50_ms: Median latency, at most 19 % too high (buckets).
        p99_ms: The same for the 99th percentile.
        accuracy: Share of the labels that agreed; None without labels.
    """

    model: str
    version: str
    digest: str
    devices: int
    requests: int
    errors: int
    rate: float
    error_share: float
    p50_ms: float
    p99_ms: float
    labelled: int = 0
    accuracy: float | None = None
    fallbacks: int = 0


class FleetHealth(msgspec.Struct, frozen=True, omit_defaults=True):
    """The fleet at a glance.

    Attributes:
        broker: Whether the fleet is connected to the broker.
        health: Health -> devices.
        seconds: Length of the time that ``traffic`` looks back.
        unknown: Devices of which nobody knows whether they are online.
        broker_lost: For how many seconds the broker has been away; 0 while it is connected.
    """

    fleet: str
    broker: bool
    devices: int
    online: int
    health: dict[str, int]
    seconds: float
    traffic: tuple[TrafficRow, ...] = ()
    active_rollouts: int = 0
    quarantined: int = 0
    unknown: int = 0
    broker_lost: float = 0.0


class DeviceDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device with its machine, its traffic and its last events."""

    row: DeviceRow
    facts: dict[str, Any] = {}
    boot: str = ""
    boots: int = 0
    enrolled: float = 0.0
    state_since: float = 0.0
    quarantined: tuple[str, ...] = ()
    traffic: tuple[TrafficRow, ...] = ()
    windows: tuple[dict[str, Any], ...] = ()
    events: tuple[EventRow, ...] = ()


class EventRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened; ``device`` is empty for the fleet itself."""

    id: int
    at: float
    device: str
    kind: str
    severity: str
    message: str
    data: dict[str, Any] = {}


class WaveRow(msgspec.Struct, frozen=True):
    """How many devices of a wave are in which state."""

    devices: int
    waiting: int
    sent: int
    trying: int
    committed: int
    failed: int


class RolloutRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One rollout in a list.

    Attributes:
        wave: Number of the current wave, from 1; 0 before the first.
        may: What people may ask for now.
    """

    id: str
    ref: Ref
    slot: str
    selector: str
    strategy: str
    state: str
    reason: str
    created: float
    since: float
    wave: int
    waves: tuple[WaveRow, ...]
    author: str = ""
    may: tuple[str, ...] = ()


class PartRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One device's part in a rollout."""

    device: str
    wave: int
    state: str
    online: bool = False
    presence: str = "offline"
    before: str = ""
    restored: bool = False
    detail: str = ""


class DecisionRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A decision, and the verdicts that it rests on."""

    at: float
    kind: str
    message: str
    verdicts: tuple[Verdict, ...] = ()


class RolloutDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rollout with its devices, its gates and its decisions.

    Attributes:
        verdicts: What the gates said last; empty when nothing was judged since the start.
    """

    row: RolloutRow
    devices: tuple[PartRow, ...]
    gates: tuple[AnyGate, ...]
    decisions: tuple[DecisionRow, ...]
    verdicts: tuple[Verdict, ...] = ()


class RolloutRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Ask for a rollout.

    Attributes:
        model: Name of the model.
        version: SemVer, or ``@alias``.
        selector: Which devices (``edgeml.fleet.selector``).
        strategy: Which waves (``edgeml.fleet.strategies``).
        waves: Cumulative shares, for example ``25%,100%``; empty for the strategy's own.
        slot: Slot of the devices; the model's name when empty.
        gates: Gates that replace the default ones of the same name.
        trial_requests: Requests that a device's own trial must serve before it commits.
        trial_seconds: Or this long.
        id: Id of a preview, to get exactly its waves; empty for a new one.
    """

    model: str
    version: str
    selector: str = "all"
    strategy: str = "canary"
    waves: str = ""
    slot: str = ""
    gates: tuple[AnyGate, ...] = ()
    trial_requests: Trial = 20
    trial_seconds: TrialSeconds = 10.0
    id: str = ""


class Plan(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a rollout would do.

    Attributes:
        id: Ask for the rollout with this id to get exactly these waves.
        waves: Devices of each wave.
        offline: Those of them that are away now.
        skipped: Device -> why it takes no part.
    """

    id: str
    ref: Ref
    slot: str
    selector: str
    strategy: str
    waves: tuple[tuple[str, ...], ...]
    gates: tuple[AnyGate, ...]
    offline: tuple[str, ...] = ()
    skipped: dict[str, str] = {}


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something changed; who shows it asks again.

    Attributes:
        kind: ``device``, ``rollout``, ``model``, ``event``, ``measurement`` or ``broker``.
        id: Which one.
    """

    kind: str
    id: str = ""


class Session(msgspec.Struct, frozen=True):
    """A successful login."""

    token: str
    user: str
    role: str
