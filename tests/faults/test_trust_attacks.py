"""Attacks on trust: each is refused as NotTrustedError, and nothing on disk changes."""

import base64
import dataclasses
import json
import threading
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from edgeml.errors import EdgemlError, NotTrustedError, UnreachableError
from edgeml.link.base import LinkMessage
from edgeml.link.mqtt import MqttLink
from edgeml.messages import topics
from edgeml.messages.payloads import DesiredState, Ref, SlotTarget
from edgeml.trust.client import TrustClient
from edgeml.trust.desired import MAX_ENVELOPE, PAYLOAD_TYPE, DirectorKeys, sign, verify
from edgeml.trust.repository import LIFETIME, TrustRepository
from tests.support.broker import real_broker

DIRECTOR = CryptoSigner.generate_ed25519()
KEYS = DirectorKeys((DIRECTOR.public_key,))


def desired(generation=1, fleet="f", device="d", **more):
    ref = Ref("kws", f"1.0.{generation}", "sha256:" + "0" * 64)
    return DesiredState(fleet, device, generation, {"main": SlotTarget(ref)}, **more)


def check(envelope, seen=0, now=1000.0, keys=KEYS):
    return verify(envelope, keys, fleet="f", device="d", seen=seen, now=now)


def refused(envelope, **how):
    with pytest.raises(NotTrustedError):
        check(envelope, **how)


# -- desired state ------------------------------------------------------------------------------

GOOD = sign(desired(3), DIRECTOR)


def test_the_good_one_is_accepted():
    assert check(GOOD) == desired(3)
    assert check(GOOD, now=None) == desired(3)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(position, mask):
    data = bytearray(GOOD)
    data[position] ^= mask
    refused(bytes(data))


def test_every_flipped_bit_is_refused():
    for position in range(len(GOOD)):
        for bit in range(8):
            data = bytearray(GOOD)
            data[position] ^= 1 << bit
            refused(bytes(data))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=4))
def test_truncated_and_lengthened_envelopes_are_refused(position, tail):
    refused(GOOD[:position] + tail)
    refused(GOOD + b" " + tail)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_refused(data):
    refused(data)


def test_older_generations_are_refused_and_the_same_one_is_no_news():
    refused(GOOD, seen=4)
    assert check(GOOD, seen=3) is None
    assert check(GOOD, seen=2) == desired(3)


@pytest.mark.parametrize("generation", [0, -1])
def test_generations_begin_at_one(generation):
    refused(sign(desired(generation), DIRECTOR))


def test_reordered_messages_only_ever_raise_the_generation():
    seen = 0
    for generation in (2, 1, 5, 3, 5, 4, 6):
        envelope = sign(desired(generation), DIRECTOR)
        if generation < seen:
            refused(envelope, seen=seen)
        elif generation == seen:
            assert check(envelope, seen=seen) is None
        else:
            seen = check(envelope, seen=seen).generation
    assert seen == 6


@pytest.mark.parametrize("other", [{"device": "e"}, {"fleet": "g"}])
def test_what_is_for_others_is_refused(other):
    refused(sign(desired(9, **other), DIRECTOR))


def test_another_key_is_refused_under_any_name():
    stranger = CryptoSigner.generate_ed25519()
    refused(sign(desired(3), stranger))
    forged = json.loads(sign(desired(3), stranger))
    forged["signatures"][0]["keyid"] = DIRECTOR.public_key.keyid
    refused(json.dumps(forged, separators=(",", ":")).encode())


def test_no_signature_and_no_key_are_refused():
    bare = json.loads(GOOD)
    bare["signatures"] = []
    refused(json.dumps(bare, separators=(",", ":")).encode())
    refused(GOOD, keys=DirectorKeys(()))
    refused(GOOD, keys=DirectorKeys(KEYS.keys, threshold=2))


def test_one_key_does_not_count_twice():
    second = CryptoSigner.generate_ed25519()
    two = DirectorKeys((DIRECTOR.public_key, second.public_key), threshold=2)
    twice = json.loads(GOOD)
    twice["signatures"] *= 2
    refused(json.dumps(twice, separators=(",", ":")).encode(), keys=two)
    assert check(sign(desired(3), [DIRECTOR, second]), keys=two) == desired(3)


def test_a_signature_for_another_purpose_is_refused():
    other = json.loads(GOOD)
    other["payloadType"] = "application/vnd.in-toto+json"
    refused(json.dumps(other, separators=(",", ":")).encode())
    assert PAYLOAD_TYPE in GOOD.decode()


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"payload":' * 20_000,
        b'{"payload":"' + b"A" * MAX_ENVELOPE + b'"}',
        b"null",
        b"{}",
        b"",
    ],
    ids=["deep", "deep-objects", "oversized", "null", "empty-object", "empty"],
)
def test_hostile_json_is_refused(data):
    refused(data)


def test_hostile_json_is_refused_even_when_it_is_signed():
    for payload in (b"[" * 50_000, b"null", b"{}", b'{"generation": 1e400}', b"\xff"):
        refused(signed_raw(payload))


