"""What only the link over a real network must do."""

import contextlib
import socket
import threading

import pytest

from edgeml.errors import NotTrustedError
from edgeml.link.mqtt import MqttLink
from edgeml.messages.payloads import MAX_PAYLOAD
from tests.contract.test_link import PATIENCE, Inbox, opened, settled
from tests.support.broker import Proxy, real_broker


@pytest.fixture(scope="module")
def mosquitto():
    with real_broker("mosquitto") as broker:
        yield broker


class FakeBroker:
    """Accepts connections on loopback; ``script(connection, number)`` plays the broker."""

    def __init__(self, script):
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.ended = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self):
        number = 0
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection, number), daemon=True)
            self._threads.append(thread)
            thread.start()
            number += 1

    def _serve(self, connection, number):
        with connection, contextlib.suppress(OSError):
            self._script(self, connection, number)

    def close(self):
        self.ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)


@contextlib.contextmanager
def running(script, **options):
    """A link to a fake broker, not open yet."""
    broker = FakeBroker(script)
    link = MqttLink("127.0.0.1", broker.port, "d", backoff=(0.05, 0.2), **options)
    try:
        yield broker, link
    finally:
        broker.ended.set()
        link.close()
        broker.close()


CONNACK_311 = b"\x20\x02\x00\x00"
SUBACK_1 = b"\x90\x03\x00\x01\x01"


def is_v5(connect):
    return connect[connect.index(b"MQTT") + 4] == 5


def publish_packet(topic, payload):
    """PUBLISH with QoS 0 of MQTT 3.1.1, short."""
    body = len(topic).to_bytes(2, "big") + topic.encode() + payload
    return b"\x30" + bytes([len(body)]) + body


def test_a_broker_that_closes_on_mqtt_5_is_asked_in_3_1_1():
    def rabbit(broker, connection, number):
        if is_v5(connection.recv(1024)):
            return
        connection.sendall(CONNACK_311)
        broker.ended.wait()

    with running(rabbit) as (_, link):
        link.open()
        assert link.wait_connected(PATIENCE)
        assert link.protocol == "3.1.1"


def test_a_broker_that_refuses_mqtt_5_is_asked_in_3_1_1():
    def refuses(broker, connection, number):
        if is_v5(connection.recv(1024)):
            connection.sendall(b"\x20\x02\x00\x01")
            return
        connection.sendall(CONNACK_311)
        broker.ended.wait()

    with running(refuses) as (_, link):
        link.open()
        assert link.wait_connected(PATIENCE)
        assert link.protocol == "3.1.1"


def test_a_broker_that_speaks_neither_is_asked_in_turn():
    versions = []
    enough = threading.Event()

    def closes(broker, connection, number):
        versions.append(is_v5(connection.recv(1024)))
        if len(versions) >= 4:
            enough.set()

    with running(closes) as (_, link):
        link.open()
        assert enough.wait(PATIENCE)
        assert not link.connected
    assert {True, False} == set(versions[:4])


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_protocol_that_was_asked_for_stays(protocol):
    versions = []
    enough = threading.Event()

    def closes(broker, connection, number):
        versions.append(is_v5(connection.recv(1024)))
        if len(versions) >= 3:
            enough.set()

    with running(closes, protocol=protocol) as (_, link):
        link.open()
        assert enough.wait(PATIENCE)
    assert set(versions) == {protocol == "5"}


def test_what_nobody_asked_for_is_dropped(caplog):
    """amqtt can send somebody else's retained message to a client without a subscription."""

    def pushy(broker, connection, number):
        connection.recv(1024)
        connection.sendall(CONNACK_311)
        connection.recv(1024)
        packets = [publish_packet("other/secret", b"no"), publish_packet("mine/x", b"yes")]
        connection.sendall(SUBACK_1 + b"".join(packets))
        broker.ended.wait()

    inbox = Inbox()
    with running(pushy, protocol="3.1.1") as (_, link):
        link.subscribe("mine/#", inbox)
        link.open()
        inbox.wait_for(b"yes")
    assert inbox.payloads == [b"yes"]
    assert "nobody asked for" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_broker_that_sends_garbage_does_not_end_the_link():
    def garbage(broker, connection, number):
        connection.recv(1024)
        connection.sendall(CONNACK_311)
        connection.recv(1024)
        if number == 0:
            connection.sendall(b"\x30\x02\xff\xff" * 3 + b"\x90\x00")
        else:
            connection.sendall(SUBACK_1 + publish_packet("t", b"well"))
        broker.ended.wait()

    inbox = Inbox()
    with running(garbage, protocol="3.1.1") as (_, link):
        link.subscribe("t", inbox)
        link.open()
        inbox.wait_for(b"well")


