"""A fleet for one device, in a few lines, with the real trust repository and real bundles."""

import json
import threading
import time

import msgspec
import numpy as np

from edgeml.bundle import Bundle, blob_ref, pack
from edgeml.manifest import (
    Evidence,
    EvidenceState,
    Lineage,
    Manifest,
    Tolerance,
    Variant,
)
from edgeml.messages import topics
from edgeml.messages.enrolment import Enrolment
from edgeml.messages.payloads import (
    BlockReply,
    BlockRequest,
    DesiredState,
    Event,
    Ref,
    Reported,
    Rpc,
    SlotTarget,
    State,
    Telemetry,
    decode,
    encode,
)
from edgeml.trust import bundle_target
from edgeml.trust.desired import sign
from edgeml.trust.repository import TrustRepository

FLEET = "testfleet"
PROFILE = "cpu-x86-64"


def tiny_bundle(folder, name="tiny", version="1.0.0", size=1000, seed=None):
    """A bundle whose model is random bytes: enough for a data plane that runs nothing."""
    rng = np.random.default_rng(abs(hash(version)) % 1000 if seed is None else seed)
    model = rng.bytes(size)
    entry = blob_ref("cpu.tiny/model.bin", model)
    report = blob_ref("report/report.html", b"<html>" + version.encode())
    variant = Variant(
        id="cpu.tiny",
        profile=PROFILE,
        runtime="onnxruntime",
        precision="fp32",
        recipe="tiny",
        files=(entry,),
        entry=entry.path,
        inputs=(),
        outputs=(),
        evidence=Evidence(EvidenceState.CHECKED, "tests"),
        tolerance=Tolerance(0.0, 0.0),
    )
    manifest = Manifest(
        name=name,
        version=version,
        inputs=(),
        outputs=(),
        variants=(variant,),
        lineage=Lineage("tiny.bin", "sha256:" + "0" * 64, "", 0, {}, {}),
        report=(report,),
    )
    files = {entry.path: model, report.path: b"<html>" + version.encode()}
    return pack(manifest, files, folder / f"{name}-{version}")


class Fleetlet:
    """Publishes bundles, signs desired states, serves blocks, and remembers what came in.

    ``tamper``: a function from BlockReply to a list of payloads that are sent instead.
    """

    def __init__(self, folder, link, device="dev1", port=0):
        self.device, self.link, self.port = device, link, port
        self.trust = TrustRepository.create(folder / "trust")
        self.bundles = {}
        self.blobs = {}
        self.generation = 0
        self.asked = []
        self.tamper = None
        self.silent = False
        self.ack = True
        self.reported = None
        self.states, self.births, self.events, self.windows, self.replies = [], [], [], [], []
        self.envelopes = []
        self._news = threading.Condition()
        self._seen = set()
        for kind in ("reported", "state", "birth", "event", "telemetry", "rpc", "block"):
            link.subscribe(topics.up(FLEET, device, kind), getattr(self, f"_on_{kind}"))

    def enrolment(self):
        return Enrolment(
            fleet=FLEET,
            device=self.device,
            broker_host="127.0.0.1",
            broker_port=self.port,
            root=self.trust.root_bytes.decode(),
            profile=PROFILE,
        )

    def add(self, bundle: Bundle) -> Ref:
        """Publish a bundle (a folder)."""
        manifest = bundle.manifest
        ref = Ref(manifest.name, manifest.version, bundle.digest)
        self.trust.add_target(bundle_target(ref.model, ref.version), bundle.oci_manifest)
        for path in (bundle.path / "blobs" / "sha256").iterdir():
            self.blobs["sha256:" + path.name] = path.read_bytes()
        self.bundles[ref.version] = ref
        return ref

    def envelope(self, ref, generation, slot="main", seconds=0.2, requests=1000, **extra):
        target = SlotTarget(ref, requests=requests, seconds=seconds) if ref is not None else None
        slots = {slot: target} if target is not None else {}
        desired = DesiredState(
            fleet=FLEET, device=self.device, generation=generation, slots=slots, **extra
        )
        return sign(desired, self.trust.director_signer)

    def deploy(self, ref, **options) -> int:
        """Sign and publish what the device should run (None: no word on it)."""
        self.generation += 1
        self.send(self.envelope(ref, self.generation, **options))
        return self.generation

    def send(self, envelope):
        self.envelopes.append(envelope)
        self.link.publish(topics.down(FLEET, self.device, "desired"), envelope, retain=True)

    def call(self, method, **params):
        rpc = Rpc(id=f"{method}-{len(self.replies)}", method=method, params=params)
        self.link.publish(topics.down(FLEET, self.device, "rpc"), encode(rpc))
        return rpc.id

    def wait(self, condition, seconds=30, what="condition"):
        """Wait until ``condition()`` is true; looked at whenever a message comes in."""
        deadline = time.monotonic() + seconds
        with self._news:
            while not (found := condition()):
                left = deadline - time.monotonic()
                assert left > 0, f"{what}: not within {seconds} s; reported: {self.reported}"
                self._news.wait(min(left, 1.0))
            return found

    def wait_outcome(self, generation, outcome, slot="main", seconds=30):
        """Wait until the device has finished an attempt."""

        def there():
            report = self.reported and self.reported.slots.get(slot)
            return (
                report
                and report.attempted >= generation
                and report.phase == "idle"
                and report.outcome == outcome
                and report
            )

        return self.wait(there, seconds, f"generation {generation} {outcome}")

    def _note(self, action):
        with self._news:
            action()
            self._news.notify_all()

    def _on_reported(self, message):
        self._note(lambda: setattr(self, "reported", decode(message.payload, Reported)))

    def _on_state(self, message):
        self._note(lambda: self.states.append(decode(message.payload, State)))

    def _on_birth(self, message):
        self._note(lambda: self.births.append(json.loads(message.payload)))

    def _on_rpc(self, message):
        self._note(lambda: self.replies.append(decode(message.payload, Rpc)))

    def _on_event(self, message):
        self._additive(decode(message.payload, Event), self.events)

    def _on_telemetry(self, message):
        self._additive(decode(message.payload, Telemetry), self.windows)

    def _additive(self, message, into):
        key = (message.boot, message.sequence)
        if key not in self._seen:
            self._seen.add(key)
            self._note(lambda: into.append(message))
        if self.ack:
            self.call("ack", boot=message.boot, sequences=[message.sequence])

    def _on_block(self, message):
        request = decode(message.payload, BlockRequest)
        self.asked.append(request)
        if self.silent:
            return
        reply = self._reply(request)
        payloads = [encode(reply)] if self.tamper is None else self.tamper(reply)
        for payload in payloads:
            self.link.publish(topics.down(FLEET, self.device, "block"), payload, qos=0)

    def _reply(self, request):
        reply = BlockReply(request.request, request.kind, request.name, request.offset)
        try:
            if request.kind == "tuf":
                data = self.trust.metadata(request.name)
            else:
                data = self.blobs[request.name]
        except (FileNotFoundError, KeyError):
            return msgspec.structs.replace(reply, error="not_found")
        piece = data[request.offset : request.offset + request.length]
        return msgspec.structs.replace(reply, total=len(data), data=piece)
