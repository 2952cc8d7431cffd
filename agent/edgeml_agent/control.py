"""What the supervisor and the data plane say to each other.

One request per line and one reply per line, JSON, over a Unix socket in the agent's state
folder. The supervisor asks, the data plane answers; requests are answered in order. The data
plane keeps no state of its own: after a crash the supervisor starts it again and says everything
once more.

A slot in the data plane holds a *serving* generation and at most one *staged* one:

``stage``    load the bundle, warm it up, check its golden samples; no traffic yet
``switch``   traffic goes to the staged one; the old one stays loaded
``settle``   the old one is dropped: the new one is the only one
``revert``   traffic goes back to the old one; the new one is dropped
``clear``    nothing serves any more: there is nothing to go back to
``probe``    run the golden samples of the serving one again
``observe``  hand over what was counted since the last ``observe``
"""

from __future__ import annotations

import msgspec

from edgeml.messages.payloads import Ref


class Stage(msgspec.Struct, frozen=True, tag="stage"):
    """Load a bundle beside what serves.

    Attributes:
        slot: The slot; also the name under which the model is served.
        ref: The version.
        bundle: Path of the bundle's folder.
        profile: Profile of the device: which variants may run.
    """

    slot: str
    ref: Ref
    bundle: str
    profile: str


class Switch(msgspec.Struct, frozen=True, tag="switch"):
    """Send traffic to the staged one."""

    slot: str


class Settle(msgspec.Struct, frozen=True, tag="settle"):
    """Drop the old one."""

    slot: str


class Revert(msgspec.Struct, frozen=True, tag="revert"):
    """Go back to the old one, or only drop the staged one when it never served."""

    slot: str


class Clear(msgspec.Struct, frozen=True, tag="clear"):
    """Drop everything in a slot; asking again changes nothing."""

    slot: str


class Probe(msgspec.Struct, frozen=True, tag="probe"):
    """Run the golden samples of what serves."""

    slot: str


class Observe(msgspec.Struct, frozen=True, tag="observe"):
    """Hand over counts."""


class Quit(msgspec.Struct, frozen=True, tag="quit"):
    """Answer what is in flight, then stop."""


Request = Stage | Switch | Settle | Revert | Clear | Probe | Observe | Quit


class SlotStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a slot serves.

    Attributes:
        ref: The version that serves.
        variant: Its variant.
        placement: The provider that really runs it.
        degraded: Why a fallback runs; empty when the first choice runs.
        requests: Answered since this generation serves.
        errors: Kind -> requests that failed since this generation serves.
    """

    ref: Ref
    variant: str
    placement: str
    degraded: str = ""
    requests: int = 0
    errors: dict[str, int] = {}


class Window(msgspec.Struct, frozen=True, omit_defaults=True):
    """Counts of one version in one slot since the last ``observe`` (see Telemetry)."""

    slot: str
    ref: Ref
    seconds: float
    requests: int
    errors: dict[str, int] = {}
    latency: tuple[int, ...] = ()
    fallbacks: int = 0
    labelled: int = 0
    correct: int = 0
    drift: bytes = b""


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer.

    Attributes:
        ok: Whether it was done.
        error: Why not, in one line.
        kind: Family of the error: ``golden`` (ran, wrong answers), ``load`` (does not load
            here), ``state`` (asked for out of order).
        slots: Slot -> status, after what was asked.
        windows: For ``observe``.
        events: For ``observe``: things that people should know, as (kind, severity, message).
    """

    ok: bool
    error: str = ""
    kind: str = ""
    slots: dict[str, SlotStatus] = {}
    windows: tuple[Window, ...] = ()
    events: tuple[tuple[str, str, str], ...] = ()
