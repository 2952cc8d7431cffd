"""What a fleet and its devices say about measuring candidates on the devices themselves.

An order travels as a DSSE envelope by the director key inside an ``Rpc`` with the method
``measure``; a device answers with a ``MeasureStatus``, and again whenever that changes. The fleet
repeats the order until it has a status that is final: so nothing is lost when the broker or either
side goes away, and nothing is done twice, because an order has a number.
"""

from __future__ import annotations

import msgspec

from edgeml.hardware import DeviceFacts
from edgeml.messages.payloads import SCHEMA, Ref

#: States of a measurement on one device that do not change any more.
FINAL = frozenset({"done", "failed", "refused", "cancelled"})


class MeasureOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """Measure the variants of a bundle; travels only inside a DSSE envelope by the director key.

    Attributes:
        fleet: Fleet that it is for; any other refuses it.
        device: Device that it is for; any other refuses it.
        id: Of the measurement; the same on all its devices.
        number: Strictly increasing per device; a lower one than the highest seen is refused.
        ref: The bundle that holds the candidates; no slot may name it.
        size: Length of its OCI manifest.
        profile: Hardware profile of its variants.
        baseline: Id of the variant that the others are compared with.
        rounds: Of the interleaved measurement.
        budget_s: Seconds after which no new round starts.
        limit_s: Seconds after which one process is ended.
        not_after: Unix seconds after which it is not begun; 0 for never.
    """

    fleet: str
    device: str
    id: str
    number: int
    ref: Ref
    size: int
    profile: str
    baseline: str
    rounds: int = 40
    budget_s: float = 60.0
    limit_s: float = 600.0
    not_after: float = 0.0
    schema: int = SCHEMA


class Figures(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one candidate did on one device.

    Attributes:
        rounds_ms: Median of each round in milliseconds.
        p50: Milliseconds.
        p95: Milliseconds.
        p99: Milliseconds.
        speedup: (value, low, high) against the baseline, in the same rounds.
        clock: The time that was compared, ``wall`` or ``cpu``.
        load_ms: From its file to the first answer.
        memory_bytes: What loading and running it added to a process.
        placement: The device or provider that really ran it.
        version: Of the runtime's library.
        error: Why there are no figures; empty when there are.
    """

    rounds_ms: tuple[float, ...] = ()
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    speedup: tuple[float, float, float] = (0.0, 0.0, 0.0)
    clock: str = ""
    load_ms: float = 0.0
    memory_bytes: int = 0
    placement: str = ""
    version: str = ""
    error: str = ""


class Conditions(msgspec.Struct, frozen=True, omit_defaults=True):
    """What else a device did while it measured.

    Attributes:
        load: Load average of one minute, before and after.
        requests: Requests that it answered meanwhile, as far as its telemetry windows have closed.
        throttled: Times that the processor slowed itself down for its temperature.
        temperature_c: The hottest sensor at the end; 0 when there is none.
        cut_off: Times that the measurement was given up and begun anew.
    """

    load: tuple[float, float] = (0.0, 0.0)
    requests: int = 0
    throttled: int = 0
    temperature_c: float = 0.0
    cut_off: int = 0


class MeasureStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a measurement is on one device; the result of ``measure`` and its cancelling.

    Attributes:
        id: Of the measurement.
        number: Of the order.
        state: ``waiting`` (for a quiet device), ``fetching``, ``measuring``, or final: ``done``,
            ``failed``, ``refused``, ``cancelled``.
        detail: Why, or what it is at, in one line.
        progress: Bytes fetched, and bytes to fetch.
        figures: Variant id -> figures, when done.
        facts: What the device is, when done.
        conditions: What else it did, when done.
        seconds: How long it took, when done.
    """

    id: str
    number: int
    state: str
    detail: str = ""
    progress: tuple[int, int] = (0, 0)
    figures: dict[str, Figures] = {}
    facts: DeviceFacts | None = None
    conditions: Conditions = Conditions()
    seconds: float = 0.0
    schema: int = SCHEMA
