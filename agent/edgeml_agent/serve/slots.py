"""Slots: per model name one generation that serves, at most one staged and one old beside it.

A generation is loaded on a thread beside live traffic; a switch is one assignment on the loop.
Whatever was queued on the old generation is answered by it: it is closed only when it is idle.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from pathlib import Path

from edgeml.errors import EdgemlError
from edgeml_agent.control import Reply, SlotStatus, Stage
from edgeml_agent.serve.batcher import BatchStats
from edgeml_agent.serve.feedback import Memory
from edgeml_agent.serve.files import purge
from edgeml_agent.serve.generation import Generation, load
from edgeml_agent.serve.refused import Refused
from edgeml_agent.serve.settings import Settings
from edgeml_agent.serve.window import Counts, Totals, is_empty

logger = logging.getLogger(__name__)

#: Versions that were dropped and may still get labels for their predictions.
_RETIRED = 16
_EVENTS = 256


class Slot:
    """One model name.

    Attributes:
        name: The name under which the model is served.
        serving: What answers.
        staged: Loaded and checked, without traffic.
        old: What answered before; stays loaded until it is settled.
        memory: Predictions that may still get a label.
    """

    def __init__(self, name: str, remember: int) -> None:
        """Start empty."""
        self.name = name
        self.serving: Generation | None = None
        self.staged: Generation | None = None
        self.old: Generation | None = None
        self.memory = Memory(remember)


class StateError(EdgemlError):
    """Something was asked for out of order."""


class Slots:
    """All slots of this process. Lives on the loop.

    Args:
        settings: Of the data plane.
        cache: Folder of this process, for unpacked and compiled models.
        loop: The loop.
    """

    def __init__(self, settings: Settings, cache: Path, loop: asyncio.AbstractEventLoop) -> None:
        """Start without models."""
        self._cache = cache
        self._settings = settings
        self._loop = loop
        self._slots: dict[str, Slot] = {}
        self._retired: deque[tuple[Counts, BatchStats]] = deque()
        self._folded: defaultdict[tuple[str, str], Totals] = defaultdict(Totals)
        self._events: deque[tuple[str, str, str]] = deque(maxlen=_EVENTS)
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, model: str, version: str = "") -> tuple[Slot, Generation]:
        """Return the slot and the generation that answers for a model.

        Raises:
            Refused: There is no such model, or another version serves.
        """
        slot = self._slots.get(model)
        if slot is None or slot.serving is None:
            known = ", ".join(name for name, s in self._slots.items() if s.serving) or "none"
            raise Refused(
                f"model '{model[:80]}' is not served", f"served: {known}",
                status=404, kind="not_found",
            )  # fmt: skip
        if version and version != slot.serving.ref.version:
            raise Refused(
                f"version '{version[:80]}' of model '{model}' is not served",
                f"served: {slot.serving.ref.version}", status=404, kind="not_found",
            )  # fmt: skip
        return slot, slot.serving

    def serving(self) -> list[Generation]:
        """Return every generation that serves."""
        return [slot.serving for slot in self._slots.values() if slot.serving is not None]

    async def stage(self, request: Stage) -> None:
        """Load a bundle beside what serves, warm it up and check its golden samples.

        Raises:
            EdgemlError: It does not load, or gives wrong answers.
        """
        generation = await load(request, self._settings, self._cache, self._loop, self._note)
        slot = self._slots.get(request.slot)
        if slot is None:
            slot = self._slots[request.slot] = Slot(request.slot, self._settings.remember)
        if slot.staged is not None:
            self._drop(slot.staged)
        slot.staged = generation

    def switch(self, name: str) -> None:
        """Send traffic to the staged generation.

        Raises:
            StateError: Nothing is staged.
        """
        slot = self._slot(name)
        if slot.staged is None:
            raise StateError(f"nothing is staged in slot '{name}'", "stage a version first")
        if slot.old is not None:
            self._drop(slot.old)
        slot.old, slot.serving, slot.staged = slot.serving, slot.staged, None

    def settle(self, name: str) -> None:
        """Drop the old generation; asking again changes nothing.

        Raises:
            StateError: Nothing serves.
        """
        slot = self._slot(name)
        if slot.serving is None:
            raise StateError(f"nothing serves in slot '{name}'", "stage and switch first")
        if slot.old is not None:
            self._drop(slot.old)
            slot.old = None
        purge(self._cache, {g.ref.digest for g in self._generations()})

    def revert(self, name: str) -> None:
        """Drop what is staged; when nothing was, go back to the old generation.

        Raises:
            StateError: There is neither.
        """
        slot = self._slot(name)
        if slot.staged is not None:
            self._drop(slot.staged)
            slot.staged = None
        elif slot.old is not None:
            bad, slot.serving, slot.old = slot.serving, slot.old, None
            if bad is not None:
                self._drop(bad)
        else:
            raise StateError(f"slot '{name}' has nothing to go back to")

    def clear(self, name: str) -> None:
        """Drop everything in a slot; asking again changes nothing."""
        slot = self._slots.get(name)
        if slot is not None:
            for generation in (slot.staged, slot.serving, slot.old):
                if generation is not None:
                    self._drop(generation)
            slot.staged = slot.serving = slot.old = None
        purge(self._cache, {g.ref.digest for g in self._generations()})

    async def probe(self, name: str) -> None:
        """Run the golden samples of what serves.

        Raises:
            EdgemlError: They do not come out as recorded, or nothing serves.
        """
        slot = self._slot(name)
        if slot.serving is None:
            raise StateError(f"nothing serves in slot '{name}'", "stage and switch first")
        await asyncio.to_thread(slot.serving.chain.golden)

    def status(self) -> dict[str, SlotStatus]:
        """Return what every slot serves."""
        return {
            slot.name: slot.serving.status()
            for slot in self._slots.values()
            if slot.serving is not None
        }

    async def observe(self) -> Reply:
        """Hand over counts and events since the last time."""
        live = [
            generation
            for slot in self._slots.values()
            for generation in (slot.serving, slot.old)
            if generation is not None
        ]
        counted = [generation.counts for generation in live] + [c for c, _ in self._retired]
        windows = [await counts.take() for counts in counted]
        events, self._events = tuple(self._events), deque(maxlen=_EVENTS)
        told = tuple(window for window in windows if not is_empty(window))
        return Reply(True, slots=self.status(), windows=told, events=events)

    def totals(self) -> dict[tuple[str, str], Totals]:
        """Return (slot, version) -> what it did since this process began; never falls."""
        found: defaultdict[tuple[str, str], Totals] = defaultdict(Totals)
        for key, folded in self._folded.items():
            found[key].merge(folded)
        live = [(g.counts, g.batcher.stats) for g in self._generations()]
        for counts, stats in [*self._retired, *live]:
            found[counts.slot, counts.ref.version].add(counts, stats)
        return found

    async def close(self) -> None:
        """Answer what is queued, and close every generation."""
        for generation in self._generations():
            self._drop(generation)
        self._slots.clear()
        await asyncio.gather(*self._tasks)

    def _generations(self) -> list[Generation]:
        return [
            generation
            for slot in self._slots.values()
            for generation in (slot.serving, slot.staged, slot.old)
            if generation is not None
        ]

    def _slot(self, name: str) -> Slot:
        if name not in self._slots:
            raise StateError(f"there is no slot '{name}'", "stage a version first")
        return self._slots[name]

    def _note(self, kind: str, severity: str, message: str) -> None:
        """Keep an event; called from any thread."""
        self._events.append((kind, severity, message))

    def _drop(self, generation: Generation) -> None:
        """Close a generation when it is idle; keep its counts for windows, then for totals."""
        task = self._loop.create_task(generation.close())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._retired.append((generation.counts, generation.batcher.stats))
        while len(self._retired) > _RETIRED:
            counts, stats = self._retired.popleft()
            self._folded[counts.slot, counts.ref.version].add(counts, stats)
