"""A real fleet server, and many small devices that speak its messages over a real link.

The devices share one connection (a thousand of their own would be a test of this machine), obey
signed orders, take a moment for each step of an update, and send a window of counts every second.
"""

import json
import math
import random
import subprocess
import sys
import threading
import time

from edgeml.errors import NotTrustedError
from edgeml.fleet.client import FleetClient
from edgeml.hardware import DeviceFacts
from edgeml.link.mqtt import MqttLink
from edgeml.messages import topics
from edgeml.messages.payloads import (
    Birth,
    Event,
    Reported,
    SlotReport,
    State,
    Telemetry,
    encode,
)
from edgeml.stats.buckets import LatencyHistogram
from edgeml.trust.desired import DirectorKeys, verify
from edgeml.trust.repository import TrustRepository

FLEET = "default"
STEPS = ("fetch", "verify", "stage", "warmup", "trial")
MACHINES = {
    "cpu-x86-64": DeviceFacts("x86_64", "Linux", "Intel N100", 4, 8 << 30, ("avx2", "vnni"),
                              runtimes={"onnxruntime": "1.31.1"}, os="Debian GNU/Linux 12"),
    "cpu-arm64": DeviceFacts("aarch64", "Linux", "Cortex-A76", 4, 4 << 30, ("neon", "dotprod"),
                             runtimes={"onnxruntime": "1.31.1"}, os="Debian GNU/Linux 12"),
}  # fmt: skip


class FleetServer:
    """``edgeml fleet serve`` in a process of its own."""

    def __init__(self, folder):
        self.folder = folder
        words = ["--data", str(folder), "--http", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--json"]
        self._log = (folder.parent / f"{folder.name}.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgeml.cli", "fleet", "serve", *words],
            stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=folder.parent,
        )  # fmt: skip
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise AssertionError((folder.parent / f"{folder.name}.log").read_text())
        told = json.loads(line)
        self.url, self.user, self.password = told["url"], told["user"], told["password"]
        self.mqtt_port = int(told["mqtt"].rpartition(":")[2])
        self.client = FleetClient(self.url, (folder / "admin-token").read_text().strip())

    def close(self):
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


