"""One suite for every Link: in memory, mosquitto (MQTT 5 and 3.1.1), amqtt."""

import threading
import uuid

import pytest

from edgeml.errors import InternalError
from edgeml.link.base import Will
from edgeml.link.memory import MemoryBroker, MemoryLink
from edgeml.link.mqtt import MqttLink
from edgeml.messages.payloads import MAX_PAYLOAD
from tests.support.broker import Proxy, real_broker

PATIENCE = 20


class MemoryBench:
    """Links in memory, with the handles that a suite needs."""

    def __init__(self):
        self._broker = MemoryBroker()
        self._links = []

    def link(self, name, will=None):
        link = MemoryLink(self._broker, name, will)
        self._links.append(link)
        return link

    def cut(self, name):
        self._broker.cut(name)

    def restore(self, name):
        self._broker.restore(name)

    def stop(self):
        self._broker.stop()

    def start(self):
        self._broker.start()

    def wipe(self):
        self._broker.stop()
        self._broker.start(wipe=True)

    def close(self):
        for link in self._links:
            link.close()


class MqttBench:
    """Links to a real broker, each behind a proxy of its own."""

    def __init__(self, broker, protocol):
        self._broker, self._protocol = broker, protocol
        self._proxies, self._links = {}, []

    def link(self, name, will=None):
        if name not in self._proxies:
            self._proxies[name] = Proxy(self._broker.port)
        port = self._proxies[name].port
        link = MqttLink("127.0.0.1", port, name, will, protocol=self._protocol, backoff=(0.05, 0.2))
        self._links.append(link)
        return link

    def cut(self, name):
        self._proxies[name].cut()

    def restore(self, name):
        self._proxies[name].restore()

    def stop(self):
        self._broker.stop()

    def start(self):
        self._broker.start()

    def wipe(self):
        self._broker.wipe()

    def close(self):
        for link in self._links:
            link.close()
        for proxy in self._proxies.values():
            proxy.close()


@pytest.fixture(scope="module")
def mosquitto():
    with real_broker("mosquitto") as broker:
        yield broker


@pytest.fixture(scope="module")
def amqtt():
    with real_broker("amqtt") as broker:
        yield broker


KEEPERS = ["memory", "mosquitto-5", "mosquitto-3.1.1"]  # these keep a session for who is away


@pytest.fixture(params=[*KEEPERS, "amqtt"])
def bench(request):
    kind, _, protocol = request.param.partition("-")
    if kind == "memory":
        made = MemoryBench()
    else:
        made = MqttBench(request.getfixturevalue(kind), protocol or "auto")
    yield made
    made.close()


keepers_only = pytest.mark.parametrize("bench", KEEPERS, indirect=True)


