"""Who is there, who must be asked to say it again, and what is told of it."""

import pytest

from edgeml.fleet.inventory import Device
from edgeml.fleet.presence import ASK_AGAIN, ASK_MOST, SETTLE, Presence
from edgeml.messages import topics
from edgeml.messages.payloads import Reported
from tests.support.fleet_simulator import SimDevice, SimFleet

REPORTED = Reported("d", "b", 1, 0, {})


@pytest.fixture
def fleet(tmp_path):
    made = SimFleet(tmp_path)
    yield made
    made.close()


def presences(fleet):
    return [row.presence for row in fleet.services.devices()]


class Mute(SimDevice):
    """A device whose first births get lost on the way."""

    lost = 1

    def announce(self):
        if self.lost:
            self.lost -= 1
            self.report()  # all that comes through
        else:
            super().announce()


@pytest.mark.parametrize("lost", [1, 2])
def test_a_device_without_a_birth_is_asked_for_it(fleet, lost):
    device = Mute(fleet, "late")
    device.lost = lost
    fleet.devices["late"] = device
    device.link.open()
    fleet.settle()
    assert fleet.services.device("late").row.profile == ""
    fleet.run(20 if lost == 1 else 30 + ASK_AGAIN, traffic=False, step=2.0)
    row = fleet.services.device("late").row
    assert row.profile
    assert row.presence == "online"


def test_a_birth_that_the_broker_did_not_keep_is_asked_for(fleet):
    fleet.link.close()
    fleet.store.close()
    for name in fleet.devices:
        fleet.broker.retained.pop(topics.up("sim", name, "birth"))
        fleet.devices[name].tags = {"site": "new"}
    fleet.open()
    fleet.settle()
    fleet.run(20, traffic=False, step=2.0)
    assert all(row.tags == {"site": "new"} for row in fleet.services.devices())


def test_asking_is_bounded_and_rare():
    presence = Presence(0.0)
    devices = {f"d{i:03}": Device(f"d{i:03}", online=True, seen=1.0) for i in range(300)}
    assert presence.to_ask(devices, 0.0) == []
    presence.connected(100.0)
    first = presence.to_ask(devices, 100.0)  # the look before had no broker, and still counts
    assert len(first) == ASK_MOST
    second = presence.to_ask(devices, 105.0)
    assert len(second) == 100
    assert not set(first) & set(second)
    assert presence.to_ask(devices, 110.0) == []
    assert presence.to_ask(devices, 100.0 + ASK_AGAIN) == first
    complete = {n: Device(n, boot="b", online=True, reported=REPORTED) for n in devices}
    for name in devices:
        presence.born(name, "b")
        presence.stated(name, True, 140.0)
    assert presence.to_ask(complete, 140.0) == []


def test_without_a_broker_nobody_is_said_to_be_online(fleet):
    fleet.services.enrol("never-seen")
    assert presences(fleet) == ["online"] * 4 + ["offline"]
    fleet.broker.stop()
    fleet.clock.now += 7
    fleet.controller.work_off()
    fleet.clock.now += 5
    assert presences(fleet) == ["unknown"] * 4 + ["offline"]
    health = fleet.services.health()
    assert (health.broker, health.online, health.unknown) == (False, 0, 4)
    assert health.broker_lost == 5
    fleet.broker.start()
    fleet.settle()
    assert presences(fleet) == ["online"] * 4 + ["offline"]
    assert fleet.services.health().broker_lost == 0
    assert not [e for e in fleet.services.events() if e.kind in {"online", "offline"}]


def test_after_a_start_nobody_is_known_until_the_broker_has_said_so(fleet):
    fleet.link.close()
    fleet.store.close()
    fleet.broker.retained.pop(topics.up("sim", "d001", "state"))
    fleet.open()
    assert presences(fleet) == ["unknown"] * 4
    fleet.settle()
    assert presences(fleet) == ["online", "unknown", "online", "online"]
    fleet.run(20, traffic=False, step=2.0)  # asked, and answered
    assert presences(fleet) == ["online"] * 4


def test_who_goes_and_comes_leaves_an_event_and_a_crowd_leaves_one(tmp_path):
    fleet = SimFleet(tmp_path, devices=8)
    try:
        fleet.clock.now += SETTLE
        fleet.broker.cut("d001")
        fleet.settle()
        fleet.broker.restore("d001")
        fleet.settle()
        told = [(e.kind, e.severity, e.device) for e in fleet.services.events()]
        assert told == [("online", "info", "d001"), ("offline", "info", "d001")]
        for name in fleet.devices:
            fleet.broker.cut(name)
        fleet.settle()
        events = fleet.services.events()
        assert len(events) == 3
        assert events[0].message == "8 devices went offline: d000, d001, d002 and more"
    finally:
        fleet.close()
