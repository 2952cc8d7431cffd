"""Every MQTT payload, as one frozen value each.

Decoding is tolerant (an unknown key is skipped) and bounded (``decode`` refuses what is too
long). Additive messages (telemetry, events) carry (device, boot, sequence), stay in the sender's
outbox until the fleet's application has acknowledged them, and are applied once.

JSON where people read, msgpack where machines do: ``encode`` knows by the type.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from edgeml.errors import NotTrustedError
from edgeml.hardware import DeviceFacts

#: Version of the messages; a reader skips a higher one and says so.
SCHEMA = 1
#: A payload longer than this is refused unread (block replies are the longest).
MAX_PAYLOAD = 4 << 20


class Ref(msgspec.Struct, frozen=True):
    """One version of one model.

    Attributes:
        model: Name.
        version: SemVer.
        digest: Digest of the bundle: ``sha256:<hex>`` of its OCI manifest.
    """

    model: str
    version: str
    digest: str


class Birth(msgspec.Struct, frozen=True):
    """Who a device is; sent at every connect, retained."""

    device: str
    boot: str
    agent_version: str
    facts: DeviceFacts
    profile: str
    tags: dict[str, str] = {}
    schema: int = SCHEMA


class State(msgspec.Struct, frozen=True):
    """Online or not; the last will carries the boot id, so that a stale one is told apart."""

    device: str
    boot: str
    online: bool
    schema: int = SCHEMA


class SlotReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one slot holds.

    Attributes:
        phase: State of the updater (``edgeml_agent.updater``), lower case.
        active: What serves now.
        last_verified: What a rollback goes back to; unchanged until the next commit, or until it
            is withdrawn itself.
        candidate: What is being brought in.
        variant: Id of the variant that serves now.
        placement: The provider that really runs it.
        degraded: Why it runs on a fallback; empty when it does not.
        detail: Reason of the last failure or rollback; empty when there was none.
        progress: Bytes fetched and bytes to fetch of the candidate.
        attempted: Generation of the last desired state that was acted on.
        outcome: Of that attempt: "", ``committed``, ``rolled_back`` or ``refused``.
    """

    phase: str
    active: Ref | None = None
    last_verified: Ref | None = None
    candidate: Ref | None = None
    variant: str = ""
    placement: str = ""
    degraded: str = ""
    detail: str = ""
    progress: tuple[int, int] = (0, 0)
    attempted: int = 0
    outcome: str = ""


class Reported(msgspec.Struct, frozen=True):
    """What a device says of itself; retained, last one wins by (boot, sequence).

    Attributes:
        generation: Highest generation of desired state that was accepted.
        slots: Slot name -> what it holds.
        quarantined: Digests that this device will not run.
        health: ``ok``, ``degraded`` or ``failing``.
        clock: ``trusted`` or ``untrusted``.
    """

    device: str
    boot: str
    sequence: int
    generation: int
    slots: dict[str, SlotReport]
    quarantined: tuple[str, ...] = ()
    health: str = "ok"
    clock: str = "trusted"
    schema: int = SCHEMA


#: Kinds of ``Telemetry.errors`` that are the caller's doing; no version is blamed for them.
CALLER_ERRORS = frozenset({"request", "not_found", "cancelled"})


