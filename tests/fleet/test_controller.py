"""The controller over a network in memory: rollouts, restarts, lost and doubled messages."""

import collections

import pytest

from edgeml.errors import GateError, UsageError
from edgeml.fleet.server import outnumber
from edgeml.fleet.views import RolloutRequest
from edgeml.gates import HealthGate, InstallGate, LabelGate
from edgeml.link.memory import Faults
from edgeml.messages import topics
from edgeml.messages.payloads import BlockRequest
from tests.support.fleet_simulator import SimDevice, SimFleet

QUICK = (HealthGate(soak=2.0), LabelGate(minimum=30, patience=20.0))


@pytest.fixture
def fleet(tmp_path):
    made = SimFleet(tmp_path)
    yield made
    made.close()


def half(version, salt):
    return RolloutRequest("kws", version, waves="50%,100%", gates=QUICK, id=salt)


def finished(fleet, rollout, seconds=60):
    for _ in range(seconds):
        fleet.run(1)
        row = fleet.services.rollout(rollout).row
        if row.state in {"done", "rolled_back", "aborted"}:
            return row
    raise AssertionError(f"still {row.state}: {row.reason}")


def first(fleet, version="1.0.0"):
    fleet.push(version)
    assert (
        finished(fleet, fleet.deploy(version, strategy="all-at-once", gates=QUICK)).state == "done"
    )


def test_a_good_version_reaches_everybody(fleet):
    first(fleet)
    fleet.push("2.0.0")
    rollout = fleet.deploy("2.0.0", gates=QUICK)
    assert sorted(fleet.versions().values()) == ["1.0.0"] * 3 + ["2.0.0"]
    assert finished(fleet, rollout).state == "done"
    assert set(fleet.versions().values()) == {"2.0.0"}
    detail = fleet.services.rollout(rollout)
    held = [d for d in detail.decisions if d.verdicts]
    labels = [v for d in held for v in d.verdicts if v.gate == "labels" and v.state == "pass"]
    assert any("drop" in v.evidence for v in labels)
    row = next(r for r in fleet.services.versions("kws") if r.version == "2.0.0")
    assert row.devices == 4


def test_a_version_that_is_poor_by_labels_goes_back(fleet):
    """The story of the issue: installs, is poor, is stopped at the canary, never comes again."""
    first(fleet)
    fleet.push("1.5.0")
    for name in list(fleet.devices)[:2]:  # two devices have another own version
        rollout = fleet.deploy("1.5.0", selector=f"device={name}", gates=QUICK)
        assert finished(fleet, rollout).state == "done"
    own = fleet.versions()
    assert sorted(own.values()) == ["1.0.0", "1.0.0", "1.5.0", "1.5.0"]
    bad = fleet.push("3.0.0")
    fleet.accuracies["3.0.0"] = 0.4
    rollout = fleet.deploy("3.0.0", waves="50%,100%", gates=QUICK)
    assert collections.Counter(fleet.versions().values())["3.0.0"] == 2
    row = finished(fleet, rollout)
    assert row.state == "rolled_back"
    assert row.reason.startswith("labels gate: accuracy 40.0%")
    assert fleet.versions() == own
    assert row.wave == 1
    assert fleet.services.versions("kws")[0].quarantined == row.reason
    with pytest.raises(GateError, match="quarantined"):
        fleet.services.create_rollout(RolloutRequest("kws", "3.0.0"), "tests")
    touched = [d.device for d in fleet.services.rollout(rollout).devices if d.restored]
    assert len(touched) == 2
    assert all(bad.digest in fleet.devices[name].quarantined for name in touched)
    assert any(e.severity == "critical" for e in fleet.services.events())


def test_a_version_that_does_not_install_goes_back(fleet):
    first(fleet)
    fleet.push("2.0.0")
    fleet.bad_installs.add("2.0.0")
    row = finished(fleet, fleet.deploy("2.0.0", gates=QUICK))
    assert row.state == "rolled_back"
    assert "install gate" in row.reason
    assert set(fleet.versions().values()) == {"1.0.0"}
    assert fleet.services.versions("kws")[0].quarantined == row.reason


