"""Supervisor: everything on a device but inference.

Threads: the main one (watches the data plane, collects counts, reports), one for orders, one for
the updater, one for measuring, and the link's own. It never loads a runtime: a library that
crashes takes the data plane with it, not the way to the fleet. Start-up and rollback need only what
is on the disk.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgeml import __version__
from edgeml.errors import DeviceError, NotTrustedError, UsageError
from edgeml.hardware import DeviceFacts
from edgeml.link.base import Link, LinkMessage, Will
from edgeml.messages import topics
from edgeml.messages.payloads import Birth, Reported, Rpc, State, decode, encode
from edgeml.trust.client import TrustClient
from edgeml_agent import durable, report
from edgeml_agent.clock import Clock
from edgeml_agent.config import AgentConfig
from edgeml_agent.dataplane import DataPlane, PlaneCommand
from edgeml_agent.fetch import BlockFetcher
from edgeml_agent.keeper import Keeper
from edgeml_agent.measurer import Measurer, Surroundings
from edgeml_agent.orders import Orders, Trust
from edgeml_agent.phases import Phases
from edgeml_agent.slots import BundleStore
from edgeml_agent.spool import Spool
from edgeml_agent.state import FolderLock, StateStore
from edgeml_agent.telemetry import Collector, Outbox
from edgeml_agent.transitions import Happening, Phase, Slot
from edgeml_agent.updater import Act, Updater

logger = logging.getLogger(__name__)

_TICK = 0.2
_REPORT_EVERY = 1.0
_MAX_CALLS = 256
#: Happenings that people should know of: happening -> (kind, severity).
_TOLD = {
    Happening.FAULTY: ("rollback", "critical"),
    Happening.EXHAUSTED: ("rollback", "critical"),
    Happening.FAILED: ("rollback", "warning"),
    Happening.REFUSED: ("refused", "warning"),
    Happening.WITHDRAWN: ("withdrawn", "warning"),
    Happening.CRASHING: ("rollback", "critical"),
}

#: Makes the link: (client id, will) -> Link.
MakeLink = Callable[[str, Will], Link]


class Machine(NamedTuple):
    """What the supervisor is told of the machine that it runs on.

    Attributes:
        facts: What the machine is.
        profile: Name of the hardware profile that was chosen or configured.
        command: Command line of the data plane.
        environment: Variables that the data plane gets beside ours.
    """

    facts: DeviceFacts
    profile: str
    command: PlaneCommand
    environment: Mapping[str, str] = {}


class Supervisor:
    """One device.

    Args:
        config: agent.toml.
        machine: The machine, and how to start the data plane on it.
        make_link: Makes the link with our id and will.

    Raises:
        DeviceError: Another agent uses the state folder, or it cannot be used.
        NotTrustedError: The root of trust is not well-formed.
    """

    def __init__(self, config: AgentConfig, machine: Machine, make_link: MakeLink) -> None:
        """Take the state folder and put the parts together; ``run`` starts them."""
        self.config = config
        self._machine = machine
        self._folder = durable.private_folder(Path(config.state))
        self._folder_lock = FolderLock(self._folder)
        self.store = StateStore(self._folder)
        self._was_clean = self.store.state.clean
        self._storage = ""
        boots = self._count_boot()
        #: Sorts by start, and differs also when the state was lost.
        self.boot = f"{boots:08d}-{secrets.token_hex(3)}"
        self._clock = Clock()
        self._sequence = 0
        self._last: Reported | None = None
        self._told: Reported | None = None
        self._shown = False
        self._next_report = 0.0
        self._stop = threading.Event()
        self._announce = threading.Event()
        self._calls: queue.Queue[Rpc] = queue.Queue(_MAX_CALLS)
        self._assemble(make_link)

    def _count_boot(self) -> int:
        """Return the number of this start; a full or read-only disk must not keep us from serving.

        Without it a crash in this boot is not counted against an update: nothing more.
        """
        boots = self.store.state.boots + 1
        try:
            self.store.update(lambda s: msgspec.structs.replace(s, boots=boots, clean=False))
        except DeviceError as error:
            logger.error("%s (%s): serving all the same", error.message, error.hint)
            self._storage = error.message
        return boots

    def _assemble(self, make_link: MakeLink) -> None:
        config, folder = self.config, self._folder
        will = Will(self._up("state"), encode(State(config.device, self.boot, online=False)))
        self._link = make_link(config.device, will)
        spool = Spool(folder / "spool", self.boot)
        self._outbox = Outbox(
            config.fleet, config.device, self.boot, spool, self._link, self._clock
        )
        bundles = BundleStore(folder, self._machine.profile)
        fetcher = BlockFetcher(self._link, config.fleet, config.device)
        self._fetcher = fetcher
        trust = Trust(
            TrustClient(
                folder / "trust",
                _read_root(Path(config.root)),
                fetcher.metadata,
                now=self._clock.now,
            )
        )
        self._plane = DataPlane(
            self._machine.command, folder, environment=self._machine.environment
        )
        self.keeper = Keeper(
            self._plane,
            self.store,
            bundles,
            self._machine.profile,
            self._outbox.event,
            crashing=lambda reason: self.updater.crashing(reason),
            broken=lambda name: self.updater.repair(name),
        )
        self._phases = Phases(
            self.store, bundles, fetcher, trust, self.keeper, config.slots, self._outbox.event
        )
        self.updater = Updater(self.store, self.acts(self._phases), self._transition)
        self.orders = Orders(
            config.fleet,
            config.device,
            self.store,
            trust,
            self._clock,
            self.updater.wake,
            self._outbox.event,
        )
        self.measurer = Measurer(
            folder / "measure",
            Surroundings(
                config.fleet, config.device, self._machine.facts, self._unquiet, self._requests
            ),
            fetcher,
            trust,
            self._clock,
            lambda answer: self._link.publish(self._up("rpc"), encode(answer)),
            self._outbox.event,
        )
        self._collector = Collector(self.keeper, self._outbox, config.telemetry.window_seconds)

    def _unquiet(self) -> str:
        """Return why this device has better to do than to measure; empty when it has not."""
        slots = self.store.state.slots
        for name, slot in slots.items():
            if slot.phase is not Phase.IDLE:
                return f"slot {name} is in {slot.phase}"
        if not self.keeper.ready:
            return "the data plane is not ready"
        for name, failure in list(self.keeper.failures.items()):  # the main thread changes it
            return f"slot {name} does not serve what it should: {failure}"
        return ""

    def _requests(self) -> int:
        return sum(status.requests for status in self.keeper.statuses.values())

    def acts(self, phases: Phases) -> Mapping[Phase, Act]:
        """Return phase -> act; a place to put something around them."""
        return phases.acts()

    def _up(self, kind: str) -> str:
        return topics.up(self.config.fleet, self.config.device, kind)

    def stop(self) -> None:
        """Let ``run`` return soon; may be called from a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Work until ``stop``. Belongs to the main thread: the data plane dies with it."""
        if not self._clock.trusted():
            self._outbox.event(
                "clock_untrusted", "warning", f"the clock says {time.time():.0f}, before release"
            )
        if self._storage:
            self._outbox.event("storage", "critical", self._storage)
        self._resume()
        self._link.subscribe(self._down("desired"), lambda m: self.orders.offer(m.payload))
        self._link.subscribe(self._down("rpc"), self._on_rpc)
        self._link.on_connection(self._on_connection)
        threads = [
            threading.Thread(target=self.orders.run, name="orders", daemon=True),
            threading.Thread(target=self.updater.run, name="updater", daemon=True),
            threading.Thread(target=self.measurer.run, name="measurer", daemon=True),
        ]
        for thread in threads:
            thread.start()
        self._link.open()
        try:
            while not self._stop.is_set():
                self._tick()
                if not all(thread.is_alive() for thread in threads):
                    raise DeviceError("a thread of the agent died", "the log says why")
                self._stop.wait(_TICK)
        finally:
            self._shut_down(threads)

    def _resume(self) -> None:
        try:
            self.updater.resume(clean=self._was_clean)
        except DeviceError as error:  # what was in flight is done again from its start all the same
            logger.error("cannot note that an update goes on: %s", error)

    def _down(self, kind: str) -> str:
        return topics.down(self.config.fleet, self.config.device, kind)

    def _shut_down(self, threads: list[threading.Thread]) -> None:
        logger.info("stopping")
        self.updater.stop()
        self.orders.stop()
        self.measurer.stop()
        self._fetcher.stop()
        self._collector.collect()
        self._outbox.flush()
        self.keeper.stop()
        for thread in threads:
            thread.join(10.0)
        self._link.publish(
            self._up("state"),
            encode(State(self.config.device, self.boot, online=False)),
            retain=True,
        )
        self._link.close()
        self._write_status(running=False)
        try:
            self.store.update(lambda s: msgspec.structs.replace(s, clean=True))
        except DeviceError as error:
            logger.warning("the stop is not noted: %s", error)
        self._folder_lock.close()

    def _tick(self) -> None:
        self.keeper.tick()
        self._collector.tick()
        if self._announce.is_set():
            self._announce.clear()
            self._say_who()
            self.orders.reconnected()
            self.updater.wake(now=True)
        while not self._calls.empty():
            self._answer(self._calls.get())
        self._report()
        self._outbox.flush()

    def _on_connection(self, connected: bool) -> None:
        logger.info("%s the broker", "connected to" if connected else "lost")
        if connected:
            self._outbox.reconnected()
            self._last = None
            self._announce.set()

    def _say_who(self) -> None:
        """Send what the broker should keep of us."""
        config = self.config
        birth = Birth(
            device=config.device,
            boot=self.boot,
            agent_version=__version__,
            facts=self._machine.facts,
            profile=self._machine.profile,
            tags=config.tags,
        )
        self._link.publish(self._up("birth"), encode(birth), retain=True)
        state = State(config.device, self.boot, online=True)
        self._link.publish(self._up("state"), encode(state), retain=True)
        self._last = None
        self._next_report = 0.0

    def _report(self) -> None:
        """Send what we hold when it has changed; phases at once, progress once a second."""
        current = report.report(
            self.store.state,
            self.keeper.statuses,
            self.keeper.failures,
            self._phases.progress,
            device=self.config.device,
            boot=self.boot,
            clock="trusted" if self._clock.trusted() else "untrusted",
            ready=self.keeper.ready,
            crashes=self.keeper.crashes,
        )
        now = time.monotonic()
        if self._link.connected != self._shown:
            self._write_status(running=True)
        if current == self._last or (_same_phases(current, self._last) and now < self._next_report):
            return
        self._next_report = now + _REPORT_EVERY
        self._sequence += 1
        numbered = msgspec.structs.replace(current, sequence=self._sequence)
        self._told = numbered
        self._write_status(running=True)
        if self._link.connected and self._link.publish(
            self._up("reported"), encode(numbered), retain=True
        ):
            self._last = current

    def _write_status(self, *, running: bool) -> None:
        """Leave what ``edgeml-agent status`` shows."""
        self._shown = self._link.connected
        status: dict[str, Any] = {
            "pid": os.getpid(),
            "running": running,
            "connected": self._shown,
            "fleet": self.config.fleet,
            "profile": self._machine.profile,
            "http": self.config.serve.http,
            "reported": self._told,
        }
        try:
            durable.write(self._folder / "status.json", msgspec.json.encode(status), durable=False)
        except OSError as error:
            logger.warning("cannot write status.json: %s", error)

    def _transition(
        self, name: str, before: Phase, happening: Happening, slot: Slot, detail: str
    ) -> None:
        """Tell the fleet of what people should know."""
        ref = slot.candidate or (slot.target.ref if slot.target is not None else None)
        what = f"{ref.model} {ref.version}" if ref is not None else "nothing"
        if happening in _TOLD:
            kind, severity = _TOLD[happening]
            self._outbox.event(
                kind,
                severity,
                f"slot {name}: {what} in {before}: {detail}",
                {"slot": name, "phase": before.value, "digest": ref.digest if ref else ""},
            )
        if slot.phase is Phase.COMMIT and before is not Phase.COMMIT:
            self._outbox.event("commit", "info", f"slot {name}: {what}", {"slot": name})

    def _on_rpc(self, message: LinkMessage) -> None:
        try:
            self._calls.put_nowait(decode(message.payload, Rpc))
        except NotTrustedError as error:
            logger.warning("dropped a request: %s", error)
        except queue.Full:
            logger.warning("dropped a request: %d wait already", _MAX_CALLS)

    def _answer(self, call: Rpc) -> None:
        """Do what the fleet asks."""
        if call.method == "ack":
            self._outbox.acknowledged(call.params)
            return
        if call.method in ("measure", "measure_cancel"):
            self.measurer.call(call)
            return
        result: Any = None
        error = ""
        if call.method == "ping":
            result = {"boot": self.boot, "uptime": self._outbox.uptime()}
        elif call.method == "rebirth":
            self._say_who()
            self._outbox.reconnected()
        else:
            error = f"unknown method '{call.method}'"
        reply = Rpc(id=call.id, result=result, error=error)
        self._link.publish(self._up("rpc"), encode(reply))


def _same_phases(a: Reported, b: Reported | None) -> bool:
    """Tell whether two reports differ in progress and numbers alone."""
    if b is None or a.health != b.health or a.generation != b.generation:
        return False
    return {n: (s.phase, s.active) for n, s in a.slots.items()} == {
        n: (s.phase, s.active) for n, s in b.slots.items()
    }


def _read_root(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the root of trust {path}: {error.strerror}", "enrol this device again"
        ) from error