class Telemetry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One window of counts of one slot; additive, applied once.

    Attributes:
        ref: The version that these counts belong to; a window never spans two versions.
        uptime: Seconds since boot at the window's start (monotonic).
        wall: Unix seconds at the window's start; 0 when the clock is not trusted.
        seconds: Length of the window.
        requests: Requests that were answered.
        errors: Kind -> count of requests that were not answered with a result.
        latency: Counts per bucket of ``edgeml.stats.buckets.LATENCY_BOUNDS``.
        fallbacks: Requests that were answered by a fallback.
        labelled: Labels that came in by /feedback for predictions of this version.
        correct: How many of them agreed with the prediction.
        drift: Encoded ``edgeml.drift`` window; empty when there is none.
        gauges: ``rss_bytes``, ``cpu_share``, ``temperature_c``, ...
    """

    device: str
    boot: str
    sequence: int
    slot: str
    ref: Ref
    uptime: float
    wall: float
    seconds: float
    requests: int
    errors: dict[str, int] = {}
    latency: tuple[int, ...] = ()
    fallbacks: int = 0
    labelled: int = 0
    correct: int = 0
    drift: bytes = b""
    gauges: dict[str, float] = {}
    schema: int = SCHEMA


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that people should know; additive, applied once.

    Attributes:
        kind: For example ``rollback``, ``withdrawn``, ``fallback``, ``crash``, ``damaged`` (bytes
            on the disk), ``storage`` (it cannot be written), ``clock_untrusted``.
        severity: ``info``, ``warning`` or ``critical``.
    """

    device: str
    boot: str
    sequence: int
    kind: str
    severity: str
    message: str
    uptime: float
    wall: float
    data: dict[str, Any] = {}
    schema: int = SCHEMA


class Rpc(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request to a device, or its reply (same id).

    Methods: ``ack`` (no reply; params ``boot`` and ``sequences``: additive messages that the
    fleet has applied), ``rebirth`` (send birth, state and reported again), ``ping``,
    ``measure`` and ``measure_cancel`` (see ``edgeml.messages.measuring``).
    """

    id: str
    method: str = ""
    params: dict[str, Any] = {}
    result: Any = None
    error: str = ""
    schema: int = SCHEMA


class BlockRequest(msgspec.Struct, frozen=True):
    """Ask for a piece.

    Attributes:
        request: Id chosen by the device; the reply carries it.
        kind: ``blob`` (``name`` is a digest) or ``tuf`` (``name`` is a metadata file name).
        offset: First byte.
        length: At most this many bytes.
    """

    request: int
    kind: str
    name: str
    offset: int
    length: int


class BlockReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece, or why there is none.

    Attributes:
        total: Length of the whole.
        error: ``not_found``, ``refused`` or empty.
    """

    request: int
    kind: str
    name: str
    offset: int
    total: int = 0
    data: bytes = b""
    error: str = ""


class SlotTarget(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a slot should hold.

    Attributes:
        ref: The version.
        requests: Requests that a trial must serve without harm before the commit.
        seconds: Or this long, with golden probes when there is no traffic.
    """

    ref: Ref
    requests: int = 20
    seconds: float = 10.0


class DesiredState(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who runs what; travels only inside a DSSE envelope by the director key.

    Attributes:
        generation: Strictly increasing per device; a downgrade is a higher generation that
            points to old bytes.
        slots: Slot name -> what it should hold. A slot that is not named is left alone.
        quarantined: Digests that must not run. A slot whose last verified version is among them
            and that gets no other one drops it: the version before serves, else nothing.
        not_after: Unix seconds after which it is not accepted as new; 0 for never.
    """

    fleet: str
    device: str
    generation: int
    slots: dict[str, SlotTarget]
    quarantined: tuple[str, ...] = ()
    not_after: float = 0.0
    schema: int = SCHEMA


_MSGPACK = (Telemetry, BlockReply)
T = TypeVar("T", bound=msgspec.Struct)


def encode(message: msgspec.Struct) -> bytes:
    """Return the bytes of a message: msgpack for telemetry and blocks, JSON for the rest."""
    if isinstance(message, _MSGPACK):
        return msgspec.msgpack.encode(message)
    return msgspec.json.encode(message)


def decode(payload: bytes, kind: type[T]) -> T:
    """Return the message in a payload.

    Raises:
        NotTrustedError: It is too long, or not such a message.
    """
    if len(payload) > MAX_PAYLOAD:
        raise NotTrustedError(
            f"{kind.__name__} of {len(payload)} bytes, expected at most {MAX_PAYLOAD}"
        )
    try:
        if issubclass(kind, _MSGPACK):
            return msgspec.msgpack.decode(payload, type=kind)
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotTrustedError(f"payload is not a {kind.__name__}: {error}") from error
