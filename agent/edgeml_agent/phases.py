"""What each phase of the updater does: the acts behind the table of ``transitions``.

Each act can be done again from its start. It turns what went wrong into one happening: ``retry``
(the network), ``failed`` (this device, or the order), ``faulty`` (the bundle), ``crashed`` (the
data plane went away under it).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from edgeml.errors import (
    BundleError,
    DeviceError,
    EdgemlError,
    NotTrustedError,
    UnreachableError,
)
from edgeml.messages.payloads import Ref
from edgeml.trust import bundle_target
from edgeml_agent.config import SlotSettings
from edgeml_agent.control import Probe, Reply, Switch
from edgeml_agent.dataplane import PlaneGoneError
from edgeml_agent.fetch import BlockFetcher, FetchStopped
from edgeml_agent.keeper import Keeper, Notify
from edgeml_agent.orders import Trust
from edgeml_agent.slots import BundleStore, DamagedBlobError
from edgeml_agent.state import StateStore
from edgeml_agent.transitions import Happening, Phase, Slot
from edgeml_agent.trial import Judgement, Trial
from edgeml_agent.updater import Act, Result

logger = logging.getLogger(__name__)

Stopped = Callable[[], bool]
DONE = Result(Happening.DONE)
_MAX_DISTRUST = 5
_PLANE_WAIT = 60.0


class Phases:
    """The acts, and what they work with.

    Args:
        store: The stored state.
        bundles: Blobs and bundles on the disk.
        fetcher: Brings blobs.
        trust: Says which digest a version has.
        keeper: Asks the data plane.
        limits: Lower bounds of trials.
        notify: Told of damage that was found.
        probe_every: Seconds between golden probes in a trial.
    """

    def __init__(
        self,
        store: StateStore,
        bundles: BundleStore,
        fetcher: BlockFetcher,
        trust: Trust,
        keeper: Keeper,
        limits: SlotSettings,
        notify: Notify,
        *,
        probe_every: float = 1.0,
    ) -> None:
        """Keep the parts."""
        self._store = store
        self._bundles = bundles
        self._fetcher = fetcher
        self._trust = trust
        self._keeper = keeper
        self._limits = limits
        self._notify = notify
        self._probe_every = probe_every
        self._distrusted = 0
        self._damage = ""
        self.progress: dict[str, tuple[int, int]] = {}

    def acts(self) -> dict[Phase, Act]:
        """Return phase -> act."""
        return {
            Phase.IDLE: self.repair,
            Phase.FETCH: self.fetch,
            Phase.VERIFY: self.verify,
            Phase.STAGE: self.stage,
            Phase.WARMUP: self.warmup,
            Phase.TRIAL: self.trial,
            Phase.COMMIT: self.commit,
            Phase.ROLLBACK: self.rollback,
        }

    def fetch(self, name: str, slot: Slot, stopped: Stopped) -> Result:
        """Ask TUF whether this version may run, and bring what is missing of it."""
        ref = _candidate(slot)
        try:
            self._trust.refresh()
        except (NotTrustedError, UnreachableError) as error:
            # Whoever can touch messages must not be able to make an order fail for good.
            return Result(Happening.RETRY, error.message)
        except DeviceError as error:
            return Result(Happening.FAILED, error.message)
        try:
            self._fetch(name, ref, stopped)
        except NotTrustedError as error:
            # Not listed by metadata that is true and new: it may still be published.
            self._distrusted += 1
            if self._distrusted < _MAX_DISTRUST:
                return Result(Happening.RETRY, error.message)
            self._distrusted = 0
            return Result(Happening.FAILED, error.message)
        except (UnreachableError, FileNotFoundError, FetchStopped) as error:
            return Result(Happening.RETRY, str(error))
        except (BundleError, DeviceError) as error:
            return Result(Happening.FAILED, error.message)
        except OSError as error:
            return Result(Happening.FAILED, f"cannot write: {error.strerror}")
        self._distrusted = 0
        return DONE

    def _fetch(self, name: str, ref: Ref, stopped: Stopped) -> None:
        info = self._trust.target(bundle_target(ref.model, ref.version))
        if info.digest != ref.digest:
            raise BundleError(
                f"{ref.model} {ref.version} is {ref.digest} in the order, "
                f"{info.digest} in the repository"
            )
        have = [0]

        def more(count: int) -> None:
            have[0] += count
            self.progress[name] = (have[0], self.progress[name][1])

        self.progress[name] = (0, info.length)
        while wanted := self._bundles.wanted(ref.digest, info.length):
            self.progress[name] = (have[0], have[0] + sum(size for _digest, size in wanted))
            self._bundles.check_space(wanted)
            for digest, size in wanted:
                self._bring(digest, size, more, stopped)

    def _bring(self, digest: str, size: int, more: Callable[[int], None], stopped: Stopped) -> None:
        path = self._bundles.blob_path(digest)
        self._fetcher.blob(digest, size, path, progress=more, stopped=stopped)

    def verify(self, name: str, slot: Slot, _stopped: Stopped) -> Result:
        """Read every blob again from the disk, and compare its digest."""
        self.progress.pop(name, None)
        try:
            self._bundles.verify(_candidate(slot).digest)
        except DamagedBlobError as error:
            return Result(Happening.RETRY, error.message)
        except (BundleError, NotTrustedError) as error:
            return Result(Happening.FAULTY, error.message)
        except OSError as error:
            return Result(Happening.FAILED, f"cannot read: {error.strerror}")
        return DONE

    def stage(self, _name: str, slot: Slot, _stopped: Stopped) -> Result:
        """Make the bundle's folder from the blobs, durable and complete or not at all."""
        ref = _candidate(slot)
        try:
            self._bundles.assemble(ref)
        except (BundleError, NotTrustedError) as error:
            return Result(Happening.FAULTY, error.message)
        except OSError as error:
            return Result(Happening.FAILED, f"cannot write: {error.strerror}")
        return DONE

    def repair(self, name: str, slot: Slot, stopped: Stopped) -> Result:
        """Bring back what is damaged or missing of the version that should serve.

        The keeper loads it as soon as it is whole again. Only what is not true is fetched.
        """
        ref = slot.last_verified
        if ref is None:
            return DONE
        try:
            self._bundles.verify(ref.digest)
        except (DamagedBlobError, BundleError, NotTrustedError) as error:
            found = error.message
        except OSError as error:
            return Result(Happening.FAILED, f"cannot read: {error.strerror}")
        else:
            return DONE
        message = f"{ref.model} {ref.version}: {found}; it is fetched again"
        if message != self._damage:  # once, however long the network is away
            self._damage = message
            self._notify("damaged", "critical", message)
        try:
            self._bundles.discard(ref.digest)
            self._trust.refresh()
            self._fetch(name, ref, stopped)
            self._bundles.verify(ref.digest)
            self._bundles.assemble(ref)
        except (EdgemlError, FetchStopped) as error:
            return Result(Happening.FAILED, str(error))
        except OSError as error:
            return Result(Happening.FAILED, f"cannot write: {error.strerror}")
        finally:
            self.progress.pop(name, None)
        return DONE

    def warmup(self, name: str, slot: Slot, stopped: Stopped) -> Result:
        """Load it beside what serves, and compare its golden samples."""
        request = self._keeper.stage_request(name, _candidate(slot))
        while not self._keeper.wait_ready(0.5):
            if stopped():
                return Result(Happening.FAILED, "broken off")
        try:
            reply = self._keeper.ask(request, wait=_PLANE_WAIT)
        except PlaneGoneError as error:
            return Result(Happening.CRASHED, error.message)
        return DONE if reply.ok else _refused(reply)

    def trial(self, name: str, slot: Slot, stopped: Stopped) -> Result:
        """Let it serve under watch; golden probes go on beside the traffic."""
        try:
            return self._trial(name, slot, stopped)
        except PlaneGoneError as error:
            return Result(Happening.CRASHED, error.message)

    def _trial(self, name: str, slot: Slot, stopped: Stopped) -> Result:
        candidate, target = _candidate(slot), slot.target
        assert target is not None
        before = self._keeper.statuses.get(name)
        reply = self._keeper.ask(Switch(name))
        if not reply.ok:
            return _refused(reply)
        trial = Trial(
            requests=max(target.requests, self._limits.min_requests),
            seconds=max(target.seconds, self._limits.min_seconds),
            was_degraded=before is not None and bool(before.degraded),
        )
        begun, probes = time.monotonic(), 0
        while True:
            reply = self._keeper.ask(Probe(name))
            status = reply.slots.get(name)
            if status is None or status.ref != candidate:
                return Result(Happening.CRASHED, "the data plane was started again in the trial")
            if not reply.ok:
                return _refused(reply)
            probes += 1
            judgement, reason = trial.judge(status, time.monotonic() - begun, probes)
            if judgement is Judgement.HARMED:
                return Result(Happening.FAULTY, reason)
            if judgement is Judgement.PASSED:
                return DONE
            if _pause(min(self._probe_every, max(target.seconds / 4, 0.05)), stopped):
                return Result(Happening.FAILED, "broken off")

    def commit(self, name: str, slot: Slot, _stopped: Stopped) -> Result:
        """Drop the old version from memory, and what nobody needs from the disk."""
        assert slot.last_verified is not None
        self._keeper.settle(name, slot.last_verified)
        self._collect()
        return DONE

    def rollback(self, name: str, slot: Slot, _stopped: Stopped) -> Result:
        """Serve what is last verified again, and forget the candidate."""
        self.progress.pop(name, None)
        self._distrusted = 0
        self._keeper.revert(name, slot.last_verified)
        self._collect()
        return DONE

    def _collect(self) -> None:
        kept = {ref.digest for slot in self._store.state.slots.values() for ref in slot.kept()}
        try:
            self._bundles.collect(kept)
        except OSError as error:
            logger.warning("cannot clean up: %s", error)


def _candidate(slot: Slot) -> Ref:
    assert slot.candidate is not None, slot
    return slot.candidate


def _refused(reply: Reply) -> Result:
    """Return what a refusal of the data plane means."""
    if reply.kind == "state":  # it was started again and lost what was staged
        return Result(Happening.CRASHED, reply.error)
    return Result(Happening.FAULTY, f"{reply.kind}: {reply.error}")


def _pause(seconds: float, stopped: Stopped) -> bool:
    """Wait; tell whether to break off."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if stopped():
            return True
        time.sleep(min(0.1, max(until - time.monotonic(), 0.0)))
    return stopped()