def test_too_long_a_payload_is_dropped_and_the_link_lives(mosquitto):
    receiver, inbox = opened(
        MqttLink("127.0.0.1", mosquitto.port, "long-r", protocol="3.1.1"), "long/#"
    )
    sender, _ = opened(MqttLink("127.0.0.1", mosquitto.port, "long-s", protocol="3.1.1"))
    try:
        sender._client.publish("long/t", b"x" * (MAX_PAYLOAD + 1), qos=1)
        settled(receiver, inbox, "long/mark")
        sender._client.publish("long/t", b"fits", qos=1)
        inbox.wait_for(b"fits")
        assert all(len(payload) <= MAX_PAYLOAD for payload in inbox.payloads)
    finally:
        receiver.close()
        sender.close()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_message_is_acknowledged_after_its_handler(mosquitto, protocol):
    """The connection breaks while a handler works: the message comes again."""
    proxy = Proxy(mosquitto.port)
    topic = f"ack/{protocol}"
    began, finish, again = threading.Event(), threading.Event(), threading.Event()

    def handler(message):
        if began.is_set():
            again.set()
            return
        began.set()
        finish.wait(PATIENCE)

    link = MqttLink(
        "127.0.0.1", proxy.port, f"ack-{protocol}", protocol=protocol, backoff=(0.05, 0.2)
    )
    link.subscribe(topic, handler)
    sender = MqttLink("127.0.0.1", mosquitto.port, f"ack-s-{protocol}")
    try:
        opened(link)
        opened(sender)
        assert sender.publish(topic, b"once")
        assert began.wait(PATIENCE)
        proxy.cut()
        proxy.restore()
        finish.set()
        assert again.wait(PATIENCE)
    finally:
        finish.set()
        link.close()
        sender.close()
        proxy.close()


def test_a_session_survives_a_restart_of_the_broker(mosquitto):
    """clean_start=False: mosquitto saves the session, and what waits in it."""
    away, _ = opened(MqttLink("127.0.0.1", mosquitto.port, "keep-a", protocol="5"), "keep/t")
    sender, seen = opened(MqttLink("127.0.0.1", mosquitto.port, "keep-s"), "keep/t")
    settled(sender, seen, "keep/t")
    away.close()
    settled(sender, seen, "keep/t")
    sender.close()
    mosquitto.restart()
    again, inbox = opened(MqttLink("127.0.0.1", mosquitto.port, "keep-a", protocol="5"), "keep/t")
    inbox.wait_for(seen.payloads[-1])
    again.close()


def test_close_leaves_no_thread(mosquitto):
    before = set(threading.enumerate())
    for _ in range(3):
        link, _ = opened(MqttLink("127.0.0.1", mosquitto.port, "threads"), "threads/#")
        link.close()
    away = MqttLink("127.0.0.1", 9, "threads", backoff=(0.05, 0.2))
    away.open()
    away.close()
    assert set(threading.enumerate()) <= before


def test_a_wrong_password_is_logged_and_tried_again(caplog):
    asked = threading.Event()

    def guarded(broker, connection, number):
        connection.recv(1024)
        connection.sendall(b"\x20\x02\x00\x05")
        if number >= 1:
            asked.set()

    with running(guarded, protocol="3.1.1", username="u", password="p") as (_, link):
        link.open()
        assert asked.wait(PATIENCE)
        assert not link.connected
    assert "Not authorized" in caplog.text


def test_a_handler_that_distrusts_is_no_trouble(mosquitto, caplog):
    link = MqttLink("127.0.0.1", mosquitto.port, "distrust")
    inbox = Inbox()

    def handler(message):
        inbox(message)
        raise NotTrustedError("no")

    link.subscribe("distrust/t", handler)
    opened(link)
    link.publish("distrust/t", b"1")
    link.publish("distrust/t", b"2")
    inbox.wait_for(b"2")
    link.close()
