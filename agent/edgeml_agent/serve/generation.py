"""A loaded generation: one version of a bundle, ready to answer."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from edgeml.bundle import Bundle
from edgeml.errors import BundleError, EdgemlError
from edgeml.manifest import Manifest
from edgeml_agent.control import SlotStatus, Stage
from edgeml_agent.serve.batcher import Batcher
from edgeml_agent.serve.fallback import Chain, Note
from edgeml_agent.serve.model import Model, OpenedVariant, Plan
from edgeml_agent.serve.settings import Settings
from edgeml_agent.serve.watch import DriftFeed
from edgeml_agent.serve.window import Counts

logger = logging.getLogger(__name__)

#: A run shorter than this many seconds goes on the loop: a hop to a thread costs about 30 us,
#: and a longer run would hold up other connections.
INLINE_SECONDS = 0.001
#: A generation that is dropped has this long to answer what is queued.
_CLOSE_SECONDS = 30.0
#: Seconds between two looks at whether the first choice is back.
_WATCH_SECONDS = 1.0


class Generation:
    """One version in one slot, with its queue and its counts. Lives on the loop.

    Attributes:
        slot: The slot's name.
        ref: The version.
        manifest: Its manifest.
        chain: What runs it.
        batcher: Its queue.
        counts: What happened to its requests.
        nonfinite: Whether its outputs may hold NaN and infinity.
    """

    def __init__(
        self,
        request: Stage,
        manifest: Manifest,
        chain: Chain[OpenedVariant],
        batcher: Batcher,
        drift: DriftFeed | None,
        *,
        nonfinite: bool = False,
    ) -> None:
        """Start answering, and looking after the fallback."""
        self.nonfinite = nonfinite
        self.slot = request.slot
        self.ref = request.ref
        self.manifest = manifest
        self.chain = chain
        self.batcher = batcher
        self.counts = Counts(request.slot, request.ref, drift)
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    @property
    def on_fallback(self) -> bool:
        """Whether a fallback serves."""
        return self.chain.on_fallback

    def status(self) -> SlotStatus:
        """Return what it serves, and how that goes."""
        return SlotStatus(
            ref=self.ref,
            variant=self.chain.variant.id,
            placement=self.chain.placement,
            degraded=self.chain.degraded,
            requests=self.counts.requests,
            errors=dict(self.counts.errors),
        )

    async def close(self) -> None:
        """Answer what is queued, then give everything back."""
        self._watcher.cancel()
        try:
            await asyncio.wait_for(self.batcher.drained(), _CLOSE_SECONDS)
        except TimeoutError:
            # The run hangs: the thread and what it holds stay behind until the process ends.
            logger.error("%s %s hangs in a run", self.slot, self.ref.version)
            return
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self.batcher.close()
        self.chain.close()

    async def _watch(self) -> None:
        """While a fallback serves, try the first choice again, with growing pauses."""
        while True:
            await asyncio.sleep(self.chain.pause if self.on_fallback else _WATCH_SECONDS)
            if self.on_fallback:
                await asyncio.to_thread(self.chain.restore)


async def load(
    request: Stage,
    settings: Settings,
    cache: Path,
    loop: asyncio.AbstractEventLoop,
    note: Note,
) -> Generation:
    """Load what a ``stage`` request names, on a thread.

    Raises:
        GoldenError: It runs, and gives wrong answers.
        EdgemlError: It does not load here.
    """
    model, chain, plan = await asyncio.to_thread(_load, request, settings, cache, note)
    batcher = Batcher(
        loop,
        chain.run,
        limit=plan.batch,
        hard=plan.hard,
        inline=plan.seconds < INLINE_SECONDS,
        max_queue=settings.max_queue,
    )
    logger.info(
        "%s %s: variant %s on %s, batch %d, %.3f ms, %s",
        model.manifest.name, model.manifest.version, chain.variant.id, chain.placement,
        plan.batch, plan.seconds * 1e3, "inline" if batcher.inline else "on a thread",
    )  # fmt: skip
    drift = DriftFeed(model.drift, loop) if model.drift is not None else None
    nonfinite = settings.allow_nonfinite or model.nonfinite
    return Generation(request, model.manifest, chain, batcher, drift, nonfinite=nonfinite)


def _load(
    request: Stage, settings: Settings, cache: Path, note: Note
) -> tuple[Model, Chain[OpenedVariant], Plan]:
    bundle = Bundle.open(Path(request.bundle))
    manifest = bundle.manifest
    got = (manifest.name, manifest.version, bundle.digest)
    expected = (request.ref.model, request.ref.version, request.ref.digest)
    if got != expected:
        raise BundleError(
            f"bundle '{request.bundle}' holds {' '.join(got)}, expected {' '.join(expected)}"
        )
    model = Model(bundle, request.profile, cache)

    def say(kind: str, severity: str, message: str) -> None:
        note(kind, severity, f"{request.slot} {manifest.version}: {message}")

    chain = Chain(model.variants, model.open, model.check, say)
    try:
        plan = model.plan(chain.opened, settings.max_batch)
    except EdgemlError:
        chain.close()
        raise
    return model, chain, plan