@pytest.fixture
def base():
    """A prefix of topics and client ids that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}"


class Inbox:
    """A handler that remembers, and can be waited for."""

    def __init__(self):
        self.messages = []
        self._news = threading.Condition()

    def __call__(self, message):
        with self._news:
            self.messages.append(message)
            self._news.notify_all()

    def wait(self, count):
        with self._news:
            assert self._news.wait_for(lambda: len(self.messages) >= count, PATIENCE), self.messages
            return self.messages

    def wait_for(self, payload):
        with self._news:
            assert self._news.wait_for(lambda: payload in self.payloads, PATIENCE), self.messages

    @property
    def payloads(self):
        return [message.payload for message in self.messages]


def opened(link, *patterns):
    """Open a link, with one inbox for all patterns; return both when it is connected."""
    inbox = Inbox()
    for pattern in patterns:
        link.subscribe(pattern, inbox)
    link.open()
    assert link.wait_connected(PATIENCE)
    return link, inbox


def settled(link, inbox, topic):
    """Wait until everything that was sent before has come: the inbox must ask for ``topic``."""
    mark = uuid.uuid4().bytes
    assert link.publish(topic, mark)
    inbox.wait_for(mark)


def test_a_message_arrives(bench, base):
    link, inbox = opened(bench.link(base), f"{base}/+/x")
    assert link.connected
    assert link.publish(f"{base}/1/x", b"hello", expiry=60)
    (message,) = inbox.wait(1)
    assert (message.topic, message.payload, message.retained) == (f"{base}/1/x", b"hello", False)


def test_only_what_was_asked_for_arrives(bench, base):
    link, inbox = opened(bench.link(base), f"{base}/a/#", f"{base}/mark")
    for topic in (f"{base}/b", f"{base}/ab", f"{base}x/a/b", f"{base}/a/deep/er"):
        assert link.publish(topic, topic.encode())
    settled(link, inbox, f"{base}/mark")
    assert inbox.payloads[:-1] == [f"{base}/a/deep/er".encode()]


def test_qos_0_arrives(bench, base):
    link, inbox = opened(bench.link(base), f"{base}/t")
    settled(link, inbox, f"{base}/t")
    assert link.publish(f"{base}/t", b"0", qos=0)
    inbox.wait_for(b"0")


def test_the_order_of_one_sender_is_kept(bench, base):
    link, inbox = opened(bench.link(base), f"{base}/t")
    sent = [str(i).encode() for i in range(200)]
    for payload in sent:
        assert link.publish(f"{base}/t", payload)
    inbox.wait(200)
    assert inbox.payloads == sent


def test_a_retained_slot_meets_who_comes_later(bench, base):
    sender, seen = opened(bench.link(f"{base}-s"), f"{base}/#")
    sender.publish(f"{base}/slot", b"old", retain=True)
    sender.publish(f"{base}/slot", b"new", retain=True)
    settled(sender, seen, f"{base}/mark")
    late, inbox = opened(bench.link(f"{base}-r"), f"{base}/slot", f"{base}/mark")
    settled(late, inbox, f"{base}/mark")
    slot = [m for m in inbox.messages if m.topic == f"{base}/slot"]
    # QoS 1 is at least once, and amqtt does send it twice now and then.
    assert {(m.payload, m.retained) for m in slot} == {(b"new", True)}


def test_an_empty_payload_clears_a_slot(bench, base):
    sender, seen = opened(bench.link(f"{base}-s"), f"{base}/#")
    sender.publish(f"{base}/slot", b"x", retain=True)
    sender.publish(f"{base}/slot", b"", retain=True)
    settled(sender, seen, f"{base}/mark")
    late, inbox = opened(bench.link(f"{base}-r"), f"{base}/#")
    settled(late, inbox, f"{base}/mark")
    assert [m for m in inbox.messages if m.retained] == []


def test_a_subscription_may_come_after_open(bench, base):
    link, _ = opened(bench.link(base))
    inbox = Inbox()
    link.subscribe(f"{base}/t", inbox)
    # Retained: whichever of the two the broker sees to first, the message comes.
    link.publish(f"{base}/t", b"x", retain=True)
    inbox.wait(1)


def test_the_will_is_published_when_a_client_is_gone(bench, base):
    _, inbox = opened(bench.link(f"{base}-w"), f"{base}/#")
    opened(bench.link(base, Will(f"{base}/state", b"gone")))
    bench.cut(base)
    inbox.wait_for(b"gone")
    _, late = opened(bench.link(f"{base}-l"), f"{base}/state")
    assert late.wait(1)[0].retained


def test_a_graceful_close_publishes_no_will(bench, base):
    watcher, inbox = opened(bench.link(f"{base}-w"), f"{base}/#")
    link, _ = opened(bench.link(base, Will(f"{base}/state", b"gone")))
    link.publish(f"{base}/state", b"bye", retain=True)
    link.close()
    link.close()
    assert not link.connected
    inbox.wait_for(b"bye")
    settled(watcher, inbox, f"{base}/mark")
    assert b"gone" not in inbox.payloads


def test_a_link_comes_back(bench, base):
    link = bench.link(base)
    told, inbox = Inbox(), Inbox()
    link.on_connection(told)
    link.subscribe(f"{base}/t", inbox)
    link.open()
    told.wait(1)
    bench.cut(base)
    told.wait(2)
    assert not link.connected
    assert not link.publish(f"{base}/t", b"into the void")
    bench.restore(base)
    assert told.wait(3) == [True, False, True]
    assert link.publish(f"{base}/t", b"back")
    inbox.wait_for(b"back")


def test_links_survive_a_restart_of_the_broker(bench, base):
    link = bench.link(base)
    told, inbox = Inbox(), Inbox()
    link.on_connection(told)
    link.subscribe(f"{base}/t", inbox)
    link.open()
    told.wait(1)
    bench.stop()
    told.wait(2)
    bench.start()
    told.wait(3)
    link.publish(f"{base}/t", b"again")
    inbox.wait_for(b"again")


def test_a_wiped_broker_is_refilled_by_who_reconnects(bench, base):
    link = bench.link(base)
    link.on_connection(lambda on: on and link.publish(f"{base}/slot", b"truth", retain=True))
    opened(link)
    bench.wipe()
    _, inbox = opened(bench.link(f"{base}-r"), f"{base}/slot")
    inbox.wait_for(b"truth")


@keepers_only
def test_qos_1_waits_for_who_is_away(bench, base):
    away, _ = opened(bench.link(f"{base}-a"), f"{base}/t")
    sender, seen = opened(bench.link(f"{base}-s"), f"{base}/t")
    settled(sender, seen, f"{base}/t")
    away.close()
    sent = [str(i).encode() for i in range(20)]
    for payload in sent:
        sender.publish(f"{base}/t", payload)
    seen.wait_for(sent[-1])
    _, inbox = opened(bench.link(f"{base}-a"), f"{base}/t")
    inbox.wait_for(sent[-1])
    assert [p for p in inbox.payloads if p in sent] == sent


def test_a_handler_that_raises_harms_nobody(bench, base, caplog):
    link = bench.link(base)
    inbox = Inbox()

    def broken(message):
        raise RuntimeError("on purpose")

    link.subscribe(f"{base}/#", broken)
    link.subscribe(f"{base}/t", inbox)
    link.on_connection(broken)
    link.open()
    assert link.wait_connected(PATIENCE)
    link.publish(f"{base}/t", b"1")
    link.publish(f"{base}/t", b"2")
    inbox.wait_for(b"2")
    assert "on purpose" in caplog.text


def test_a_handler_may_publish(bench, base):
    link = bench.link(base)
    inbox = Inbox()
    link.subscribe(f"{base}/ask", lambda m: link.publish(f"{base}/reply", m.payload + b"!"))
    link.subscribe(f"{base}/reply", inbox)
    link.open()
    assert link.wait_connected(PATIENCE)
    link.publish(f"{base}/ask", b"so")
    inbox.wait_for(b"so!")


def test_a_handler_may_close_its_link(bench, base):
    link = bench.link(base)
    closed = threading.Event()

    def handler(message):
        link.close()
        closed.set()

    link.subscribe(f"{base}/t", handler)
    link.open()
    assert link.wait_connected(PATIENCE)
    link.publish(f"{base}/t", b"x")
    assert closed.wait(PATIENCE)
    link.close()
    assert not link.connected


def test_many_threads_may_publish(bench, base):
    link, inbox = opened(bench.link(base), f"{base}/t")

    def send(worker):
        for index in range(50):
            assert link.publish(f"{base}/t", f"{worker}:{index}".encode())

    threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    inbox.wait(200)
    assert sorted(inbox.payloads) == sorted(
        f"{w}:{i}".encode() for w in range(4) for i in range(50)
    )


def test_the_longest_payload_passes_and_a_longer_one_is_refused(bench, base):
    link, inbox = opened(bench.link(base), f"{base}/t")
    longest = b"x" * MAX_PAYLOAD
    assert link.publish(f"{base}/t", longest)
    assert inbox.wait(1)[0].payload == longest
    with pytest.raises(InternalError, match="expected at most"):
        link.publish(f"{base}/t", longest + b"x")


def test_before_open_and_after_close_nothing_is_sent(bench, base):
    link = bench.link(base)
    assert not link.connected
    assert not link.publish(f"{base}/t", b"x")
    opened(link)
    with pytest.raises(InternalError):
        link.open()
    link.close()
    assert not link.publish(f"{base}/t", b"x")


def test_without_a_broker_a_link_waits(bench, base):
    bench.stop()
    try:
        link = bench.link(base)
        link.open()
        assert not link.wait_connected(0.05)
        assert not link.publish(f"{base}/t", b"x")
    finally:
        bench.start()
    assert link.wait_connected(PATIENCE)
