"""Updater: drives the slots through the table of ``transitions``, one act at a time.

A phase's act does its work and says what happened; the engine looks the transition up, stores the
new state, and only then begins the next act. Every act can be done again from its start, so a
power cut needs nothing but the stored phase.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from edgeml.errors import DeviceError
from edgeml.messages.payloads import SlotTarget
from edgeml_agent.state import StateStore
from edgeml_agent.transitions import DeviceState, Happening, Phase, Slot, advance

logger = logging.getLogger(__name__)

_BACKOFF_MAX = 300.0
_INTERRUPTIBLE = frozenset({Phase.FETCH, Phase.VERIFY, Phase.STAGE, Phase.WARMUP, Phase.TRIAL})


class Result(NamedTuple):
    """What an act came to."""

    happening: Happening
    detail: str = ""


class Stopping(Exception):
    """The agent is stopping: the act was left where it was."""


#: An act: (name of the slot, its state, asks whether to break off) -> what happened.
Act = Callable[[str, Slot, Callable[[], bool]], Result]
#: Told of every transition: (slot, from, happening, to, detail).
Listener = Callable[[str, Phase, Happening, Slot, str], None]


class Updater:
    """Drives all slots; ``run`` belongs to one thread, the rest is safe from any.

    Args:
        store: Where the state is kept.
        acts: Phase -> its act.
        listener: Told of every transition after it was stored.
        backoff: Seconds before the first retry; doubled with each in a row.
    """

    def __init__(
        self,
        store: StateStore,
        acts: Mapping[Phase, Act],
        listener: Listener,
        *,
        backoff: float = 1.0,
    ) -> None:
        """Start with what is stored; nothing moves before ``run`` or ``step``."""
        self._store = store
        self._acts = acts
        self._listener = listener
        self._backoff = backoff
        self._retries = 0
        self._wake = threading.Condition()
        self._news = False
        self._stop = False

    def wake(self, *, now: bool = False) -> None:
        """Look again at what is desired.

        Args:
            now: Also cut a wait before a retry short (the network came back).
        """
        with self._wake:
            self._news = True
            if now:
                self._retries = 0
            self._wake.notify_all()

    def stop(self) -> None:
        """Let ``run`` return soon; what is in flight goes on at the next start."""
        with self._wake:
            self._stop = True
            self._wake.notify_all()

    def resume(self, *, clean: bool = False) -> None:
        """Take up after a start what was in flight before it.

        Args:
            clean: Whether the agent was told to stop; else a crash may be why, and it is counted.
        """
        for name, slot in self._store.state.slots.items():
            if slot.phase is not Phase.IDLE:
                why = slot.detail or "the agent was restarted"
                self._post(name, Result(Happening.RESUMED, why), counted=not clean)

    def run(self) -> None:
        """Work until ``stop``."""
        while not self._stop:
            try:
                busy = self.step()
            except DeviceError as error:  # the state cannot be written: the act is done again
                logger.error("updater: %s", error)
                self._wait(self._delay())
                continue
            except Stopping:
                return
            if not busy:
                self._wait(None)

    def step(self) -> bool:
        """Do one act; tell whether there was one to do.

        Raises:
            DeviceError: The state cannot be written.
            Stopping: The agent is stopping.
        """
        name = self.next_slot(self._store.state)
        if name is None:
            return False
        slot = self._store.state.slot(name)
        if slot.phase is Phase.IDLE:
            self._begin(name)
            return True
        self._retarget(name)
        slot = self._store.state.slot(name)
        result = self._result(name, slot)
        self._post(name, result)
        if result.happening is Happening.RETRY:
            self._wait(self._delay())
        else:
            self._retries = 0
        return True

    def _result(self, name: str, slot: Slot) -> Result:
        def broken_off() -> bool:
            return self._stop or self.superseded(self._store.state, name)

        interruptible = slot.phase in _INTERRUPTIBLE
        if interruptible and self.superseded(self._store.state, name):
            return Result(Happening.SUPERSEDED, "the fleet wants something else now")
        result = self._acts[slot.phase](name, slot, broken_off)
        if self._stop and result.happening is not Happening.DONE:
            raise Stopping
        if interruptible and self.superseded(self._store.state, name):
            return Result(Happening.SUPERSEDED, "the fleet wants something else now")
        return result

    @staticmethod
    def next_slot(state: DeviceState) -> str | None:
        """Return the slot that has something to do: first what is in flight, then what is new."""
        for name in sorted(state.slots):
            if state.slots[name].phase is not Phase.IDLE:
                return name
        if state.desired is not None:
            for name in sorted(state.desired.slots):
                if state.slot(name).attempted < state.generation:
                    return name
        return None

    @staticmethod
    def superseded(state: DeviceState, name: str) -> bool:
        """Tell whether the candidate of a slot is no longer what the fleet wants."""
        candidate = state.slot(name).candidate
        if state.desired is None or candidate is None:
            return False
        if candidate.digest in state.desired.quarantined:
            return True
        target = state.desired.slots.get(name)
        return target is not None and target.ref.digest != candidate.digest

    def _begin(self, name: str) -> None:
        """Begin the attempt that the desired state asks for."""
        state = self._store.state
        assert state.desired is not None
        target = state.desired.slots[name]
        slot = state.slot(name)
        digest = target.ref.digest
        if slot.last_verified == target.ref:
            self._post(name, Result(Happening.SATISFIED), target)
        elif digest in state.quarantined:
            reason = f"quarantined here: {state.quarantined[digest]}"
            self._post(name, Result(Happening.REFUSED, reason), target)
        elif digest in state.desired.quarantined:
            self._post(name, Result(Happening.REFUSED, "quarantined by the fleet"), target)
        else:
            self._post(name, Result(Happening.TARGET), target)

    def _retarget(self, name: str) -> None:
        """Let an attempt go on under a newer generation that wants the same bytes."""

        def change(state: DeviceState) -> DeviceState:
            slot = state.slot(name)
            if state.desired is None or slot.candidate is None or self.superseded(state, name):
                return state
            if slot.phase not in _INTERRUPTIBLE or name not in state.desired.slots:
                return state
            newer = msgspec.structs.replace(
                slot, attempted=state.generation, target=state.desired.slots[name]
            )
            return msgspec.structs.replace(state, slots={**state.slots, name: newer})

        self._store.update(change)

    def _post(
        self,
        name: str,
        result: Result,
        target: SlotTarget | None = None,
        *,
        counted: bool = True,
    ) -> None:
        before = self._store.state.slot(name).phase
        happening, detail = result
        state = self._store.update(
            lambda s: advance(s, name, happening, target=target, detail=detail, counted=counted)
        )
        slot = state.slot(name)
        logger.info(
            "slot %s: %s -%s-> %s %s", name, before, result.happening, slot.phase, result.detail
        )
        self._listener(name, before, result.happening, slot, result.detail)

    def _delay(self) -> float:
        self._retries += 1
        return min(_BACKOFF_MAX, self._backoff * 2.0 ** (self._retries - 1))

    def _wait(self, seconds: float | None) -> None:
        """Wait for news, or so long."""
        with self._wake:
            if not self._news and not self._stop:
                self._wake.wait(seconds)
            self._news = False
