"""Orders: from an envelope on the wire to a desired state that is on the disk.

An envelope is believed when a director that TUF names has signed it, for this device, with a
generation above everything seen. The generation is stored before anything acts on it. What is not
believed changes nothing, but is told to the fleet.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator

import msgspec

from edgeml.digest import sha256_bytes
from edgeml.errors import DeviceError, NotTrustedError, UnreachableError
from edgeml.messages.payloads import DesiredState
from edgeml.trust.client import TargetInfo, TrustClient
from edgeml.trust.desired import DirectorKeys, verify
from edgeml_agent.clock import Clock
from edgeml_agent.state import StateStore
from edgeml_agent.transitions import DeviceState

logger = logging.getLogger(__name__)

_QUEUE = 16
_REMEMBERED = 64
_BACKOFF = (1.0, 60.0)
Notify = Callable[[str, str, str], None]


class Trust:
    """A TrustClient that several threads may use; a disk that cannot be written is a DeviceError.

    Also what is accepted already is written when it is loaded.
    """

    def __init__(self, client: TrustClient) -> None:
        """Take the client; nobody else uses it."""
        self._client = client
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """See ``TrustClient.refresh``."""
        with self._using():
            self._client.refresh()

    def target(self, path: str) -> TargetInfo:
        """See ``TrustClient.target``."""
        with self._using():
            return self._client.target(path)

    def director_keys(self) -> DirectorKeys:
        """See ``TrustClient.director_keys``."""
        with self._using():
            return self._client.director_keys()

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except OSError as error:
                raise DeviceError(f"cannot store trust metadata: {error}") from error


class Orders:
    """Takes envelopes in; ``run`` belongs to one thread, the rest is safe from any.

    Args:
        fleet: Our fleet.
        device: Our id.
        store: Where generation and desired state are kept.
        trust: Whose signatures count.
        clock: Whether ``not_after`` can be judged.
        accepted: Called after a desired state was stored.
        notify: Told of what was refused.
    """

    def __init__(
        self,
        fleet: str,
        device: str,
        store: StateStore,
        trust: Trust,
        clock: Clock,
        accepted: Callable[[], None],
        notify: Notify,
    ) -> None:
        """Keep the parts."""
        self._fleet = fleet
        self._device = device
        self._store = store
        self._trust = trust
        self._clock = clock
        self._accepted = accepted
        self._notify = notify
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUE)
        self._refused: dict[str, None] = {}
        self._stop = threading.Event()

    def offer(self, envelope: bytes) -> None:
        """Take an envelope in; returns at once. The oldest of too many is dropped."""
        while True:
            try:
                return self._queue.put_nowait(envelope)
            except queue.Full:
                self._queue.get_nowait()

    def reconnected(self) -> None:
        """Give what was refused another chance: the fleet may have published new keys."""
        self._refused = {}

    def stop(self) -> None:
        """Let ``run`` return soon."""
        self._stop.set()
        self.offer(b"")

    def run(self) -> None:
        """Handle what was offered, until ``stop``; try again while the fleet does not answer."""
        while not self._stop.is_set():
            envelope = self._queue.get()
            pause = _BACKOFF[0]
            while envelope and not self._stop.is_set():
                try:
                    self.handle(envelope)
                    break
                except (UnreachableError, DeviceError) as error:
                    logger.warning("desired state waits: %s", error)
                    if isinstance(error, DeviceError) and pause == _BACKOFF[0]:
                        self._notify("storage", "critical", f"an order waits: {error.message}")
                self._stop.wait(pause)
                if not self._queue.empty():  # a newer one tells more; this one waits behind it
                    self.offer(envelope)
                    break
                pause = min(pause * 2, _BACKOFF[1])

    def handle(self, envelope: bytes) -> bool:
        """Accept or refuse an envelope; tell whether it was accepted as new.

        Raises:
            UnreachableError: The metadata that is needed to judge it cannot be had now.
            DeviceError: It cannot be stored.
        """
        digest = sha256_bytes(envelope)
        if digest == self._store.state.envelope or digest in self._refused:
            return False
        try:
            desired = self._verified(envelope)
        except NotTrustedError as error:
            self._refused[digest] = None
            while len(self._refused) > _REMEMBERED:
                del self._refused[next(iter(self._refused))]
            logger.warning("refused a desired state: %s", error)
            self._notify("not_trusted", "warning", error.message)
            return False
        if desired is None:
            return False
        self._store.update(lambda state: _with(state, desired, digest))
        logger.info("desired state of generation %d accepted", desired.generation)
        self._accepted()
        return True

    def _verified(self, envelope: bytes) -> DesiredState | None:
        """Verify with the keys that are known; when they do not fit, ask for news once."""
        try:
            return self._verify(envelope)
        except NotTrustedError as error:
            logger.info("asking for new trust metadata: %s", error)
        self._trust.refresh()
        return self._verify(envelope)

    def _verify(self, envelope: bytes) -> DesiredState | None:
        return verify(
            envelope,
            self._trust.director_keys(),
            fleet=self._fleet,
            device=self._device,
            seen=self._store.state.generation,
            now=self._clock.now(),
        )


def _with(state: DeviceState, desired: DesiredState, digest: str) -> DeviceState:
    """Return the state that has accepted an order; never an older one."""
    if desired.generation <= state.generation:
        return state
    return msgspec.structs.replace(
        state, generation=desired.generation, desired=desired, envelope=digest
    )
