"""Keeper: keeps a data plane running and serving what is last verified.

``tick`` belongs to the agent's main thread: it starts the data plane, starts it again after a
crash with a growing pause, and loads each slot's ``last_verified`` into it. The updater asks
through the same object and finds either a data plane that is ready, or none.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable

from edgeml.errors import DeviceError
from edgeml.messages.payloads import Ref
from edgeml_agent.control import Clear, Reply, Request, Revert, Settle, SlotStatus, Stage, Switch
from edgeml_agent.dataplane import DataPlane, PlaneGoneError
from edgeml_agent.slots import BundleStore
from edgeml_agent.state import StateStore
from edgeml_agent.transitions import Phase, Slot

logger = logging.getLogger(__name__)

_BACKOFF = (0.1, 30.0)
#: A data plane that ran so long was healthy: the next pause is short again.
_HEALTHY = 60.0
#: After so many crashes in a row the version that was committed last is suspected.
_LOOP = 5
#: Somebody else ended it: a person, or the kernel when memory was short.
_ENDED = (-signal.SIGKILL, -signal.SIGTERM)
#: Seconds between two looks at the bytes of what does not load.
_REPAIR_EVERY = 30.0
#: Told of what people should know: (kind, severity, message).
Notify = Callable[[str, str, str], None]


class Keeper:
    """Watches over one data plane.

    Args:
        plane: The data plane.
        store: What each slot should serve.
        bundles: Where the bundles lie.
        profile: Profile of this device.
        notify: Told of crashes, and of what cannot be loaded.
        crashing: Told when it crashes on and on while nothing is being brought in.
        broken: Told of a slot whose last verified version does not load.
    """

    def __init__(
        self,
        plane: DataPlane,
        store: StateStore,
        bundles: BundleStore,
        profile: str,
        notify: Notify,
        *,
        crashing: Callable[[str], None],
        broken: Callable[[str], None],
    ) -> None:
        """Keep the parts; ``tick`` starts the data plane."""
        self._plane = plane
        self._store = store
        self._bundles = bundles
        self._profile = profile
        self._notify = notify
        self._crashing = crashing
        self._broken = broken
        self._ready = threading.Event()
        self._next_start = 0.0
        self._started = 0.0
        self._crashes = 0
        self._loop = 0
        self._opened = False
        self._next_load = 0.0
        self._next_repair = 0.0
        self.statuses: dict[str, SlotStatus] = {}
        self.failures: dict[str, str] = {}

    @property
    def ready(self) -> bool:
        """Whether the data plane runs and was loaded."""
        return self._ready.is_set() and self._plane.usable

    @property
    def crashes(self) -> int:
        """Crashes in a row, without a healthy time between."""
        return self._crashes

    @property
    def busy(self) -> bool:
        """Whether the data plane is being asked something now, such as to load a model."""
        return self._plane.busy

    @property
    def pid(self) -> int:
        """Process id of the data plane."""
        return self._plane.pid

    def tick(self) -> None:
        """Start, restart and load, if it is time for it. Belongs to the main thread."""
        now = time.monotonic()
        if self._started and not self._plane.usable:
            self._crashed(now)
        if not self._started and now >= self._next_start:
            self._start()
        if self.ready and now - self._started > _HEALTHY:
            self._crashes = self._loop = 0
        if self.ready and now >= self._next_load and not self.busy:
            self._reconcile(now)

    def _crashed(self, now: float) -> None:
        self._crashes += 1
        pause = min(_BACKOFF[1], _BACKOFF[0] * 2.0 ** (self._crashes - 1))
        code = self._plane.exit_code
        self._ready.clear()
        self._plane.kill()
        self.statuses = {}
        self._started = 0.0
        self._next_start = now + pause
        message = f"the data plane ended with {code}; it is started again in {pause:.1f} s"
        logger.error("%s", message)
        self._notify("crash", "critical" if self._crashes > 1 else "warning", message)
        # Only what ended under a model that serves speaks against it.
        idle = all(slot.phase is Phase.IDLE for slot in self._store.state.slots.values())
        if self._opened and code not in _ENDED:
            self._loop = self._loop + 1 if idle else 0
        if self._loop >= _LOOP:
            self._loop = 0
            self._crashing(
                f"the data plane crashed {_LOOP} times in a row, the last time with {code}"
            )

    def _start(self) -> None:
        self._started = time.monotonic()
        self._opened = False
        try:
            self._plane.start()
            self._opened = True
            self._load()
        except (DeviceError, PlaneGoneError, OSError) as error:
            logger.error("cannot start the data plane: %s", error)
            self._plane.kill()
            return  # the next tick counts it as a crash
        logger.info("data plane %d is ready", self._plane.pid)
        self._ready.set()

    def _load(self) -> None:
        """Load what is last verified into every slot."""
        self.failures = {}
        for name in sorted(self._store.state.slots):
            self._serve_best(name, self._store.state.slot(name))

    def _serve_best(self, name: str, slot: Slot) -> None:
        """Serve what is last verified; while it does not load, at least the version before it."""
        if slot.last_verified is None or self._serve(name, slot.last_verified):
            return
        failure, now = self.failures[name], time.monotonic()
        if now >= self._next_repair:
            self._next_repair = now + _REPAIR_EVERY
            self._broken(name)
        before = slot.previous
        if before is None or name in self.statuses or self._store.state.forbids(before.digest):
            return
        if self._serve(name, before):
            self.failures[name] = f"{failure}; {before.version} serves instead"
            self._notify("load", "warning", f"slot {name}: {before.version} serves instead")

    def _serve(self, name: str, ref: Ref) -> bool:
        """Let a slot serve a version that was verified before; tell whether it does."""
        reply = self._ask(self.stage_request(name, ref))
        if reply.ok:
            reply = self._ask(Switch(name))
        if reply.ok:
            reply = self._ask(Settle(name))
        if reply.ok:
            self.failures.pop(name, None)
            return True
        if self.failures.get(name) != reply.error:
            message = f"slot {name}: {ref.model} {ref.version} does not load: {reply.error}"
            logger.error("%s", message)
            self._notify("load", "critical", message)
        self.failures[name] = reply.error
        return False

    def _reconcile(self, now: float) -> None:
        """Load again what should serve and does not (an idle slot only)."""
        self._next_load = now + 5.0
        for name, slot in self._store.state.slots.items():
            status = self.statuses.get(name)
            wrong = status is None or status.ref != slot.last_verified
            if slot.phase is Phase.IDLE and slot.last_verified is not None and wrong:
                try:
                    self._serve_best(name, slot)
                except PlaneGoneError as error:
                    logger.warning("%s", error)
                    return

    def stage_request(self, name: str, ref: Ref) -> Stage:
        """Return the request that loads a version beside what serves."""
        return Stage(name, ref, str(self._bundles.path(ref.digest)), self._profile)

    def _ask(self, request: Request, timeout: float = 120.0) -> Reply:
        reply = self._plane.ask(request, timeout)
        if reply.ok or reply.slots:
            self.statuses = dict(reply.slots)
        return reply

    def ask(self, request: Request, *, wait: float = 0.0, timeout: float = 120.0) -> Reply:
        """Ask a data plane that is ready.

        Args:
            request: What to ask.
            wait: Seconds to wait for it to become ready.
            timeout: Seconds to wait for the answer.

        Raises:
            PlaneGoneError: It is not ready, or went away.
        """
        if not self.wait_ready(wait):
            raise PlaneGoneError("the data plane is not ready")
        return self._ask(request, timeout)

    def wait_ready(self, seconds: float) -> bool:
        """Wait for a data plane that is ready; tell whether there is one."""
        until = time.monotonic() + seconds
        while not self.ready:
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        return True

    def settle(self, name: str, ref: Ref) -> None:
        """Let ``ref``, which is last verified now, be the only version of a slot.

        Does nothing without a data plane: when one starts it loads what is last verified.
        """
        try:
            reply = self.ask(Settle(name))
            if name not in reply.slots or reply.slots[name].ref != ref:
                self._serve(name, ref)
        except PlaneGoneError as error:
            logger.info("settle: %s", error)

    def revert(self, name: str, ref: Ref | None) -> None:
        """Drop what is staged or on trial, and serve ``ref``, or nothing; see ``settle``."""
        try:
            if ref is None:
                self.ask(Clear(name))
                self.failures.pop(name, None)
                return
            reply = self.ask(Revert(name))
            if name not in reply.slots or reply.slots[name].ref != ref:
                self._serve(name, ref)
        except PlaneGoneError as error:
            logger.info("revert: %s", error)

    def stop(self) -> None:
        """Stop the data plane gracefully."""
        self._ready.clear()
        self._plane.stop()
