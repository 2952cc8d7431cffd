"""A fleet of devices in memory: real controller, real signatures, a network that misbehaves.

Devices keep what a device keeps over a power cut (generation, slots), and hold counts in an outbox
until the fleet has acknowledged them. Time is a number that tests move.
"""

import collections
import random

import msgspec

from edgeml.errors import NotTrustedError
from edgeml.fleet.blocks import BlockServer
from edgeml.fleet.controller import Controller
from edgeml.fleet.registry import Registry
from edgeml.fleet.scratch import Scratch
from edgeml.fleet.services import Services
from edgeml.fleet.store import Store
from edgeml.fleet.views import RolloutRequest
from edgeml.hardware import DeviceFacts
from edgeml.link.base import Will
from edgeml.link.memory import Faults, MemoryBroker, MemoryLink
from edgeml.messages import topics
from edgeml.messages.payloads import (
    Birth,
    Event,
    Ref,
    Reported,
    Rpc,
    SlotReport,
    State,
    Telemetry,
    decode,
    encode,
)
from edgeml.trust.desired import DirectorKeys, verify
from edgeml.trust.repository import TrustRepository
from tests.support.fleetlet import PROFILE, tiny_bundle

FLEET = "sim"


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


class SimDevice:
    """One device."""

    def __init__(self, fleet, name, boot="b1", tags=None):
        self.fleet, self.name, self.boot = fleet, name, boot
        self.tags = tags or {}
        self.generation = 0
        self.accepted = []  # generations, in the order in which they were acted on
        self.slots = {}
        self.quarantined = ()
        self.faulty = set()  # digests that it will not run, whatever the fleet says
        self.sequence = 0
        self.outbox = {}
        self.sent = collections.Counter()  # version -> requests of all windows
        self.health = "ok"
        will = Will(self._up("state"), encode(State(name, boot, False)))
        self.link = fleet.device_link(name, will)
        self.link.subscribe(topics.all_down(fleet.name, name), self.receive)
        self.link.on_connection(lambda up: up and self.announce())

    def _up(self, kind):
        return topics.up(self.fleet.name, self.name, kind)

    def announce(self):
        facts = DeviceFacts("x86_64", "Linux")
        birth = Birth(self.name, self.boot, "1.0", facts, PROFILE, self.tags)
        self.link.publish(self._up("birth"), encode(birth), retain=True)
        online = State(self.name, self.boot, True)
        self.link.publish(self._up("state"), encode(online), retain=True)
        self.report()
        self.flush()

    def report(self):
        self.sequence += 1
        said = Reported(
            self.name,
            self.boot,
            self.sequence,
            self.generation,
            dict(self.slots),
            health=self.health,
            quarantined=tuple(sorted(self.faulty)),
        )
        self.link.publish(self._up("reported"), encode(said), retain=True)

    def receive(self, message):
        address = topics.parse(message.topic)
        if address.kind == "rpc":
            rpc = decode(message.payload, Rpc)
            if rpc.method == "ack" and rpc.params["boot"] == self.boot:
                for sequence in rpc.params["sequences"]:
                    self.outbox.pop(sequence, None)
            elif rpc.method == "rebirth":
                self.announce()
        elif address.kind == "desired":
            try:
                wanted = verify(
                    message.payload,
                    self.fleet.keys,
                    fleet=self.fleet.name,
                    device=self.name,
                    seen=self.generation,
                    now=None,
                )
            except NotTrustedError:
                return  # the network delivered an older one late
            if wanted is not None:
                self.obey(wanted)

    def obey(self, wanted):
        assert wanted.generation > self.generation
        self.generation = wanted.generation
        self.accepted.append(wanted.generation)
        self.quarantined = wanted.quarantined
        for slot, held in list(self.slots.items()):
            banned = held.active is not None and held.active.digest in wanted.quarantined
            if banned and slot not in wanted.slots:
                self.slots[slot] = SlotReport("idle", attempted=wanted.generation)
        for slot, target in wanted.slots.items():
            self.take(slot, target.ref)
        self.report()

    def take(self, slot, ref):
        held = self.slots.get(slot, SlotReport("idle"))
        assert ref.digest not in self.quarantined, "told to run what is quarantined"
        trying = msgspec.structs.replace(
            held, phase="fetch", candidate=ref, attempted=self.generation, outcome=""
        )
        self.slots[slot] = trying
        self.report()
        full = ref.version in self.fleet.full_disks
        if held.last_verified == ref or (self.fleet.installs(self.name, ref) and not full):
            self.slots[slot] = SlotReport(
                "idle",
                active=ref,
                last_verified=ref,
                attempted=self.generation,
                outcome="committed",
            )
        else:
            if not full:
                self.faulty.add(ref.digest)
            self.slots[slot] = SlotReport(
                "idle",
                active=held.active,
                last_verified=held.last_verified,
                attempted=self.generation,
                outcome="rolled_back",
                detail="the disk is full" if full else "golden samples differ",
            )

    def serve(self, requests=10, labelled=10, errors=0):
        """Answer requests of one window with what is active, and keep the counts until acked."""
        for slot, held in self.slots.items():
            if held.active is None:
                continue
            self.sequence += 1
            self.sent[held.active.version] += requests
            right = round(labelled * self.fleet.accuracy(held.active))
            self.outbox[self.sequence] = encode(
                Telemetry(
                    self.name,
                    self.boot,
                    self.sequence,
                    slot,
                    held.active,
                    0.0,
                    0.0,
                    0.5,
                    requests,
                    {"timeout": errors} if errors else {},
                    labelled=labelled,
                    correct=right,
                )
            )
        self.flush()

    def flush(self):
        for payload in list(self.outbox.values()):
            self.link.publish(self._up("telemetry"), payload)

    def event(self, kind="rollback", message="went back"):
        self.sequence += 1
        said = Event(self.name, self.boot, self.sequence, kind, "warning", message, 0.0, 0.0)
        self.link.publish(self._up("event"), encode(said))
        return said

    def version(self, slot="kws"):
        held = self.slots.get(slot)
        return held.active.version if held and held.active else None