def test_a_version_that_devices_have_no_room_for_may_come_again(fleet):
    first(fleet)
    ref = fleet.push("2.0.0")
    fleet.full_disks.add("2.0.0")
    rollout = fleet.deploy("2.0.0", gates=QUICK)
    assert finished(fleet, rollout).state == "rolled_back"
    assert not fleet.services.versions("kws")[0].quarantined
    assert all(ref.digest not in device.quarantined for device in fleet.devices.values())
    assert "kept" in {d.kind for d in fleet.services.rollout(rollout).decisions}
    fleet.full_disks.clear()
    assert finished(fleet, fleet.deploy("2.0.0", gates=QUICK)).state == "done"
    assert set(fleet.versions().values()) == {"2.0.0"}


def test_people_may_lift_a_quarantine(fleet):
    first(fleet)
    ref = fleet.push("2.0.0")
    fleet.accuracies["2.0.0"] = 0.1
    rollout = fleet.deploy("2.0.0", waves="50%,100%", gates=QUICK)
    with pytest.raises(UsageError, match="is not quarantined"):
        fleet.services.release("kws", "2.0.0", "labels were wrong", "ann")
    assert finished(fleet, rollout).state == "rolled_back"
    at_fault = next(d for d in fleet.devices.values() if ref.digest in d.quarantined)
    at_fault.faulty.add(ref.digest)
    at_fault.report()
    fleet.settle()
    with pytest.raises(UsageError, match="reason"):
        fleet.services.release("kws", "2.0.0", " ", "ann")
    released = fleet.services.release("kws", "2.0.0", "labels were wrong", "ann")
    fleet.settle()
    assert released.refusing == (at_fault.name,)
    assert not released.row.quarantined
    assert not any(ref.digest in device.quarantined for device in fleet.devices.values())
    said = fleet.services.events()[0]
    assert said.kind == "release"
    assert said.message.endswith("labels were wrong (ann)")
    assert "release" in {d.kind for d in fleet.services.rollout(rollout).decisions}
    assert set(fleet.versions().values()) == {"1.0.0"}  # nothing was told to run it
    fleet.accuracies.clear()
    assert finished(fleet, fleet.deploy("2.0.0", gates=QUICK)).state == "done"


def test_the_first_version_of_all_has_nothing_to_go_back_to(fleet):
    fleet.push("1.0.0")
    rollout = fleet.deploy("1.0.0", strategy="all-at-once", gates=QUICK)
    fleet.services.control(rollout, "rollback", "a try")
    assert finished(fleet, rollout).state == "rolled_back"
    assert set(fleet.versions().values()) == {None}
    told = fleet.services.rollout(rollout)
    assert {d.detail for d in told.devices} == {"empty, waiting for a version"}
    slots = [s for d in fleet.services.devices() for s in d.slots]
    assert {s.detail for s in slots} == {"empty, waiting for a version"}
    fleet.push("1.0.1")
    assert finished(fleet, fleet.deploy("1.0.1", gates=QUICK)).state == "done"
    assert set(fleet.versions().values()) == {"1.0.1"}


def test_an_offline_canary_never_gets_what_was_rolled_back(fleet):
    first(fleet)
    fleet.broker.cut("d001")
    fleet.settle()
    assert not fleet.services.device("d001").row.online
    fleet.push("2.0.0")
    fleet.accuracies["2.0.0"] = 0.1
    salt = next(  # one whose first wave has the device that is away, so that a control is left
        f"x{i}"
        for i in range(100)
        if "d001" in fleet.services.preview(half("2.0.0", f"x{i}")).waves[0]
    )
    rollout = fleet.services.create_rollout(half("2.0.0", salt), "tests").id
    assert finished(fleet, rollout).state == "rolled_back"
    assert fleet.devices["d001"].accepted == [1]
    fleet.broker.restore("d001")
    fleet.run(3)
    assert set(fleet.versions().values()) == {"1.0.0"}
    assert fleet.devices["d001"].accepted == [1, 3]  # the order in between was never seen


