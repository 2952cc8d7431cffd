"""Which orders are believed, and what the clock has to do with it."""

import time

import pytest

from edgeml.errors import UnreachableError
from edgeml.messages.payloads import DesiredState, Ref, SlotTarget
from edgeml.trust.client import TrustClient
from edgeml.trust.desired import sign
from edgeml.trust.repository import TrustRepository
from edgeml_agent.clock import Clock
from edgeml_agent.orders import Orders, Trust
from edgeml_agent.state import StateStore

REF = Ref("m", "1.0.0", "sha256:" + "0" * 64)
FUTURE = time.time() + 1e9


class Desk:
    """Orders with a repository that answers at once."""

    def __init__(self, tmp_path, floor=0.0):
        (tmp_path / "state").mkdir()
        self.repository = TrustRepository.create(tmp_path / "repository")
        self.asked, self.told, self.accepted = [], [], 0
        self.away = False
        self.clock = Clock(floor)
        client = TrustClient(
            tmp_path / "trust", self.repository.root_bytes, self.fetch, now=self.clock.now
        )
        self.store = StateStore(tmp_path / "state")
        self.orders = Orders(
            "f", "d", self.store, Trust(client), self.clock, self.accept, self.tell
        )

    def fetch(self, name):
        self.asked.append(name)
        if self.away:
            raise UnreachableError("away")
        return self.repository.metadata(name)

    def accept(self):
        self.accepted += 1

    def tell(self, kind, severity, message):
        self.told.append((kind, message))

    def order(self, generation, **more):
        desired = DesiredState("f", "d", generation, {"main": SlotTarget(REF)}, **more)
        return sign(desired, self.repository.director_signer)


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def test_the_generation_is_on_the_disk_before_anybody_is_told(desk, tmp_path):
    seen = []
    desk.orders._accepted = lambda: seen.append(StateStore(tmp_path / "state").state.generation)
    assert desk.orders.handle(desk.order(4))
    assert seen == [4]


def test_the_same_again_is_no_news_and_asks_for_nothing(desk):
    envelope = desk.order(1)
    assert desk.orders.handle(envelope)
    desk.asked.clear()
    assert not desk.orders.handle(envelope)
    assert (desk.asked, desk.told, desk.accepted) == ([], [], 1)


def test_refused_once_and_not_looked_at_again_until_reconnected(desk):
    assert desk.orders.handle(desk.order(5))
    old = desk.order(3)
    desk.asked.clear()
    for _ in range(3):
        assert not desk.orders.handle(old)
    assert len(desk.told) == 1
    assert desk.asked.count("timestamp.json") == 1
    desk.orders.reconnected()
    assert not desk.orders.handle(old)
    assert len(desk.told) == 2
    assert desk.store.state.generation == 5


def test_without_an_answer_it_is_neither_believed_nor_refused(desk):
    desk.away = True
    with pytest.raises(UnreachableError):
        desk.orders.handle(desk.order(1))
    assert desk.told == []
    desk.away = False
    assert desk.orders.handle(desk.order(1))


def test_a_stale_order_with_a_clock(desk):
    assert not desk.orders.handle(desk.order(1, not_after=1_000_000.0))
    assert "taken up" in desk.told[0][1]


def test_a_stale_order_without_a_clock(tmp_path):
    desk = Desk(tmp_path, floor=FUTURE)
    assert not desk.clock.trusted()
    assert desk.orders.handle(desk.order(1, not_after=1_000_000.0))
    # An old generation is refused all the same.
    assert not desk.orders.handle(desk.order(0))


def test_a_queue_that_is_full_drops_the_oldest(desk):
    for n in range(40):
        desk.orders.offer(b"%d" % n)
    assert desk.orders._queue.qsize() == 16
    assert desk.orders._queue.get() == b"24"
