"""Measurer: takes orders to measure candidates on this device, and does one at a time.

An order is believed when a director that TUF names has signed it, for this device, with a number
above everything seen; the number is on the disk before anything acts on it. It is begun when the
device is quiet (serves as it should, and brings nothing in), and given up and begun anew when it
is not any more. The status is on the disk too: an agent that starts again goes on, and tells what
it found to a fleet that repeats its order.
"""

from __future__ import annotations

import logging
import queue
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeml.digest import sha256_bytes
from edgeml.errors import DeviceError, EdgemlError, NotTrustedError, UnreachableError
from edgeml.hardware import DeviceFacts
from edgeml.messages.measuring import FINAL, MeasureOrder, MeasureStatus
from edgeml.messages.payloads import Rpc
from edgeml.trust.measuring import verify
from edgeml_agent import durable, measurement
from edgeml_agent.clock import Clock
from edgeml_agent.fetch import BlockFetcher, FetchStopped
from edgeml_agent.measurement import MeasurementStopped, Watch
from edgeml_agent.orders import Notify, Trust
from edgeml_agent.slots import BundleStore

logger = logging.getLogger(__name__)

_WAITING = 4
_LOOK = 0.25
#: Seconds between two tries while the fleet does not answer.
_PAUSE = 2.0
#: What was fetched stays for so many seconds: most files of one search are measured twice.
_KEEP_STORE = 300.0
#: So often a measurement is given up, by this device or by its own end, before it has failed.
MOST_CUTS = 5
Reply = Callable[[Rpc], object]


class _Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """What must outlast this process."""

    seen: int = 0
    envelope: str = ""
    order: MeasureOrder | None = None
    status: MeasureStatus | None = None
    begun: int = 0


class Surroundings(msgspec.Struct, frozen=True):
    """What a measurer needs to know of the rest of the agent.

    Attributes:
        fleet: Our fleet.
        device: Our id.
        facts: This machine.
        quiet: Returns why now is no time to measure; empty when it is.
        requests: Returns the requests answered so far.
    """

    fleet: str
    device: str
    facts: DeviceFacts
    quiet: Callable[[], str]
    requests: Callable[[], int]