def test_offline_devices_do_not_block_and_catch_up(fleet):
    first(fleet)
    fleet.push("2.0.0")
    late = fleet.services.preview(RolloutRequest("kws", "2.0.0", id="x1")).waves[1][0]
    fleet.broker.cut(late)
    assert finished(fleet, fleet.deploy("2.0.0", id="x1", gates=QUICK)).state == "done"
    assert fleet.versions()[late] == "1.0.0"
    fleet.broker.restore(late)
    fleet.run(2)
    assert fleet.versions()[late] == "2.0.0"


def test_a_server_that_restarts_goes_on(fleet):
    first(fleet)
    fleet.push("2.0.0")
    rollout = fleet.deploy("2.0.0", gates=QUICK)
    fleet.close()
    fleet.open()
    assert finished(fleet, rollout).state == "done"
    assert set(fleet.versions().values()) == {"2.0.0"}


def test_old_telemetry_and_events_go_also_when_the_server_starts_often(fleet):
    first(fleet)
    fleet.run(1)
    assert fleet.services.windows(0.0)
    fleet.close()
    fleet.clock.now += 15 * 86_400.0
    fleet.open()
    fleet.controller.work_off()
    assert fleet.services.windows(0.0) == []
    assert fleet.services.events() == []
    assert len(fleet.services.rollouts()) == 1


def test_a_wiped_broker_is_refilled(fleet):
    first(fleet)
    fleet.broker.stop()
    fleet.controller.work_off()
    fleet.broker.start(wipe=True)
    fleet.settle()
    kept = [t for t in fleet.broker.retained if t.endswith("/down/desired")]
    assert len(kept) == 4
    newcomer = SimDevice(fleet, "d000", boot="b2")  # the same device with an empty disk
    fleet.broker.cut("d000")
    fleet.devices["d000"] = newcomer
    newcomer.link.open()
    fleet.settle()
    assert newcomer.version() == "1.0.0"


def test_an_order_that_was_lost_is_sent_again(fleet):
    first(fleet)
    fleet.push("2.0.0")
    device = fleet.devices["d003"]
    obey, device.obey = device.obey, lambda wanted: None  # as if it had never come
    rollout = fleet.deploy("2.0.0", strategy="all-at-once", gates=QUICK)
    fleet.run(1)
    device.obey = obey
    fleet.run(12)
    assert device.version() == "2.0.0"
    assert finished(fleet, rollout).state == "done"


def test_two_rollouts_over_two_slots(fleet):
    fleet.push("1.0.0")
    fleet.push("1.0.0", model="vww")
    one = fleet.deploy("1.0.0", strategy="all-at-once", gates=QUICK)
    other = fleet.deploy("1.0.0", model="vww", strategy="all-at-once", gates=QUICK)
    fleet.push("2.0.0")
    with pytest.raises(UsageError, match="in slot 'kws'"):
        fleet.deploy("2.0.0")
    assert finished(fleet, one).state == "done"
    assert finished(fleet, other).state == "done"
    assert set(fleet.versions("vww").values()) == {"1.0.0"} == set(fleet.versions().values())


def test_an_older_version_on_purpose(fleet):
    first(fleet)
    fleet.push("2.0.0")
    assert finished(fleet, fleet.deploy("2.0.0", gates=QUICK)).state == "done"
    before = {d.device: d.wanted for d in fleet.services.devices()}
    assert finished(fleet, fleet.deploy("1.0.0", gates=QUICK)).state == "done"
    assert set(fleet.versions().values()) == {"1.0.0"}
    assert all(d.wanted > before[d.device] for d in fleet.services.devices())  # a new order
    assert not any(v.quarantined for v in fleet.services.versions("kws"))


def test_rolling_back_after_the_end(fleet):
    first(fleet)
    fleet.push("2.0.0")
    old = fleet.deploy("2.0.0", gates=QUICK)
    finished(fleet, old)
    fleet.push("3.0.0")
    new = fleet.deploy("3.0.0", gates=QUICK)
    finished(fleet, new)
    with pytest.raises(UsageError, match="came later"):
        fleet.services.control(old, "rollback")
    fleet.services.control(new, "rollback", "people say so")
    assert finished(fleet, new).state == "rolled_back"
    assert set(fleet.versions().values()) == {"2.0.0"}
    fleet.services.control(old, "rollback")
    assert finished(fleet, old).state == "rolled_back"
    assert set(fleet.versions().values()) == {"1.0.0"}


