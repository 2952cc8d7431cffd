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
        self._crashing = ""
        self._broken: set[str] = set()

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

    def crashing(self, reason: str) -> None:
        """Go back from the version that was committed last: what serves crashes on and on."""
        with self._wake:
            self._crashing = reason
        self.wake()

    def repair(self, name: str) -> None:
        """Look whether the bytes of what a slot should serve are damaged, and mend them."""
        with self._wake:
            self._broken.add(name)
        self.wake()

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
        if self._crashing:
            self._go_back()
        name = self.next_slot(self._store.state)
        if name is None:
            return self._mend()
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
            for name in sorted(state.slots):  # only when there was no better order for it
                verified = state.slots[name].last_verified
                if verified is not None and verified.digest in state.desired.quarantined:
                    return name
        return None

    def _go_back(self) -> None:
        """Withdraw the version that was committed last, where there is one before it."""
        reason, self._crashing = self._crashing, ""
        state = self._store.state
        found = [
            (slot.attempted, name)
            for name, slot in state.slots.items()
            if slot.phase is Phase.IDLE and slot.outcome == "committed"
            if slot.previous is not None and not state.forbids(slot.previous.digest)
        ]
        if found:
            self._post(max(found)[1], Result(Happening.CRASHING, reason))

    def _mend(self) -> bool:
        """Mend the bytes of one slot; tell whether there was one to look at."""
        if not self._broken or Phase.IDLE not in self._acts:
            return False
        with self._wake:
            name = self._broken.pop()
        slot = self._store.state.slot(name)
        result = self._acts[Phase.IDLE](name, slot, lambda: self._stop)
        logger.info("slot %s: repair: %s %s", name, result.happening, result.detail)
        return True

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
        """Begin the attempt that the desired state asks for, or withdraw what it forbids."""
        state = self._store.state
        assert state.desired is not None
        slot = state.slot(name)
        target = state.desired.slots.get(name)
        if target is None or slot.attempted >= state.generation:
            self._post(name, Result(Happening.WITHDRAWN, "quarantined by the fleet"))
            return
        digest = target.ref.digest
        if digest in state.desired.quarantined:
            self._post(name, Result(Happening.REFUSED, "quarantined by the fleet"), target)
        elif slot.last_verified == target.ref:
            self._post(name, Result(Happening.SATISFIED), target)
        elif digest in state.quarantined:
            reason = f"quarantined here: {state.quarantined[digest]}"
            self._post(name, Result(Happening.REFUSED, reason), target)
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
