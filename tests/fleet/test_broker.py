"""The embedded broker: starts, answers, keeps, ends, and dies with its parent."""

import os
import select
import signal
import subprocess
import sys
import threading

import pytest

from edgeml.errors import UsageError
from edgeml.fleet.broker import EmbeddedBroker, answers, free_port, is_loopback
from edgeml.link.mqtt import MqttLink

KINDS = ["mosquitto", "amqtt"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_and_ends(kind, tmp_path):
    broker = EmbeddedBroker("127.0.0.1", 0, tmp_path / "broker", kind)
    assert not broker.running
    broker.start()
    try:
        broker.start()  # running already
        assert broker.running
        assert answers(broker.host, broker.port)
        assert kind in broker.describe()
        assert f"127.0.0.1:{broker.port}" in broker.describe()
    finally:
        broker.stop()
    broker.stop()
    assert not broker.running
    assert not answers(broker.host, broker.port)


@pytest.mark.parametrize("kind", ["auto", *KINDS])
@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.org", ""])
def test_another_bind_is_refused(kind, host, tmp_path):
    with pytest.raises(UsageError, match="loopback only") as caught:
        EmbeddedBroker(host, 1883, tmp_path, kind)
    assert "mosquitto" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_loopback_addresses():
    assert all(map(is_loopback, ["127.0.0.1", "127.1.2.3", "::1", "localhost"]))


def test_mosquitto_comes_first(tmp_path, monkeypatch):
    assert EmbeddedBroker("127.0.0.1", 0, tmp_path).kind == "mosquitto"
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    assert EmbeddedBroker("127.0.0.1", 0, tmp_path).kind == "amqtt"
    with pytest.raises(UsageError, match="not on the PATH"):
        EmbeddedBroker("127.0.0.1", 0, tmp_path, "mosquitto")


@pytest.mark.parametrize("kind", KINDS)
def test_a_taken_port_is_said(kind, tmp_path):
    first = EmbeddedBroker("127.0.0.1", 0, tmp_path / "first", "mosquitto")
    first.start()
    try:
        second = EmbeddedBroker("127.0.0.1", first.port, tmp_path / "second", kind)
        with pytest.raises(UsageError, match=str(first.port)):
            second.start()
        assert not second.running
        assert first.running
    finally:
        first.stop()


def test_mosquitto_keeps_retained_messages_over_a_restart(tmp_path):
    broker = EmbeddedBroker("127.0.0.1", free_port(), tmp_path / "with space", "mosquitto")
    got = threading.Event()
    broker.start()
    try:
        link = MqttLink("127.0.0.1", broker.port, "a")
        seen = threading.Event()
        link.subscribe("slot", lambda message: seen.set())
        link.open()
        assert link.wait_connected(20)
        link.publish("slot", b"kept", retain=True)
        assert seen.wait(20)
        link.close()
        broker.stop()
        broker.start()
        late = MqttLink("127.0.0.1", broker.port, "b")
        late.subscribe("slot", lambda message: message.payload == b"kept" and got.set())
        late.open()
        assert got.wait(20)
        late.close()
    finally:
        broker.stop()


def test_a_thousand_births_reach_a_fleet_that_was_away(tmp_path):
    broker = EmbeddedBroker("127.0.0.1", 0, tmp_path / "broker", "mosquitto")
    topics = [f"edgeml/v1/f/d{i:04}/up/birth" for i in range(1200)]
    got, complete, here = set(), threading.Event(), threading.Event()
    broker.start()
    try:
        for part in (topics[::2], topics[1::2]):  # what waits in one link is bounded, too
            link, kept = MqttLink("127.0.0.1", broker.port, "devices"), threading.Event()
            link.subscribe("done", lambda message, kept=kept: kept.set())
            link.open()
            assert link.wait_connected(20)
            assert all(link.publish(topic, b"x" * 800, retain=True) for topic in part)
            assert link.publish("done", b"")
            assert kept.wait(30)  # in order: then the broker has the rest as well
            link.close()
        fleet = MqttLink("127.0.0.1", broker.port, "fleet")

        def take(message):
            got.add(message.topic)
            if len(got) == len(topics):
                complete.set()

        fleet.on_connection(lambda up: here.set())
        fleet.subscribe("edgeml/v1/f/+/up/#", take)
        fleet.open()
        assert here.wait(20)
        assert complete.wait(30), len(got)
        fleet.close()
    finally:
        broker.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part of it is Linux's")
@pytest.mark.parametrize("kind", KINDS)
def test_it_dies_with_its_parent(kind, tmp_path):
    script = (
        "import sys, pathlib; from edgeml.fleet.broker import EmbeddedBroker\n"
        f"b = EmbeddedBroker('127.0.0.1', 0, pathlib.Path({str(tmp_path)!r}), {kind!r})\n"
        "b.start(); print(b._process.pid, b.port, flush=True); sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        pid, port = map(int, parent.stdout.readline().split())
        assert answers("127.0.0.1", port)
        watch = os.pidfd_open(pid)
        try:
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            # A pid file descriptor is readable when its process has ended.
            assert select.select([watch], [], [], 20)[0]
        finally:
            os.close(watch)
    assert not answers("127.0.0.1", port)
