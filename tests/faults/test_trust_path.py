"""Flipped, replayed, reordered and swapped messages change nothing, on both brokers."""

import random

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner

from edgeml.messages.payloads import DesiredState, SlotTarget, encode
from edgeml.trust.desired import sign
from tests.agent.test_supervisor import World, forks  # noqa: F401 - a fixture
from tests.support.broker import real_broker
from tests.support.fleetlet import FLEET


@pytest.fixture(params=["mosquitto", "amqtt"])
def world(request, tmp_path, forks):  # noqa: F811 - pytest passes fixtures by name
    with real_broker(request.param) as broker:
        found = World(tmp_path, broker, forks)
        found.start()
        yield found
        found.close()


def pong(world):
    """Wait until everything that was sent before was handled by the link."""
    call = world.fleet.call("ping")
    world.fleet.wait(lambda: [r for r in world.fleet.replies if r.id == call])


def test_orders_that_are_not_true_change_nothing(world):
    fleet = world.fleet
    first = world.install()
    second = world.add("2.0.0")
    good = fleet.envelope(second, 9)
    places = random.Random(1).sample(range(len(good)), 6)
    false = [bytes([*good[:i], good[i] ^ 1, *good[i + 1 :]]) for i in places]
    false.append(sign(_order(second, generation=9), CryptoSigner.generate_ed25519()))
    false.append(sign(_order(second, device="other", generation=9), fleet.trust.director_signer))
    false.append(sign(_order(second, generation=0), fleet.trust.director_signer))
    false.append(
        sign(_order(second, generation=9, not_after=1_000_000_000.0), fleet.trust.director_signer)
    )
    false.append(sign(_order(second, generation=1), fleet.trust.director_signer))
    refused = len(false) - 1  # the last is a true message of a generation that was seen
    for envelope in false:
        fleet.send(envelope)
    fleet.wait(
        lambda: len([e for e in fleet.events if e.kind == "not_trusted"]) == refused, what="events"
    )
    pong(world)
    assert world.state().generation == 1
    assert world.state().slot("main").active == first
    assert fleet.reported.slots["main"].active == first
    # An old order again, after a newer one.
    old = fleet.envelopes[0]
    fleet.generation = 9
    fleet.wait_outcome(fleet.deploy(second), "committed")
    fleet.send(old)
    fleet.wait(lambda: [e for e in fleet.events if "expected more than 10" in e.message])
    assert world.state().generation == 10
    assert fleet.reported.slots["main"].active == second


def _order(ref, *, generation, device="dev1", not_after=0.0):
    slots = {"main": SlotTarget(ref)}
    return DesiredState(FLEET, device, generation, slots, not_after=not_after)


def flipped(reply, _history):
    data = bytes([*reply.data[:-1], reply.data[-1] ^ 0x20]) if reply.data else b""
    return [encode(msgspec.structs.replace(reply, data=data))]


def swapped(reply, history):
    other = next((r for r in reversed(history) if r.name != reply.name and r.data), reply)
    return [encode(msgspec.structs.replace(reply, data=other.data, total=other.total))]


def garbage(reply, _history):
    return [encode(reply)[: len(encode(reply)) // 2], b"", b"\xff" * 100]


@pytest.mark.parametrize("attack", [flipped, swapped, garbage])
def test_pieces_that_are_not_true_change_nothing(world, attack):
    fleet = world.fleet
    first = world.install()
    second = world.add("2.0.0", size=300_000)
    history, hits = [], []

    def tamper(reply):
        history.append(reply)
        hits.append(reply.name)
        return attack(reply, history)

    fleet.tamper = tamper
    generation = fleet.deploy(second)
    fleet.wait(lambda: fleet.reported.slots["main"].phase == "fetch", what="fetch")
    fleet.wait(lambda: len(hits) >= 4, what="attacks")
    assert world.state().slot("main").last_verified == first
    assert fleet.reported.slots["main"].active == first
    # When it is over, the update goes on by itself: nothing was poisoned.
    fleet.tamper = None
    report = fleet.wait_outcome(generation, "committed", seconds=60)
    assert report.active == second
    assert fleet.reported.quarantined == ()


def test_replayed_and_reordered_pieces_change_nothing(world):
    fleet = world.fleet
    second = world.add("2.0.0", size=1_500_000)
    history, held = [], []

    def tamper(reply):
        history.append(encode(reply))
        out = [*history[-3:-1]]  # replayed
        held.append(encode(reply))
        if len(held) == 2 or reply.kind == "tuf" or len(reply.data) < 128 << 10:
            out += reversed(held)  # reordered
            held.clear()
        return out

    fleet.tamper = tamper
    report = fleet.wait_outcome(fleet.deploy(second), "committed")
    assert report.active == second
