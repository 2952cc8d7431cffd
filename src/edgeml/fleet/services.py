"""Services: everything that the API, the dashboard and the tests ask of the fleet.

Reads go straight to the database and may be made from any thread; changes go through the
controller's one thread and are on disk when the call returns. Everything is answered in the
structs of ``edgeml.fleet.views``.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from edgeml.bundle import Bundle
from edgeml.errors import InputError, NotTrustedError, ProfileError, nearest
from edgeml.fleet import auth, catalogue, deploy, history, inventory, measuring, show, telemetry
from edgeml.fleet.controller import Controller
from edgeml.fleet.measurement import Measurement, MeasureRequest
from edgeml.fleet.presence import ONLINE, UNKNOWN
from edgeml.fleet.registry import Registry
from edgeml.fleet.rollout import ACTIVE
from edgeml.fleet.scratch import Scratch
from edgeml.fleet.store import Store
from edgeml.fleet.views import (
    Change,
    DeviceDetail,
    DeviceRow,
    EventRow,
    FleetHealth,
    Plan,
    Released,
    RolloutDetail,
    RolloutRequest,
    RolloutRow,
    Session,
    TrafficRow,
    VersionDetail,
    VersionRow,
)
from edgeml.fleet.work import Work
from edgeml.hardware import profile_names
from edgeml.messages.enrolment import Enrolment
from edgeml.messages.payloads import Ref
from edgeml.messages.topics import check_name

#: How far back "lately" is, in seconds.
LATELY = 300.0


class Enrolled(NamedTuple):
    """An enrolment file, and whether the device was known before."""

    file: bytes
    known: bool


class Services:
    """The fleet, as others use it. Safe from any thread.

    Args:
        store: The database.
        controller: The one who changes things.
        registry: Blobs and trust.
        root: Returns the root of trust for new devices.
        broker: Host and port of the broker, as a device sees it.
        scratch: Bundles of candidates that devices measure.
    """

    def __init__(
        self,
        store: Store,
        controller: Controller,
        registry: Registry,
        root: Callable[[], bytes],
        broker: tuple[str, int],
        scratch: Scratch,
    ) -> None:
        """Put the parts together."""
        self.registry = registry
        self._scratch = scratch
        #: Set when the server stops: who waits for changes shall end.
        self.closing = threading.Event()
        self._store, self._controller, self._root = store, controller, root
        self._broker = broker

    @property
    def fleet(self) -> str:
        """Name of the fleet."""
        return self._controller.fleet

    @property
    def broker(self) -> tuple[str, int]:
        """Host and port of the broker, as a device sees it."""
        return self._broker

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached now."""
        return self._controller.connected

    @property
    def lost_for(self) -> float:
        """For how many seconds the broker has been away; 0 while it is connected."""
        return self._controller.presence.lost_for(self._controller.clock())

    def _presence(self, device: inventory.Device) -> str:
        return self._controller.presence.state_of(device)

    # -- who asks -------------------------------------------------------------------------------

    def login(self, name: str, password: str) -> Session:
        """Start a session.

        Raises:
            NotTrustedError: Name and password do not fit.
        """
        with self._store.read() as db:
            user = auth.login(db, name, password)
        if user is None:
            raise NotTrustedError("name and password do not fit", "try again")
        with self._store.write() as db:
            token = auth.new_token(
                db, user.name, "session", self._controller.clock(), auth.SESSION_SECONDS
            )
        return Session(token, user.name, user.role)

    def logout(self, token: str) -> None:
        """End a session."""
        with self._store.write() as db:
            auth.end_token(db, token, self._controller.clock())

    def who(self, token: str) -> auth.User | None:
        """Return whose token this is; None when it is unknown or has ended."""
        with self._store.read() as db:
            return auth.who(db, token, self._controller.clock())

    # -- what there is --------------------------------------------------------------------------

    def devices(self) -> list[DeviceRow]:
        """Return all devices, sorted by id."""
        with self._store.read() as db:
            wanted = {state.device: state for state in inventory.all_desired(db, self.fleet)}
            return [
                show.device_row(device, wanted.get(name), self._presence(device))
                for name, device in inventory.all_devices(db).items()
            ]

    def device(self, name: str) -> DeviceDetail:
        """Return one device with its machine, traffic and events.

        Raises:
            InputError: There is no such device; the hint gives the nearest.
        """
        with self._store.read() as db:
            found = inventory.find_device(db, name)
            if found is None:
                known = list(inventory.all_devices(db))
                hint = nearest(name, known) if known else "no device has connected yet"
                raise InputError(f"no device '{name}'", hint)
            return DeviceDetail(
                row=show.device_row(
                    found, inventory.desired_of(db, self.fleet, name), self._presence(found)
                ),
                facts=show.plain(found.facts) if found.facts else {},
                boot=found.boot,
                boots=found.boots,
                enrolled=found.enrolled,
                state_since=found.state_since,
                quarantined=found.reported.quarantined if found.reported else (),
                traffic=self._traffic(db, name),
                windows=tuple(telemetry.recent(db, name)),
                events=tuple(show.event_row(e) for e in telemetry.list_events(db, device=name)),
            )

    def versions(self, model: str = "") -> list[VersionRow]:
        """Return the versions in the registry, newest first (of one model, when given)."""
        with self._store.read() as db:
            return self._versions(db, model)

    def version(self, model: str, version: str) -> VersionDetail:
        """Return one version (SemVer or ``@alias``) with its variants and its lineage.

        Raises:
            InputError: There is no such version.
        """
        with self._store.read() as db:
            ref, manifest = catalogue.resolve(db, model, version)
            row = next(r for r in self._versions(db, model) if r.version == ref.version)
            return catalogue.detail(row, manifest)

    def _versions(self, db: sa.Connection, model: str) -> list[VersionRow]:
        serving = Counter(
            report.active.digest
            for device in inventory.all_devices(db).values()
            if device.reported is not None
            for report in device.reported.slots.values()
            if report.active is not None
        )
        return catalogue.rows(db, inventory.quarantined(db), dict(serving), model)

    def rollouts(self, limit: int = 100) -> list[RolloutRow]:
        """Return rollouts, newest first."""
        with self._store.read() as db:
            return [show.rollout_row(rollout) for rollout in history.newest(db, limit)]

    def rollout(self, rollout_id: str) -> RolloutDetail:
        """Return one rollout with its devices, verdicts and decisions.

        Raises:
            InputError: There is no such rollout.
        """
        with self._store.read() as db:
            found = history.find(db, rollout_id)
            if found is None:
                raise InputError(f"no rollout '{rollout_id}'", "look at 'edgeml fleet rollouts'")
            return show.rollout_detail(
                found,
                {n: self._presence(d) for n, d in inventory.all_devices(db).items()},
                history.decisions(db, rollout_id),
                self._controller.engine.verdicts.get(rollout_id, ()),
            )

    def events(self, after: int = 0, limit: int = 100, device: str = "") -> list[EventRow]:
        """Return the newest events with an id above ``after``, newest first."""
        with self._store.read() as db:
            return [show.event_row(e) for e in telemetry.list_events(db, after, limit, device)]

    def health(self) -> FleetHealth:
        """Return the fleet at a glance."""
        with self._store.read() as db:
            devices = inventory.all_devices(db).values()
            here = Counter(self._presence(device) for device in devices)
            return FleetHealth(
                fleet=self.fleet,
                broker=self._controller.connected,
                devices=len(devices),
                online=here[ONLINE],
                unknown=here[UNKNOWN],
                broker_lost=self.lost_for,
                health=dict(
                    Counter(d.reported.health if d.reported else "unknown" for d in devices)
                ),
                seconds=LATELY,
                traffic=self._traffic(db),
                active_rollouts=sum(r.state in ACTIVE for r in history.active(db)),
                quarantined=len(inventory.quarantined(db)),
            )

    def _traffic(self, db: sa.Connection, device: str = "") -> tuple[TrafficRow, ...]:
        counts = telemetry.by_version(db, self._controller.clock() - LATELY, device)
        return tuple(show.traffic_row(one, LATELY) for one in counts)

    def windows(self, since: float) -> list[telemetry.Window]:
        """Return the telemetry windows that came in at ``since`` or later, oldest first."""
        with self._store.read() as db:
            return telemetry.since(db, since)

    def subscribe(self, watcher: Callable[[Change], None]) -> Callable[[], None]:
        """Call ``watcher`` after every change, on the controller's thread; it must be quick.

        Returns:
            How to end it.
        """
        return self._controller.watch(watcher)

    # -- what changes the fleet -----------------------------------------------------------------

    def push(self, path: Path, author: str) -> VersionRow:
        """Take a bundle into the registry; the same one again changes nothing.

        Raises:
            BundleError: It is broken.
            NotTrustedError: A blob is not what its digest says.
            UsageError: The version is there with another digest.
        """
        bundle = Bundle.open(path)
        manifest = bundle.manifest
        ref = Ref(manifest.name, manifest.version, bundle.digest)
        check_name(ref.model, "model")
        with self._store.read() as db:
            catalogue.check_new(db, ref)
        size = self.registry.take(bundle)
        self.registry.trust(ref)

        def enter(work: Work) -> None:
            catalogue.add(work.db, ref, manifest, size, author, work.now)
            work.changed("model", ref.model)

        self._controller.ask(enter)
        return self.version(ref.model, ref.version).row

    def set_alias(self, model: str, alias: str, version: str) -> VersionRow:
        """Point an alias at a version.

        Raises:
            InputError: There is no such version.
        """

        def change(work: Work) -> None:
            catalogue.set_alias(work.db, model, alias, version, work.now)
            work.changed("model", model)

        self._controller.ask(change)
        return self.version(model, f"@{alias}").row

    def release(self, model: str, version: str, reason: str, author: str) -> Released:
        """Lift a version's quarantine; see ``deploy.release`` for what it raises."""
        engine = self._controller.engine
        refusing = self._controller.ask(
            lambda work: deploy.release(work, engine, model, version, reason, author)
        )
        return Released(self.version(model, version).row, refusing)

    def enrol(
        self, device: str, profile: str = "auto", tags: dict[str, str] | None = None
    ) -> Enrolled:
        """Make a device known, and return the file that makes a machine into it.

        Args:
            device: Its id.
            profile: Hardware profile, or ``auto``.
            tags: Its tags; None keeps those of a known device.

        Raises:
            UsageError: The id cannot stand in a topic.
            ProfileError: There is no such profile.
        """
        check_name(device, "device")
        known_profiles = ("auto", *profile_names())
        if profile not in known_profiles:
            raise ProfileError(f"unknown profile '{profile}'", nearest(profile, known_profiles))
        known, labels = self._controller.ask(
            lambda work: inventory.enrol(work.db, device, profile, tags, work.now)
        )
        host, port = self._broker
        root = self._root().decode()
        made = Enrolment(self.fleet, device, host, port, root, profile, labels)
        return Enrolled(msgspec.json.format(msgspec.json.encode(made), indent=2), known)

    def preview(self, request: RolloutRequest) -> Plan:
        """Return what a rollout would do; see ``deploy.make_plan`` for what it raises."""
        return self._controller.ask(lambda work: deploy.make_plan(work, request))

    def create_rollout(self, request: RolloutRequest, author: str) -> RolloutRow:
        """Make a rollout and start it; see ``deploy.create`` for what it raises."""
        return self._controller.ask(
            lambda work: show.rollout_row(
                deploy.create(work, self._controller.engine, request, author)
            )
        )

    def control(self, rollout_id: str, action: str, reason: str = "") -> RolloutRow:
        """Ask a rollout to ``pause``, ``resume``, ``abort`` or ``rollback``.

        Raises:
            InputError: There is no such rollout.
            UsageError: Its state does not allow that.
        """
        return self._controller.ask(
            lambda work: show.rollout_row(
                deploy.control(work, self._controller.engine, rollout_id, action, reason)
            )
        )

    # -- measuring on devices -------------------------------------------------------------------

    def measure(self, path: Path, request: MeasureRequest, author: str) -> Measurement:
        """Measure the variants of a bundle on devices; see ``measuring.create`` for what it raises.

        Raises:
            BundleError: The bundle is broken.
            NotTrustedError: A blob is not what its digest says.
        """
        bundle = Bundle.open(path)
        manifest = bundle.manifest
        ref = Ref(manifest.name, manifest.version, bundle.digest)
        size = len(bundle.oci_manifest)
        try:
            self._scratch.take(bundle)
            return self._controller.ask(
                lambda work: measuring.create(work, ref, size, manifest, request, author)
            )
        finally:
            self._scratch.settle(bundle.digest)

    def measurements(self, limit: int = 100) -> list[Measurement]:
        """Return measurements, newest first."""
        with self._store.read() as db:
            return measuring.newest(db, limit)

    def measurement(self, job: str) -> Measurement:
        """Return one measurement.

        Raises:
            InputError: There is no such one.
        """
        with self._store.read() as db:
            return measuring.find(db, job)

    def cancel_measurement(self, job: str, author: str) -> Measurement:
        """End a measurement; what a device has already said stays.

        Raises:
            InputError: There is no such one.
        """
        return self._controller.ask(lambda work: measuring.cancel(work, job, author))
