"""The chain of variants of one bundle: the first that works serves, and the way back is watched.

A run that fails on the device is tried once more on the next variant. When that one answers, the
first is at fault: it is put aside, a re-probe with growing pauses loads it anew and checks its
golden samples, and only then it serves again. When the next one fails too, the request is at
fault, and nothing changes. Whatever runs instead of the first choice is visible: in the status,
in the metrics, and as an event.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from edgeml.errors import BundleError, DeviceError, EdgemlError
from edgeml.manifest import Variant
from edgeml.tensors import Array

logger = logging.getLogger(__name__)

#: A first choice that fails again so soon after its return has to wait twice as long.
_RELAPSE_SECONDS = 60.0
#: Pauses before a re-probe, in seconds: the first, and the longest.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 300.0


class Opened(Protocol):
    """A variant that is loaded, with the model's public inputs and outputs."""

    placement: str

    def run(self, feed: dict[str, Array]) -> dict[str, Array]:
        """Run it once."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


T = TypeVar("T", bound=Opened)
Note = Callable[[str, str, str], None]


class Chain(Generic[T]):
    """Variants in order of preference; one of them serves.

    Safe for several threads: one run or check at a time.

    Args:
        variants: In order of preference; not empty.
        opener: Loads a variant; raises EdgemlError.
        check: Runs the golden samples of a loaded variant; raises EdgemlError.
        note: Told of what people should know: kind, severity, message.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        opener: Callable[[Variant], T],
        check: Callable[[T, Variant], None],
        note: Note,
    ) -> None:
        """Load the first variant that loads and passes its golden samples.

        Raises:
            EdgemlError: None does; the error of the first.
        """
        self._variants = tuple(variants)
        self._open = opener
        self._check = check
        self._note = note
        self._lock = threading.Lock()
        self._pause = FIRST_PAUSE
        self._restored = float("-inf")
        self._closed = False
        self._reasons: list[str] = []
        self._standby: tuple[int, T] | None = None
        self._index, self._opened = self._first()

    @property
    def variant(self) -> Variant:
        """The variant that serves."""
        return self._variants[self._index]

    @property
    def placement(self) -> str:
        """The provider that really runs it."""
        return self._opened.placement

    @property
    def opened(self) -> T:
        """What is loaded and serves."""
        return self._opened

    @property
    def degraded(self) -> str:
        """Why a fallback runs; empty when the first choice runs."""
        return "; ".join(self._reasons) if self._index else ""

    @property
    def on_fallback(self) -> bool:
        """Whether another than the first choice serves."""
        return self._index > 0

    @property
    def pause(self) -> float:
        """Seconds to wait before the next re-probe."""
        return self._pause

    def run(self, feed: dict[str, Array]) -> dict[str, Array]:
        """Run on what serves; on a failure of the device once more on the next.

        Raises:
            RequestError: The feed does not fit.
            DeviceError: The next one failed too, or there is none.
        """
        with self._lock:
            try:
                return self._opened.run(feed)
            except DeviceError as error:
                failure = error
            found = self._next()
            if found is None:
                raise failure
            index, opened = found
            outputs = opened.run(feed)
            self._fall(index, opened, failure)
            return outputs

    def golden(self) -> None:
        """Run the golden samples of what serves.

        Raises:
            EdgemlError: They do not come out as recorded.
        """
        with self._lock:
            self._check(self._opened, self.variant)

    def restore(self) -> bool:
        """Try the first choice again: load it, check it, and let it serve.

        Returns:
            Whether the first choice serves now.
        """
        if self._index == 0 or self._closed:
            return self._index == 0
        first = self._variants[0]
        try:
            opened = self._open(first)
        except EdgemlError as error:
            return self._still_out(first, error)
        try:
            self._check(opened, first)
        except EdgemlError as error:
            opened.close()
            return self._still_out(first, error)
        with self._lock:
            if self._closed:
                opened.close()
                return False
            if self._standby is not None:
                self._standby[1].close()
            self._standby = (self._index, self._opened)
            self._index, self._opened = 0, opened
            self._reasons.clear()
            self._restored = time.monotonic()
        self._note("fallback_over", "info", f"{first.id} serves again")
        return True

    def close(self) -> None:
        """Give back what is loaded. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._opened.close()
            if self._standby is not None:
                self._standby[1].close()

    def _first(self) -> tuple[int, T]:
        failures: list[EdgemlError] = []
        for index, variant in enumerate(self._variants):
            try:
                return index, self._try(variant)
            except EdgemlError as error:
                failures.append(error)
                self._reasons.append(f"{variant.id}: {error.message}")
                logger.warning("variant %s cannot serve: %s", variant.id, error.message)
        if not failures:
            raise BundleError("the bundle has no variant for this device")
        raise failures[0]

    def _try(self, variant: Variant) -> T:
        opened = self._open(variant)
        try:
            self._check(opened, variant)
        except EdgemlError:
            opened.close()
            raise
        if variant is not self._variants[0]:
            self._note("fallback", "warning", f"{variant.id} serves: {'; '.join(self._reasons)}")
        return opened

    def _next(self) -> tuple[int, T] | None:
        """Return the next variant that loads; what was loaded once stays at hand."""
        if self._standby is not None and self._standby[0] > self._index:
            return self._standby
        for index in range(self._index + 1, len(self._variants)):
            try:
                opened = self._open(self._variants[index])
            except EdgemlError as error:
                logger.warning("fallback %s: %s", self._variants[index].id, error.message)
                continue
            self._standby = (index, opened)
            return self._standby
        return None

    def _fall(self, index: int, opened: T, failure: DeviceError) -> None:
        """Let the fallback serve."""
        relapse = time.monotonic() - self._restored < _RELAPSE_SECONDS
        self._pause = min(self._pause * 2, LONGEST_PAUSE) if relapse else FIRST_PAUSE
        self._reasons.append(f"{self.variant.id}: {failure.message}")
        self._opened.close()
        self._index, self._opened, self._standby = index, opened, None
        self._note("fallback", "warning", f"{self.variant.id} serves: {self.degraded}")

    def _still_out(self, variant: Variant, error: EdgemlError) -> bool:
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        logger.warning("%s is still out (%s); again in %g s", variant.id, error, self._pause)
        return False