class SimFleet:
    """Controller, store, registry and devices over one broker in memory."""

    name = FLEET

    def __init__(self, folder, devices=4, faults=None, seed=0):
        self.folder = folder
        self.clock = Clock()
        self.broker = MemoryBroker(faults or Faults(seed=seed), immediate=False)
        self.bad_installs = set()  # versions that no device can install
        self.full_disks = set()  # versions that no device has room for
        self.accuracies = {}
        trusted = folder / "trust"
        fresh = not trusted.exists()
        self.trust = TrustRepository.create(trusted) if fresh else TrustRepository(trusted)
        self.keys = DirectorKeys((self.trust.director_signer.public_key,))
        self.open()
        self.devices = {f"d{i:03}": None for i in range(devices)}
        for name in self.devices:
            self.devices[name] = SimDevice(self, name)
            self.devices[name].link.open()
        self.settle()

    def open(self):
        """Start the server's part; again after ``close``, on the same folder."""
        self.store = Store.at(self.folder / "fleet.db")
        link = MemoryLink(self.broker, f"fleet-{random.getrandbits(32):x}")
        self.registry = Registry(self.folder / "registry", self.trust)
        self.scratch = Scratch(self.folder / "scratch", self.registry)
        self.blocks = BlockServer(link, self.scratch, self.trust.metadata)
        self.controller = Controller(
            FLEET,
            self.store,
            link,
            self.trust.director_signer,
            self.blocks,
            scratch=self.scratch,
            clock=self.clock,
        )
        self.services = Services(
            self.store,
            self.controller,
            self.registry,
            lambda: self.trust.root_bytes,
            ("127.0.0.1", 1883),
            self.scratch,
        )
        self.link = link
        link.open()

    def close(self):
        self.link.close()
        self.store.close()

    def device_link(self, name, will):
        return MemoryLink(self.broker, name, will)

    def installs(self, _device, ref):
        return ref.version not in self.bad_installs

    def accuracy(self, ref):
        return self.accuracies.get(ref.version, 0.95)

    def settle(self):
        """Deliver and work off until nothing moves."""
        for _ in range(1000):
            moved = self.broker.deliver()
            self.controller.work_off()
            if not moved:
                return
        raise AssertionError("the fleet does not come to rest")

    def run(self, seconds, traffic=True, step=1.0):
        """Let time pass, with traffic on every device that is connected."""
        for _ in range(int(seconds / step)):
            self.clock.now += step
            if traffic:
                for device in self.devices.values():
                    device.serve()
            self.settle()

    def push(self, version, model="kws", seed=None):
        number = sum(map(int, version.split("."))) if seed is None else seed
        bundle = tiny_bundle(self.folder / f"made-{version}-{number}", model, version, seed=number)
        row = self.services.push(bundle.path, "tests")
        return Ref(row.model, row.version, row.digest)

    def deploy(self, version, model="kws", **more):
        row = self.services.create_rollout(RolloutRequest(model, version, **more), "tests")
        self.settle()
        return row.id

    def versions(self, slot="kws"):
        return {name: device.version(slot) for name, device in self.devices.items()}