def test_a_restored_database_catches_up_with_the_devices(fleet):
    first(fleet)
    device = fleet.devices["d002"]
    device.generation = 40  # it has seen orders that this database knows nothing of
    device.report()
    fleet.settle()
    assert device.generation == 41
    assert fleet.services.device("d002").row.wanted == 41


def test_orders_after_a_restore_are_above_all_that_were_given(fleet):
    first(fleet)
    outnumber(fleet.store, fleet.trust, 1_700_000_000)
    fleet.close()
    fleet.open()
    fleet.settle()
    assert {d.generation for d in fleet.devices.values()} == {1_700_000_000}
    assert set(fleet.versions().values()) == {"1.0.0"}


def test_messages_in_another_name_or_broken_change_nothing(fleet):
    first(fleet)
    before = fleet.services.devices()
    d0, d1 = fleet.devices["d000"], fleet.devices["d001"]
    for kind in ("birth", "state", "reported", "telemetry", "event"):
        topic = topics.up("sim", "d001", kind)
        for payload in (b"", b"{", b"\xff" * 50, b'{"device":"d000"}'):
            d1.link.publish(topic, payload)
    forged = d0.event()
    fleet.settle()
    fleet.broker.publish(topics.up("sim", "d001", "event"), b"x", retain=False, qos=1)
    fleet.settle()
    assert [r.slots for r in fleet.services.devices()] == [r.slots for r in before]
    mine = [e for e in fleet.services.events(limit=1000) if e.message == forged.message]
    assert [e.device for e in mine] == ["d000"]


def test_blocks_are_bounded(fleet):
    ref = fleet.push("1.0.0")
    whole = fleet.blocks.answer(BlockRequest(1, "blob", ref.digest, 0, 1 << 30))
    assert whole.total == len(whole.data)
    part = fleet.blocks.answer(BlockRequest(2, "blob", ref.digest, 5, 10))
    assert part.data == whole.data[5:15]
    assert fleet.blocks.answer(BlockRequest(3, "tuf", "timestamp.json", 0, 9999)).data
    for bad in (
        BlockRequest(4, "blob", "../../fleet.db", 0, 10),
        BlockRequest(4, "blob", ref.digest, -1, 10),
        BlockRequest(4, "blob", ref.digest, 0, 0),
        BlockRequest(4, "blob", ref.digest, 1 << 40, 10),
        BlockRequest(4, "tuf", "../keys/root.json", 0, 10),
        BlockRequest(4, "file", "x", 0, 10),
    ):
        assert fleet.blocks.answer(bad).error == "refused"
    assert fleet.blocks.answer(BlockRequest(5, "tuf", "9.root.json", 0, 9)).error == "not_found"


@pytest.mark.parametrize("seed", [1, 2])
def test_two_hundred_devices_on_a_bad_network(tmp_path, seed):
    """Lost, doubled and reordered messages; every window counts once, everybody converges."""
    faults = Faults(seed=seed, drop=0.1, duplicate=0.1, reorder=0.1)
    fleet = SimFleet(tmp_path, devices=200, faults=faults)
    try:
        gates = (InstallGate(max_failed=0.2), HealthGate(soak=1.0), LabelGate(minimum=30))
        fleet.push("1.0.0")
        finished(fleet, fleet.deploy("1.0.0", strategy="all-at-once", gates=gates), 40)
        fleet.push("2.0.0")
        fleet.accuracies["2.0.0"] = 0.2
        row = finished(fleet, fleet.deploy("2.0.0", waves="10%,100%", gates=gates), 40)
        assert row.state == "rolled_back"
        assert set(fleet.versions().values()) == {"1.0.0"}
        for device in fleet.devices.values():
            assert device.accepted == sorted(set(device.accepted))
            assert not device.outbox
        traffic = {t.version: t for t in fleet.services.health().traffic}
        sent = sum((d.sent for d in fleet.devices.values()), collections.Counter())
        assert {version: t.requests for version, t in traffic.items()} == sent
    finally:
        fleet.close()
