"""The in-memory broker's own powers: stepwise delivery and faults from a seed."""

from collections import Counter

import pytest

from edgeml.link.base import Will
from edgeml.link.memory import MAX_QUEUED, Faults, MemoryBroker, MemoryLink


def pair(broker, pattern="t"):
    got = []
    reader, writer = MemoryLink(broker, "r"), MemoryLink(broker, "w")
    reader.subscribe(pattern, lambda m: got.append(m.payload))
    reader.open()
    writer.open()
    return reader, writer, got


def run(faults, qos=1, count=200):
    broker = MemoryBroker(faults, immediate=False)
    _, writer, got = pair(broker)
    for index in range(count):
        writer.publish("t", str(index).encode(), qos=qos)
    broker.deliver()
    return got


SENT = [str(index).encode() for index in range(200)]


def test_without_faults_everything_comes_once_in_order():
    assert run(None) == SENT


def test_delivery_is_by_step():
    broker = MemoryBroker(immediate=False)
    _, writer, got = pair(broker)
    writer.publish("t", b"1")
    writer.publish("t", b"2")
    assert got == []
    assert broker.deliver(limit=1) == 1
    assert got == [b"1"]
    assert broker.deliver() == 1
    assert broker.deliver() == 0


def test_the_same_seed_gives_the_same_faults():
    faults = Faults(seed=7, drop=0.2, duplicate=0.2, reorder=0.2)
    assert run(faults) == run(faults)
    assert run(faults) != run(Faults(seed=8, drop=0.2, duplicate=0.2, reorder=0.2))


def test_qos_0_is_lost_and_qos_1_comes_late():
    lost = run(Faults(seed=1, drop=0.3), qos=0)
    assert set(lost) < set(SENT)
    late = run(Faults(seed=1, drop=0.3), qos=1)
    assert sorted(late) == sorted(SENT)
    assert late != SENT


def test_duplicates_and_reordering():
    doubled = Counter(run(Faults(seed=1, duplicate=0.3)))
    assert set(doubled) == set(SENT)
    assert set(doubled.values()) == {1, 2}
    shuffled = run(Faults(seed=1, reorder=0.3))
    assert shuffled != SENT
    assert sorted(shuffled) == sorted(SENT)


def test_a_session_keeps_a_thousand_and_drops_the_newest():
    broker = MemoryBroker()
    reader, writer, _ = pair(broker)
    reader.close()
    for index in range(MAX_QUEUED + 50):
        writer.publish("t", str(index).encode())
        writer.publish("t", b"qos 0 waits for nobody", qos=0)
    got = []
    back = MemoryLink(broker, "r")
    back.subscribe("t", lambda m: got.append(m.payload))
    back.open()
    assert got == [str(index).encode() for index in range(MAX_QUEUED)]


def test_a_second_link_takes_the_session_over():
    broker = MemoryBroker()
    first, _, got = pair(broker)
    told = []
    first.on_connection(told.append)
    second = MemoryLink(broker, "r")
    second.open()
    assert (first.connected, second.connected, told) == (False, True, [False])
    assert got == []


def test_a_stopped_broker_publishes_no_will():
    broker = MemoryBroker()
    link = MemoryLink(broker, "d", Will("state", b"gone"))
    link.open()
    broker.stop()
    assert not link.connected
    assert broker.retained == {}
    broker.start()
    broker.cut("d")
    assert broker.retained == {"state": b"gone"}


def test_a_handler_that_is_interrupted_leaves_the_broker_usable():
    broker = MemoryBroker(immediate=False)
    _, writer, got = pair(broker)
    interrupt = MemoryLink(broker, "i")

    def stop(message):
        raise KeyboardInterrupt

    interrupt.subscribe("stop", stop)
    interrupt.open()
    writer.publish("stop", b"")
    with pytest.raises(KeyboardInterrupt):
        broker.deliver()
    writer.publish("t", b"on")
    broker.deliver()
    assert got == [b"on"]