class Measurer:
    """Measures; ``run`` belongs to one thread that lives as long as the agent.

    Args:
        folder: Everything of it goes here.
        around: The rest of the agent.
        fetcher: Brings blobs.
        trust: Whose signatures count.
        clock: Whether ``not_after`` can be judged.
        reply: Sends an answer to the fleet.
        notify: Told of what people should know.
    """

    def __init__(
        self,
        folder: Path,
        around: Surroundings,
        fetcher: BlockFetcher,
        trust: Trust,
        clock: Clock,
        reply: Reply,
        notify: Notify,
    ) -> None:
        """Read what an earlier process left."""
        self._folder = folder
        self._around = around
        self._fetcher = fetcher
        self._trust = trust
        self._clock = clock
        self._reply = reply
        self._notify = notify
        self._file = folder / "state.json"
        self._calls: queue.Queue[Rpc | None] = queue.Queue(_WAITING)
        self._stop = threading.Event()
        self._cancelled = ""
        self._store_until = 0.0
        self._kept = self._load()

    def _load(self) -> _Kept:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return _Kept()
        except (OSError, msgspec.DecodeError) as error:
            logger.error("what was measured is lost: %s", error)
            return _Kept()

    # -- asked by the main thread -----------------------------------------------------------------

    def call(self, call: Rpc) -> None:
        """Take a request ``measure`` or ``measure_cancel``; returns at once."""
        status = self._kept.status
        if call.method == "measure_cancel":
            self._cancelled = str(call.params.get("id", ""))
            if status is not None and status.id == call.id:
                self._answer(status)
            return
        envelope = call.params.get("envelope")
        if not isinstance(envelope, str):
            self._reply(Rpc(id=call.id, error="the order has no envelope"))
        elif status is not None and sha256_bytes(envelope.encode()) == self._kept.envelope:
            self._answer(status)
        else:
            try:
                self._calls.put_nowait(call)
            except queue.Full:
                logger.warning("too many orders to measure wait: one is dropped")

    def stop(self) -> None:
        """Let ``run`` return soon; what is measured now is begun anew by the next start."""
        self._stop.set()

    # -- the thread -------------------------------------------------------------------------------

    def run(self) -> None:
        """Take orders and measure, until ``stop``."""
        while not self._stop.is_set():
            try:
                call = self._calls.get(timeout=_LOOK)
            except queue.Empty:
                call = None
            try:
                if call is not None:
                    self._accept(call)
                status = self._kept.status
                if status is not None and status.state not in FINAL:
                    self._work()
                elif time.monotonic() > self._store_until:
                    self._store_until = float("inf")
                    shutil.rmtree(self._folder / "store", ignore_errors=True)
            except DeviceError as error:  # the status cannot be kept: a full or read-only disk
                logger.error("%s", error)
                self._stop.wait(_PAUSE)

    def _accept(self, call: Rpc) -> None:
        """Believe an order or refuse it."""
        envelope: str = call.params["envelope"]
        try:
            order = self._verified(envelope.encode())
        except UnreachableError as error:
            logger.warning("an order to measure waits: %s", error)  # it is repeated
            return
        except NotTrustedError as error:
            logger.warning("refused an order to measure: %s", error)
            self._notify("not_trusted", "warning", error.message)
            self._reply(Rpc(id=call.id, error=f"not trusted: {error.message}"))
            return
        if order is None:  # the same order, signed by another key of the director
            if self._kept.status is not None:
                self._answer(self._kept.status)
            return
        current = self._kept.status
        if current is not None and current.state not in FINAL:
            self._reply(Rpc(id=call.id, error=f"measurement {current.id} is not done yet"))
            return
        status = MeasureStatus(order.id, order.number, "waiting")
        kept = _Kept(order.number, sha256_bytes(envelope.encode()), order, status)
        self._cancelled = ""
        try:
            self._keep(kept)
        except DeviceError as error:
            self._kept = _Kept(seen=self._kept.seen)
            refused = MeasureStatus(order.id, order.number, "refused", error.message)
            self._answer(refused)
            return
        self._answer(status)

    def _verified(self, envelope: bytes) -> MeasureOrder | None:
        """Verify with the keys that are known; when they do not fit, ask for news once."""
        try:
            return self._verify(envelope)
        except NotTrustedError as error:
            logger.info("asking for new trust metadata: %s", error)
        self._trust.refresh()
        return self._verify(envelope)

    def _verify(self, envelope: bytes) -> MeasureOrder | None:
        return verify(
            envelope,
            self._trust.director_keys(),
            fleet=self._around.fleet,
            device=self._around.device,
            seen=self._kept.seen,
            now=self._clock.now(),
        )

    def _work(self) -> None:
        """Go on with the order at hand."""
        order, begun = self._kept.order, self._kept.begun
        assert order is not None
        reason = self._around.quiet()
        if self._cancelled == order.id:
            self._finish("cancelled", "it was cancelled")
        elif begun >= MOST_CUTS:
            self._finish("failed", f"it was begun {begun} times and never came to its end")
        elif not begun and self._late(order):
            self._finish("failed", "it was not quiet here before the order ran out")
        elif reason:
            self._tell("waiting", reason)
        else:
            self._try(order)

    def _late(self, order: MeasureOrder) -> bool:
        now = self._clock.now()
        return now is not None and bool(order.not_after) and now > order.not_after

    def _try(self, order: MeasureOrder) -> None:
        """Measure; keep whatever comes of it."""
        try:
            bundle = self._fetch(order)
            self._keep(msgspec.structs.replace(self._kept, begun=self._kept.begun + 1))
            self._measure(order, bundle)
        except (MeasurementStopped, FetchStopped) as error:
            self._tell("waiting", f"{error}: {self._around.quiet() or 'asked to stop'}")
        except UnreachableError as error:
            self._tell("waiting", error.message)
            self._stop.wait(_PAUSE)
        except FileNotFoundError as error:
            self._finish("failed", str(error))
        except OSError as error:
            self._finish("refused", f"cannot write: {error.strerror}")
        except EdgemlError as error:
            self._finish("refused" if not self._kept.begun else "failed", error.message)

    def _measure(self, order: MeasureOrder, bundle: Path) -> None:
        started, watch = time.monotonic(), Watch(self._around.requests)
        work = self._folder / "work"
        figures = measurement.run(
            order, bundle, work, self._must_stop, lambda at: self._tell("measuring", at)
        )
        status = MeasureStatus(
            order.id,
            order.number,
            "done",
            figures=figures,
            facts=self._around.facts,
            conditions=watch.conditions(self._kept.begun - 1),
            seconds=round(time.monotonic() - started, 2),
        )
        self._finished(status)

    def _must_stop(self) -> bool:
        order = self._kept.order
        gone = order is not None and self._cancelled == order.id
        return gone or self._stop.is_set() or bool(self._around.quiet())

    def _fetch(self, order: MeasureOrder) -> Path:
        """Bring the candidates; return the bundle's folder."""
        store = BundleStore(self._folder / "store", order.profile)
        done = 0
        while wanted := store.wanted(order.ref.digest, order.size):
            total = done + sum(size for _digest, size in wanted)
            store.check_space(wanted)
            for digest, size in wanted:
                self._tell("fetching", "", (done, total))
                self._fetcher.blob(digest, size, store.blob_path(digest), stopped=self._must_stop)
                done += size
        store.assemble(order.ref)
        store.collect({order.ref.digest})
        return store.path(order.ref.digest)

    # -- what is told -----------------------------------------------------------------------------

    def _tell(self, state: str, detail: str, progress: tuple[int, int] = (0, 0)) -> None:
        """Say how far it is, if that is new; only in memory, for it is found out again."""
        order, status = self._kept.order, self._kept.status
        assert order is not None
        new = MeasureStatus(order.id, order.number, state, detail, progress)
        if new != status:
            self._kept = msgspec.structs.replace(self._kept, status=new)
            self._answer(new)

    def _finish(self, state: str, detail: str) -> None:
        order = self._kept.order
        assert order is not None
        self._finished(MeasureStatus(order.id, order.number, state, detail))

    def _finished(self, status: MeasureStatus) -> None:
        """Keep the end of it, tell it, and give the disk back."""
        self._kept = msgspec.structs.replace(self._kept, status=status)
        shutil.rmtree(self._folder / "work", ignore_errors=True)
        kept = _KEEP_STORE if status.state == "done" else 0.0
        self._store_until = time.monotonic() + kept
        self._answer(status)
        good = sum(not figures.error for figures in status.figures.values())
        told = status.detail or f"{good} of {len(status.figures)} candidates ran"
        self._notify("measured", "info", f"measurement {status.id} is {status.state}: {told}")
        self._keep(self._kept)

    def _answer(self, status: MeasureStatus) -> None:
        self._reply(Rpc(id=status.id, result=status))

    def _keep(self, kept: _Kept) -> None:
        """Put it on the disk, and then act on it.

        Raises:
            DeviceError: It cannot be written.
        """
        try:
            durable.private_folder(self._folder)
            durable.write(self._file, msgspec.json.encode(kept))
        except OSError as error:
            raise DeviceError(f"cannot write {self._file}: {error.strerror}") from error
        self._kept = kept
