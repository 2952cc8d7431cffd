"""DeviceBench: what ``search.measuring`` does, on devices of a fleet.

All devices measure the same files. Of several devices the one that gains least speaks for a
candidate: what wins shall be no loss on any of them. A candidate that fails on one is out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec

from edgeml.errors import UnreachableError, UsageError
from edgeml.fleet.client import FleetClient
from edgeml.fleet.measurement import RUNNING, Measurement, MeasureRequest
from edgeml.fleet.selector import fits, parse_selector
from edgeml.hardware import DeviceFacts, HardwareProfile
from edgeml.messages.measuring import Figures, MeasureStatus
from edgeml.runtime.facts import host_line
from edgeml_converters.candidates import Bench, Measured, Trial
from edgeml_converters.on_device.candidates import pack_candidates
from edgeml_converters.results import Standing
from edgeml_converters.search.measuring import Heat
from edgeml_converters.search.progress import Progress

_POLL_S = 0.5
#: A fleet that is started again, or a network that is away, is waited for so long.
_PATIENCE_S = 120.0
#: Seconds that devices get until they are quiet, have fetched and have measured.
LIMIT_S = 1800.0


class DeviceBench:
    """Devices of a fleet that measure candidates of one profile.

    Args:
        client: The fleet.
        selector: Which devices.
        profile: What the candidates are for.
        limit_s: Seconds after which a measurement ends, whoever has not answered.

    Raises:
        UsageError: The selector cannot be used, or fits no device of the profile.
        UnreachableError: The fleet does not answer, or all devices are away.
    """

    def __init__(
        self,
        client: FleetClient,
        selector: str,
        profile: HardwareProfile,
        limit_s: float = LIMIT_S,
    ) -> None:
        """Ask the fleet which devices there are."""
        self._client, self._selector, self._profile = client, selector, profile
        self._limit = limit_s
        self._known = devices_for(client, selector, profile)
        self._heard = 0.0
        self.notes: tuple[str, ...] = ()

    @property
    def facts(self) -> DeviceFacts:
        """What all devices have in common; the names are those of the first."""
        return common(list(self._known.values()))

    @property
    def host(self) -> str:
        """One line that names the devices."""
        return "; ".join(f"{name}: {host_line(facts)}" for name, facts in self._known.items())

    def measure(
        self, base: Trial, others: Sequence[Trial], bench: Bench, heat: Heat, progress: Progress
    ) -> dict[str, Measured]:
        """Measure the baseline and others in the same rounds, on every device.

        Args:
            base: What they are compared with.
            others: Those that fail lose their verdict, with the reason.
            bench: What all trials share.
            heat: How.
            progress: Takes the news.

        Returns:
            Id -> figures, without those that failed.

        Raises:
            UsageError: More than one sample in a run was asked for.
            UnreachableError: No device measured.
        """
        if heat.batch != 1:
            raise UsageError(f"devices measure one sample in a run, got {heat.batch}")
        out = bench.work / f"candidates-{time.monotonic_ns()}.edgeml"
        pack_candidates([base, *others], bench, self._profile, heat.threads, out)
        request = MeasureRequest(
            self._selector, base.id, max(heat.rounds, 6), max(heat.budget_s, 0.5), self._limit
        )
        job = self._begun(out, request, bench)
        done = self._wait(job, bench, heat, progress)
        out.unlink()
        return self._folded(done, base, others, progress)

    def _wait(self, job: Measurement, bench: Bench, heat: Heat, progress: Progress) -> Measurement:
        """Wait until every device has said its last word; cancel when we are stopped."""
        try:
            progress.say(f"{', '.join(job.parts)}: measuring for {heat.name} ({job.id})")
            while job.state == RUNNING:
                if bench.pool.stop.wait(_POLL_S):
                    raise KeyboardInterrupt
                job = self._asked(job)
                at = "; ".join(f"{name}: {_said(part)}" for name, part in job.parts.items())
                share = 1.0 - len(job.open) / max(len(job.parts), 1)
                progress.step(heat.name, share, at)
        except KeyboardInterrupt:
            self._client.cancel_measurement(job.id)
            raise
        return job

    def _sent(self, path: Path, request: MeasureRequest) -> Measurement:
        """Send the candidates; who interrupts before the answer is here cancels it all the same."""
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(self._client.measure, path, request)
            try:
                return sent.result()
            except KeyboardInterrupt:
                with suppress(UnreachableError):
                    self._client.cancel_measurement(sent.result().id)
                raise

    def _begun(self, path: Path, request: MeasureRequest, bench: Bench) -> Measurement:
        """Send the candidates; a device or a fleet that is away for a while is waited for.

        Raises:
            UnreachableError: They are away for too long.
        """
        self._heard = time.monotonic()
        while True:
            try:
                job = self._sent(path, request)
            except UnreachableError:
                if time.monotonic() - self._heard > _PATIENCE_S:
                    raise
            else:
                self._heard = time.monotonic()
                return job
            if bench.pool.stop.wait(_POLL_S):
                raise KeyboardInterrupt

    def _asked(self, job: Measurement) -> Measurement:
        """Return how far it is; a fleet that does not answer for a while is waited for.

        Raises:
            UnreachableError: It does not answer for too long.
        """
        try:
            found = self._client.measurement(job.id)
        except UnreachableError:
            if time.monotonic() - self._heard > _PATIENCE_S:
                raise
            return job
        self._heard = time.monotonic()
        return found

    def _folded(
        self, job: Measurement, base: Trial, others: Sequence[Trial], progress: Progress
    ) -> dict[str, Measured]:
        """Return the figures of the device that gains least, for every candidate."""
        parts = {name: part for name, part in job.parts.items() if part.state == "done"}
        for name, part in job.parts.items():
            if name not in parts:
                progress.say(f"{name} did not measure: {_said(part)}")
        if not parts:
            told = "; ".join(f"{name}: {_said(part)}" for name, part in job.parts.items())
            raise UnreachableError(
                f"no device of '{self._selector}' measured: {told}",
                "look at 'edgeml fleet device ID', or name other devices with --on-device",
            )
        self._remember(job, parts)
        found: dict[str, Measured] = {}
        for trial in (base, *others):
            figures = {name: part.figures.get(trial.id, Figures()) for name, part in parts.items()}
            wrong = {n: f.error or "it said nothing" for n, f in figures.items() if not f.rounds_ms}
            if wrong:
                name, why = next(iter(wrong.items()))
                trial.fail(Standing.ERROR, f"on {name}: {why}")
                progress.say(f"{trial.id}: {trial.reason}")
                continue
            one = min(figures.values(), key=lambda f: (f.speedup[1], -f.p50))
            found[trial.id] = Measured(
                one.rounds_ms, one.p50, one.p95, one.p99, speedup=one.speedup, clock=one.clock
            )
            _replace_checked(trial, one)
        return found

    def _remember(self, job: Measurement, parts: dict[str, MeasureStatus]) -> None:
        """Keep what the devices are and what else they did, for the result."""
        self._known = {n: p.facts or self._known.get(n) or DeviceFacts("", "") for n, p in
                       parts.items()}  # fmt: skip
        notes = [f"{name} took no part: {why}" for name, why in job.skipped.items()]
        notes += [
            f"{name} did not measure: {_said(part)}"
            for name, part in job.parts.items()
            if name not in parts
        ]
        if len(parts) > 1:
            notes.append("of several devices the one that gains least speaks for a candidate")
        for name, part in parts.items():
            notes += _disturbed(name, part)
        self.notes = tuple(dict.fromkeys((*self.notes, *notes)))


def benches_on(
    selector: str, server: str, token: str, profiles: Sequence[HardwareProfile], objective: str
) -> dict[str, DeviceBench]:
    """Return profile -> the devices that measure for it; asked before any work is done.

    Args:
        selector: Which devices.
        server: Address of the fleet; empty for one on this machine.
        token: Of the fleet; empty for what a server on this machine wrote down.
        profiles: What is converted for.
        objective: What is optimised.

    Raises:
        UsageError: Devices do not measure what the objective needs, or see ``DeviceBench``.
        UnreachableError: See ``DeviceBench``.
    """
    from edgeml.cli.fleet_common import DEFAULT_SERVER, local_token

    if objective == "energy":
        raise UsageError("devices do not measure energy", "choose another --objective")
    client = FleetClient(server or DEFAULT_SERVER, token or local_token(None))
    return {profile.name: DeviceBench(client, selector, profile) for profile in profiles}


def devices_for(
    client: FleetClient, selector: str, profile: HardwareProfile
) -> dict[str, DeviceFacts]:
    """Return device -> facts of those that a selector and a profile fit and that are there.

    Raises:
        UsageError: The selector cannot be used, or fits no device of the profile.
        UnreachableError: The fleet does not answer, or all devices are away.
    """
    terms = parse_selector(selector)
    rows = [r for r in client.devices() if fits(terms, r.device, r.profile, r.tags)]
    if not rows:
        raise UsageError(f"selector '{selector}' fits no device", "see 'edgeml fleet devices'")
    mine = [row for row in rows if row.profile == profile.name]
    if not mine:
        others = ", ".join(sorted({row.profile for row in rows}))
        raise UsageError(
            f"no device of '{selector}' has the profile {profile.name}, they have: {others}",
            "convert for their profile with --profile",
        )
    here = [row.device for row in mine if row.online]
    if not here:
        raise UnreachableError(
            f"all {len(mine)} devices of '{selector}' are offline", "see 'edgeml fleet devices'"
        )
    return {name: msgspec.convert(client.device(name).facts, DeviceFacts) for name in here}


def common(facts: Sequence[DeviceFacts]) -> DeviceFacts:
    """Return what machines have in common; the names are those of the first."""
    first = facts[0]
    return msgspec.structs.replace(
        first,
        cores=min(one.cores for one in facts),
        memory_bytes=min(one.memory_bytes for one in facts),
        isa=tuple(name for name in first.isa if all(name in one.isa for one in facts)),
        accelerators=tuple(
            name for name in first.accelerators if all(name in one.accelerators for one in facts)
        ),
        runtimes={
            name: version
            for name, version in first.runtimes.items()
            if all(name in one.runtimes for one in facts)
        },
    )


def _said(part: MeasureStatus) -> str:
    return f"{part.state}: {part.detail}" if part.detail else part.state


def _disturbed(name: str, part: MeasureStatus) -> list[str]:
    """Return what a reader must know of what else a device did."""
    found, seen = part.conditions, []
    if found.requests:
        seen.append(f"{name} answered {found.requests} requests while it measured")
    if found.throttled > 0:
        seen.append(f"{name} slowed itself down {found.throttled} times for its temperature")
    if found.cut_off:
        seen.append(f"{name} gave the measurement up {found.cut_off} times for its own work")
    return seen


def _replace_checked(trial: Trial, figures: Figures) -> None:
    """Let what the device said of memory, load and version stand for what was seen here."""
    if trial.checked is not None and figures.version:
        trial.checked = msgspec.structs.replace(
            trial.checked,
            placement=figures.placement,
            version=figures.version,
            memory_bytes=figures.memory_bytes,
            load_ms=figures.load_ms,
        )