def signed_raw(payload):
    """Return a canonical envelope over any payload."""
    head = b"DSSEv1 %d %b %d " % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload))
    signature = DIRECTOR.sign(head + payload)
    return msgspec.json.encode(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [
                {
                    "keyid": signature.keyid,
                    "sig": base64.b64encode(bytes.fromhex(signature.signature)).decode(),
                }
            ],
        }
    )


def test_a_newer_writer_is_read_and_a_newer_schema_is_refused():
    plain = msgspec.json.decode(msgspec.json.encode(desired(3)))
    assert check(signed_raw(msgspec.json.encode(plain | {"from_the_future": [1]}))) == desired(3)
    refused(signed_raw(msgspec.json.encode(plain | {"schema": 2})))


def test_not_after_counts_with_a_trusted_clock_only():
    envelope = sign(desired(3, not_after=500.0), DIRECTOR)
    refused(envelope, now=501.0)
    assert check(envelope, now=499.0).generation == 3
    assert check(envelope, now=None).generation == 3


# -- TUF ----------------------------------------------------------------------------------------


class Server:
    """A repository, and a fetch that can lie: ``lies`` maps a file name to what is sent."""

    def __init__(self, folder):
        self.clock = datetime.now(UTC)
        self.repository = TrustRepository.create(folder, lambda: self.clock)
        self.lies = {}
        self.asked = []

    def fetch(self, name):
        self.asked.append(name)
        lie = self.lies.get(name)
        if isinstance(lie, Exception):
            raise lie
        return self.repository.metadata(name) if lie is None else lie

    def snapshot(self):
        """Return all metadata as it is now, by file name."""
        folder = self.repository._folder / "metadata"
        return {path.name: path.read_bytes() for path in folder.glob("*.json")}


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path / "server")
    made.repository.add_target("bundles/kws/1.0.0", b"one")
    return made


@pytest.fixture
def client(tmp_path, server):
    made = TrustClient(
        tmp_path / "client",
        server.repository.root_bytes,
        server.fetch,
        lambda: server.clock.timestamp(),
    )
    made.refresh()
    return made


def on_disk(folder):
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def attack_fails(client, family=NotTrustedError):
    """The refresh is refused; disk and answers stay; the truth is accepted afterwards."""
    before = on_disk(client._folder)
    with pytest.raises(family):
        client.refresh()
    assert on_disk(client._folder) == before
    assert client.target("bundles/kws/1.0.0").length == 3
    assert client.director_keys().keys


def grown(server):
    """Publish one more target; return the names of the files that are new or changed."""
    before = server.snapshot()
    server.repository.add_target("bundles/kws/1.1.0", b"more")
    return [name for name, data in server.snapshot().items() if before.get(name) != data]


def test_any_flipped_byte_of_new_metadata_is_refused(client, server):
    names = grown(server)
    assert sorted(name.split(".")[-2] for name in names) == ["snapshot", "targets", "timestamp"]
    truth = server.snapshot()
    for name in names:
        for position in range(0, len(truth[name]), 7):
            data = bytearray(truth[name])
            data[position] ^= 0x11
            server.lies = {name: bytes(data)}
            if is_same_json(data, truth[name]):
                continue
            attack_fails(client)
    server.lies = {}
    client.refresh()
    assert client.target("bundles/kws/1.1.0").length == 4


def is_same_json(one, other):
    try:
        return json.loads(bytes(one)) == json.loads(other)
    except ValueError:
        return False


