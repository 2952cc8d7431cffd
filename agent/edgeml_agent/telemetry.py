"""Telemetry: windows of counts and events, from the data plane to the fleet.

Every ``window_seconds`` the data plane hands its counts over; each becomes a message with a
sequence number of its own, goes into the spool, and is sent until the fleet has applied it.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from edgeml.link.base import Link
from edgeml.messages import topics
from edgeml.messages.payloads import Event, Telemetry, encode
from edgeml_agent.clock import Clock
from edgeml_agent.control import Observe, Window
from edgeml_agent.dataplane import PlaneGoneError
from edgeml_agent.keeper import Keeper
from edgeml_agent.spool import Spool

logger = logging.getLogger(__name__)

_RESEND = 30.0
_AT_ONCE = 50


class Outbox:
    """Numbers, keeps and sends what adds up. Safe from any thread.

    Args:
        fleet: Our fleet.
        device: Our id.
        boot: Id of this start of the agent.
        spool: Where messages wait.
        link: The way to the fleet.
        clock: Whether wall times can be told.
    """

    def __init__(
        self, fleet: str, device: str, boot: str, spool: Spool, link: Link, clock: Clock
    ) -> None:
        """Keep the parts."""
        self._topics = {kind: topics.up(fleet, device, kind) for kind in ("telemetry", "event")}
        self._device = device
        self._boot = boot
        self._spool = spool
        self._link = link
        self._clock = clock
        self._start = time.monotonic()
        #: When a message was sent last; what is not in here was never sent over this connection.
        self._sent: dict[tuple[str, int], float] = {}

    def window(self, window: Window, gauges: dict[str, float]) -> None:
        """Take a window of counts."""
        now = self._clock.now()
        sequence = self._spool.next_sequence()
        message = Telemetry(
            device=self._device,
            boot=self._boot,
            sequence=sequence,
            slot=window.slot,
            ref=window.ref,
            uptime=max(self.uptime() - window.seconds, 0.0),
            wall=now - window.seconds if now is not None else 0.0,
            seconds=window.seconds,
            requests=window.requests,
            errors=window.errors,
            latency=window.latency,
            fallbacks=window.fallbacks,
            labelled=window.labelled,
            correct=window.correct,
            drift=window.drift,
            gauges=gauges,
        )
        self._spool.put("telemetry", sequence, encode(message))

    def event(
        self, kind: str, severity: str, message: str, data: dict[str, Any] | None = None
    ) -> None:
        """Take an event."""
        sequence = self._spool.next_sequence()
        event = Event(
            device=self._device,
            boot=self._boot,
            sequence=sequence,
            kind=kind,
            severity=severity,
            message=message,
            uptime=self.uptime(),
            wall=self._clock.now() or 0.0,
            data=data or {},
        )
        self._spool.put("event", sequence, encode(event))

    def uptime(self) -> float:
        """Return seconds since this start of the agent (monotonic)."""
        return time.monotonic() - self._start

    def acknowledged(self, params: dict[str, Any]) -> None:
        """Forget what the fleet has applied; see ``Rpc`` for the parameters."""
        boot, sequences = params.get("boot"), params.get("sequences")
        if isinstance(boot, str) and isinstance(sequences, list):
            numbers = [n for n in sequences if isinstance(n, int)]
            self._spool.applied(boot, numbers)
            for number in numbers:
                self._sent.pop((boot, number), None)

    def reconnected(self) -> None:
        """Send everything again soon: the broker may have forgotten it."""
        self._sent.clear()

    def flush(self) -> None:
        """Send what was not sent yet, and what was not acknowledged for long; a bounded number."""
        if not self._link.connected:
            return
        now = time.monotonic()
        due = [k for k in self._spool.pending() if now - self._sent.get(k, -_RESEND) >= _RESEND]
        for key in due[:_AT_ONCE]:
            found = self._spool.read(key)
            if found is None:
                continue
            kind, payload = found
            if not self._link.publish(self._topics[kind], payload, qos=1):
                return
            self._sent[key] = now


class Collector:
    """Asks the data plane for its counts; belongs to the main thread.

    Args:
        keeper: Asks the data plane.
        outbox: Takes what it hands over.
        seconds: Length of a window.
    """

    def __init__(self, keeper: Keeper, outbox: Outbox, seconds: float) -> None:
        """Begin the first window."""
        self._keeper = keeper
        self._outbox = outbox
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    def tick(self) -> None:
        """Collect when a window is over; later while the data plane is busy loading a model."""
        if time.monotonic() >= self._next and not self._keeper.busy:
            self._next = time.monotonic() + self._seconds
            self.collect()

    def collect(self) -> None:
        """Collect now."""
        try:
            reply = self._keeper.ask(Observe(), timeout=30.0)
        except PlaneGoneError as error:
            logger.debug("no counts: %s", error)
            return
        gauges = process_gauges(self._keeper.pid)
        for window in reply.windows:
            self._outbox.window(window, gauges)
        for kind, severity, message in reply.events:
            self._outbox.event(kind, severity, message)


def process_gauges(pid: int) -> dict[str, float]:
    """Return ``rss_bytes`` of a process, and load and free memory of the machine, where known."""
    gauges: dict[str, float] = {"load_1m": os.getloadavg()[0]}
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                gauges["rss_bytes"] = float(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                gauges["memory_available_bytes"] = float(line.split()[1]) * 1024
        temperature = Path("/sys/class/thermal/thermal_zone0/temp")
        if temperature.exists():
            gauges["temperature_c"] = float(temperature.read_text()) / 1000
    except (OSError, ValueError) as error:
        logger.debug("gauges: %s", error)
    return gauges
