"""Keeper: keeps a data plane running and serving what is last verified.

``tick`` belongs to the agent's main thread: it starts the data plane, starts it again after a
crash with a growing pause, and loads each slot's ``last_verified`` into it. The updater asks
through the same object and finds either a data plane that is ready, or none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from edgeml.errors import DeviceError
from edgeml.messages.payloads import Ref
from edgeml_agent.control import Reply, Request, Revert, Settle, SlotStatus, Stage, Switch
from edgeml_agent.dataplane import DataPlane, PlaneGoneError
from edgeml_agent.slots import BundleStore
from edgeml_agent.state import StateStore
from edgeml_agent.transitions import Phase

logger = logging.getLogger(__name__)

_BACKOFF = (0.5, 30.0)
#: A data plane that ran so long was healthy: the next pause is short again.
_HEALTHY = 60.0
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
    """

    def __init__(
        self,
        plane: DataPlane,
        store: StateStore,
        bundles: BundleStore,
        profile: str,
        notify: Notify,
    ) -> None:
        """Keep the parts; ``tick`` starts the data plane."""
        self._plane = plane
        self._store = store
        self._bundles = bundles
        self._profile = profile
        self._notify = notify
        self._ready = threading.Event()
        self._next_start = 0.0
        self._started = 0.0
        self._crashes = 0
        self._next_load = 0.0
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
            self._crashes = 0
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

    def _start(self) -> None:
        self._started = time.monotonic()
        try:
            self._plane.start()
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
            ref = self._store.state.slot(name).last_verified
            if ref is not None:
                self._serve(name, ref)

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
                    self._serve(name, slot.last_verified)
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
        """Drop what is staged or on trial, and serve ``ref``; see ``settle``."""
        try:
            reply = self.ask(Revert(name))
            serves = reply.slots[name].ref if name in reply.slots else None
            if ref is not None and serves != ref:
                self._serve(name, ref)
        except PlaneGoneError as error:
            logger.info("revert: %s", error)

    def stop(self) -> None:
        """Stop the data plane gracefully."""
        self._ready.clear()
        self._plane.stop()