class SwarmDevice:
    """One device: what it holds, and what it is doing."""

    def __init__(self, swarm, name, profile="cpu-x86-64", tags=None):
        self.swarm, self.name, self.profile, self.tags = swarm, name, profile, tags or {}
        self.generation, self.sequence = 0, 0
        self.slot = "digits"
        self.held = SlotReport("idle")
        self.online, self.health = True, "ok"
        self.speed = swarm.random.uniform(0.7, 1.6)

    def publish(self, kind, message, retain=False):
        topic = topics.up(FLEET, self.name, kind)
        while not self.swarm.link.publish(topic, encode(message), retain=retain):
            time.sleep(0.01)  # the link takes no more for now

    def next(self):
        self.sequence += 1
        return self.name, "b1", self.sequence

    def announce(self):
        facts = MACHINES[self.profile]
        self.publish("birth", Birth(self.name, "b1", "0.1.0", facts, self.profile, self.tags), True)
        self.publish("state", State(self.name, "b1", self.online), True)
        self.report()

    def report(self):
        slots = {self.slot: self.held} if self.held != SlotReport("idle") else {}
        said = Reported(*self.next(), self.generation, slots, health=self.health)
        self.publish("reported", said, True)

    def leave(self):
        self.online = False
        self.publish("state", State(self.name, "b1", False), True)

    def degrade(self, why):
        self.health = "degraded"
        self.held = self._with(degraded=why, placement="CPUExecutionProvider")
        self.report()
        self.say("fallback", "warning", why)

    def say(self, kind, severity, message):
        self.publish("event", Event(*self.next(), kind, severity, message, 0.0, 0.0))

    def obey(self, envelope):
        try:
            wanted = verify(envelope, self.swarm.keys, fleet=FLEET, device=self.name,
                            seen=self.generation, now=None)  # fmt: skip
        except NotTrustedError:
            return
        if wanted is None or not self.online:
            return
        self.generation = wanted.generation
        for slot, target in wanted.slots.items():
            self.slot = slot
            if self.held.active == target.ref:
                self.held = self._with(phase="idle", attempted=self.generation, candidate=None,
                                       outcome="committed", progress=(0, 0))  # fmt: skip
            else:
                self.held = self._with(phase="fetch", candidate=target.ref, outcome="",
                                       attempted=self.generation, detail="",
                                       progress=(40_000, 188_000))  # fmt: skip
        self.report()

    def _with(self, **changes):
        values = {name: getattr(self.held, name) for name in SlotReport.__struct_fields__}
        return SlotReport(**{**values, **changes})

    def advance(self):
        """One step of an update."""
        if self.held.candidate is None or not self.online:
            return
        step = STEPS.index(self.held.phase) + 1
        if step < len(STEPS):
            self.held = self._with(phase=STEPS[step], progress=(0, 0))
        else:
            ref = self.held.candidate
            self.held = SlotReport("idle", active=ref, last_verified=ref, attempted=self.generation,
                                   outcome="committed", variant=f"{self.profile}.onnxruntime.int8",
                                   placement="CPUExecutionProvider",
                                   degraded=self.held.degraded)  # fmt: skip
            self.say("commit", "info", f"{ref.model} {ref.version} serves now")
        self.report()

    def serve(self, seconds):
        """Send the counts of a window."""
        ref, rng = self.held.active, self.swarm.random
        if ref is None or not self.online:
            return
        requests = max(1, round(seconds * 8 * self.speed * (1 + 0.2 * math.sin(time.time() / 9))))
        histogram = LatencyHistogram()
        for _ in range(requests):
            histogram.add(rng.lognormvariate(-6.1, 0.32) * self.speed)
        right = sum(rng.random() < self.swarm.accuracy.get(ref.version, 0.97) for _ in range(6))
        window = Telemetry(*self.next(), self.slot, ref, 0.0, 0.0, seconds, requests,
                           latency=tuple(histogram.counts), labelled=6, correct=right)  # fmt: skip
        self.publish("telemetry", window)


class Swarm:
    """All devices, and the thread that moves them."""

    def __init__(self, server, seed=1):
        self.server, self.random = server, random.Random(seed)
        self.accuracy, self.devices = {}, {}
        self.keys = DirectorKeys(
            (TrustRepository(server.folder / "trust").director_signer.public_key,)
        )
        self.link = MqttLink("127.0.0.1", server.mqtt_port, "swarm")
        self.link.subscribe(f"edgeml/v1/{FLEET}/+/down/desired", self._order)
        self.link.open()
        assert self.link.wait_connected(10)
        self.pace = 0.25  # seconds per step of an update
        self.traffic = True
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, name, profile="cpu-x86-64", **tags):
        device = SwarmDevice(self, name, profile, tags)
        with self._lock:
            self.devices[name] = device
            device.announce()
        return device

    def _order(self, message):
        device = self.devices.get(topics.parse(message.topic).device)
        if device is not None and message.payload:
            with self._lock:
                device.obey(message.payload)

    def _run(self):
        ticks = 0
        while not self._stopped.wait(self.pace):
            ticks += 1
            with self._lock:
                for device in list(self.devices.values()):
                    device.advance()
                    if self.traffic and ticks % round(1 / self.pace) == 0:
                        device.serve(1.0)

    def wait(self, condition, seconds=20):
        """Wait until ``condition(client)`` is true, and return what it returned."""
        deadline = time.monotonic() + seconds
        while not (found := condition(self.server.client)):
            assert time.monotonic() < deadline, f"not within {seconds} s"
            time.sleep(0.1)
        return found

    def close(self):
        self._stopped.set()
        self._thread.join()
        self.link.close()