def test_truncated_oversized_and_deep_metadata_is_refused(client, server):
    for name in grown(server):
        good = server.repository.metadata(name)
        for lie in (b"", good[:-1], good[: len(good) // 2], b"[" * 10_000, b" " * (5 << 20)):
            server.lies = {name: lie}
            attack_fails(client)


def test_replayed_metadata_is_refused(client, server):
    old = server.snapshot()
    grown(server)
    client.refresh()
    server.lies = {"timestamp.json": old["timestamp.json"]}
    attack_fails(client)
    assert client.target("bundles/kws/1.1.0").length == 4


def test_mixed_metadata_is_refused(client, server):
    grown(server)
    first = server.snapshot()
    server.repository.add_target("bundles/kws/1.2.0", b"newest")
    newest = server.snapshot()
    for role in ("targets", "snapshot"):
        versions = sorted(n for n in newest if f".{role}." in n)
        server.lies = {versions[-1]: newest[versions[-2]]}
        attack_fails(client)
    server.lies = {"timestamp.json": first["timestamp.json"], "3.snapshot.json": b"{}"}
    attack_fails(client)


def test_frozen_metadata_is_refused_by_a_trusted_clock(client, server, tmp_path):
    server.clock += LIFETIME["timestamp"] + timedelta(seconds=1)
    attack_fails(client)
    blind = TrustClient(
        tmp_path / "blind", server.repository.root_bytes, server.fetch, lambda: None
    )
    blind.refresh()
    assert blind.target("bundles/kws/1.0.0").length == 3
    server.repository.refresh()
    client.refresh()


def test_versions_never_fall_even_when_they_are_signed(client, server):
    """Whoever holds the online keys cannot take a newer version back."""
    server.repository.refresh()
    client.refresh()
    document = Metadata.from_bytes(server.repository.metadata("timestamp.json"))
    document.signed.version = 1
    for signer in server.repository._signers("timestamp"):
        document.sign(signer)
    server.lies = {"timestamp.json": document.to_bytes()}
    attack_fails(client)


def test_another_repository_is_refused(client, server, tmp_path):
    stranger = TrustRepository.create(tmp_path / "stranger")
    for _ in range(5):
        stranger.refresh()
    client._fetch = stranger.metadata
    attack_fails(client)


def test_a_new_root_must_be_signed_by_the_old_one(client, server, tmp_path):
    stranger = TrustRepository.create(tmp_path / "stranger")
    document = Metadata.from_bytes(stranger.root_bytes)
    document.signed.version = 2
    for signer in stranger._signers("root"):
        document.sign(signer)
    server.lies = {"2.root.json": document.to_bytes()}
    attack_fails(client)


def test_an_endless_chain_of_roots_is_cut(client, server):
    server.lies = {f"{n}.root.json": server.repository.root_bytes for n in range(2, 100)}
    attack_fails(client)
    assert len([name for name in server.asked if name.endswith("root.json")]) < 10


def test_what_cannot_be_fetched_is_tried_later(client, server):
    for name in grown(server):
        for error in (UnreachableError("away"), FileNotFoundError(name), TimeoutError()):
            server.lies = {name: error}
            attack_fails(client, UnreachableError)
    server.lies = {}
    client.refresh()


def test_a_target_that_is_not_listed_is_refused(client):
    for path in ("bundles/kws/9.9.9", "director/x", "", "../root.json"):
        with pytest.raises(NotTrustedError, match="not listed"):
            client.target(path)


def test_damaged_metadata_on_disk_is_noticed_and_mended(client, server, tmp_path):
    for path in (tmp_path / "client").rglob("*.json"):
        if path.is_symlink():
            continue
        data = path.read_bytes()
        path.write_bytes(data.replace(b'"sig"', b'"gis"'))
    again = TrustClient(tmp_path / "client", server.repository.root_bytes, server.fetch)
    with pytest.raises(EdgemlError):
        again.target("bundles/kws/1.0.0")
    again.refresh()
    assert again.target("bundles/kws/1.0.0").length == 3


# -- through a real broker ----------------------------------------------------------------------


@dataclasses.dataclass
class Device:
    """Verifies like a device: accepts what it may, and keeps the highest generation."""

    name: str
    seen: int = 0
    accepted: list = dataclasses.field(default_factory=list)
    refusals: int = 0
    marks: set = dataclasses.field(default_factory=set)
    news: threading.Condition = dataclasses.field(default_factory=threading.Condition)

    def __call__(self, message: LinkMessage):
        with self.news:
            if message.topic.endswith("/rpc"):
                self.marks.add(message.payload)
            else:
                self.take(message.payload)
            self.news.notify_all()

    def take(self, payload):
        try:
            state = verify(payload, KEYS, fleet="f", device=self.name, seen=self.seen, now=1000.0)
        except NotTrustedError:
            self.refusals += 1
            return
        if state is not None:
            self.seen = state.generation
            self.accepted.append(state.generation)

    def settle(self, sender, mark):
        """Wait until everything that ``sender`` sent before has been judged."""
        assert sender.publish(topics.down("f", self.name, "rpc"), mark)
        with self.news:
            assert self.news.wait_for(lambda: mark in self.marks, 20)


@pytest.mark.parametrize("kind", ["mosquitto", "amqtt"])
def test_attacks_through_a_broker_change_nothing(kind):
    with real_broker(kind) as broker:
        links = [MqttLink("127.0.0.1", broker.port, n, protocol="3.1.1") for n in ("d", "x")]
        device_link, attacker = links
        device = Device("d")
        device_link.subscribe(topics.all_down("f", "d"), device)
        try:
            for link in links:
                link.open()
                assert link.wait_connected(20)
            slot = topics.down("f", "d", "desired")
            good = {g: sign(desired(g), DIRECTOR) for g in (1, 2, 3)}
            attacker.publish(slot, good[2], retain=True)
            device.settle(attacker, b"start")
            assert (device.seen, device.refusals) == (2, 0)
            flipped = bytearray(good[3])
            flipped[100] ^= 1
            attacks = [
                good[1],  # replayed
                sign(desired(9, device="e"), DIRECTOR),  # swapped
                sign(desired(9, fleet="g"), DIRECTOR),
                bytes(flipped),
                sign(desired(9), CryptoSigner.generate_ed25519()),
                good[3][:-5],
                b"[" * 100_000,
                b"x" * (MAX_ENVELOPE + 1),
            ]
            for attack in attacks:
                attacker.publish(slot, attack, retain=True)
            device.settle(attacker, b"attacked")
            assert (device.seen, device.refusals) == (2, len(attacks))
            for generation in (3, 1, 2, 3):  # reordered and doubled
                attacker.publish(slot, good[generation], retain=True)
            device.settle(attacker, b"end")
            assert device.accepted == [2, 3]
        finally:
            for link in links:
                link.close()
