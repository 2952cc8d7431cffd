"""The real supervisor in its own process, a real broker, and a data plane that runs nothing."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from edgeml.link.mqtt import MqttLink
from edgeml_agent import enrol
from edgeml_agent.state import read_state
from tests.support.agent_process import AgentForks
from tests.support.broker import real_broker
from tests.support.fleetlet import Fleetlet, tiny_bundle


class World:
    """A broker, a fleet and one device."""

    def __init__(self, folder, broker, forks):
        self.folder, self.broker, self.forks = folder, broker, forks
        self.link = MqttLink("127.0.0.1", broker.port, "fleet", backoff=(0.1, 0.3))
        self.link.open()
        assert self.link.wait_connected(10)
        self.fleet = Fleetlet(folder, self.link, port=broker.port)
        enrol.enrol(self.fleet.enrolment(), folder / "device")
        self.config = folder / "device" / "agent.toml"
        self.pid = 0

    def add(self, version, **options):
        return self.fleet.add(tiny_bundle(self.folder, version=version, **options))

    def start(self):
        self.pid = self.forks.start(self.config, self.folder / "points")

    def state(self):
        return read_state(self.folder / "device" / "state" / "state.json")

    def log(self):
        return (self.folder / "points.log").read_text()

    def install(self, version="1.0.0"):
        ref = self.add(version)
        self.fleet.wait_outcome(self.fleet.deploy(ref), "committed")
        return ref

    def close(self):
        code = self.forks.stop(self.pid) if self.pid else 0
        self.link.close()
        assert code == 0, self.log()


@pytest.fixture(scope="module")
def forks():
    found = AgentForks()
    yield found
    found.close()


@pytest.fixture(scope="module")
def mosquitto():
    with real_broker() as broker:
        yield broker


@pytest.fixture
def world(tmp_path, forks, mosquitto):
    mosquitto.wipe()
    found = World(tmp_path, mosquitto, forks)
    found.start()
    yield found
    found.close()


def plane_pid(world):
    """Process id of the data plane of the agent."""
    children = Path(f"/proc/{world.pid}/task/{world.pid}/children")
    return int(children.read_text().split()[0])


def test_two_good_versions_and_a_bad_one(world):
    fleet = world.fleet
    first = world.install("1.0.0")
    second = world.install("2.0.0")
    bad = world.add("3.0.0-golden")
    report = fleet.wait_outcome(fleet.deploy(bad), "rolled_back")
    assert (report.active, report.last_verified) == (second, second)
    assert "golden" in report.detail
    assert fleet.reported.quarantined == (bad.digest,)
    fleet.wait(lambda: [e for e in fleet.events if e.kind == "rollback"], what="event")
    # The same digest is refused for ever, at once and without fetching.
    asked = len(fleet.asked)
    report = fleet.wait_outcome(fleet.deploy(bad), "refused")
    assert report.active == second
    assert len(fleet.asked) == asked
    # A downgrade is a newer generation that points to old bytes, and these are still here.
    fleet.asked.clear()
    report = fleet.wait_outcome(fleet.deploy(first), "committed")
    assert report.active == first
    assert not [r for r in fleet.asked if r.kind == "blob"]


def test_only_what_the_device_needs_is_fetched(world):
    bundle = tiny_bundle(world.folder, version="1.0.0")
    ref = world.fleet.add(bundle)
    world.fleet.wait_outcome(world.fleet.deploy(ref), "committed")
    asked = {r.name for r in world.fleet.asked if r.kind == "blob"}
    assert bundle.manifest.variants[0].files[0].digest in asked
    assert bundle.manifest.report[0].digest not in asked


@pytest.mark.parametrize(
    ("version", "reason"),
    [("2.0.0-load", "load"), ("2.0.0-errors", "requests failed")],
)
def test_harm_in_the_trial_is_rolled_back(world, version, reason):
    first = world.install()
    bad = world.add(version)
    report = world.fleet.wait_outcome(world.fleet.deploy(bad), "rolled_back")
    assert report.active == first
    assert reason in report.detail
    assert world.fleet.reported.quarantined == (bad.digest,)


def test_a_version_that_crashes_the_data_plane_is_rolled_back(world):
    first = world.install()
    bad = world.add("2.0.0-trial")
    report = world.fleet.wait_outcome(world.fleet.deploy(bad), "rolled_back", seconds=60)
    assert report.last_verified == first
    assert world.fleet.reported.quarantined == (bad.digest,)
    world.fleet.wait(lambda: world.fleet.reported.slots["main"].active == first)


def test_data_plane_is_killed_and_serves_again(world):
    first = world.install()
    old = plane_pid(world)
    os.kill(old, signal.SIGKILL)
    fleet = world.fleet
    fleet.wait(lambda: fleet.reported.health == "failing", what="failing")
    fleet.wait(
        lambda: fleet.reported.health == "degraded" and fleet.reported.slots["main"].active == first
    )
    assert plane_pid(world) != old
    fleet.wait(lambda: [e for e in fleet.events if e.kind == "crash"], what="crash event")


def test_broker_is_wiped_and_comes_back(world):
    fleet = world.fleet
    first = world.install()
    world.broker.stop()
    status = world.folder / "device" / "state" / "status.json"
    deadline = time.monotonic() + 20
    while json.loads(status.read_bytes())["connected"]:
        assert time.monotonic() < deadline, "status says connected without a broker"
        time.sleep(0.02)
    fleet.reported, fleet.births = None, []
    world.broker.wipe()
    fleet.wait(lambda: fleet.reported and fleet.births, what="birth and report")
    assert fleet.reported.slots["main"].active == first
    # The fleet is the truth: it fills the broker again, and the device goes on.
    fleet.wait_outcome(fleet.deploy(world.add("2.0.0")), "committed")


def test_will_state_and_calls(world, forks):
    fleet = world.fleet
    fleet.wait(lambda: fleet.states and fleet.births)
    boot = fleet.births[-1]["boot"]
    assert fleet.states[-1].online
    ping = fleet.call("ping")
    fleet.wait(lambda: [r for r in fleet.replies if r.id == ping and r.result["boot"] == boot])
    count = len(fleet.births)
    fleet.call("rebirth")
    fleet.wait(lambda: len(fleet.births) > count)
    unknown = fleet.call("dance")
    fleet.wait(lambda: [r for r in fleet.replies if r.id == unknown and "dance" in r.error])
    assert forks.kill(world.pid) == -signal.SIGKILL
    fleet.wait(lambda: not fleet.states[-1].online and fleet.states[-1].boot == boot, what="will")
    world.start()
    fleet.wait(lambda: fleet.states[-1].online and fleet.states[-1].boot > boot)


def test_windows_and_events_are_kept_until_acknowledged(world, forks):
    fleet = world.fleet
    text = world.config.read_text()
    forks.stop(world.pid)
    world.config.write_text(text + "\n[telemetry]\nwindow_seconds = 0.2\n")
    fleet.ack = False
    world.start()
    world.install()
    fleet.wait(lambda: fleet.windows and fleet.events)
    spool = world.folder / "device" / "state" / "spool"
    assert len(list(spool.glob("*.telemetry"))) >= 1
    commit = next(e for e in fleet.events if e.kind == "commit")
    # Acknowledged by the application: gone from the disk, and not sent again by the next start.
    for message in [*fleet.windows, *fleet.events]:
        fleet.call("ack", boot=message.boot, sequences=[message.sequence])
    name = f"{commit.boot}_{commit.sequence:010d}.event"
    pong = fleet.call("ping")
    fleet.wait(lambda: [r for r in fleet.replies if r.id == pong])
    assert not (spool / name).exists()


def test_superseded_before_it_was_fetched(world):
    fleet = world.fleet
    world.install()
    second, third = world.add("2.0.0"), world.add("3.0.0")
    fleet.silent = True
    fleet.deploy(second)
    fleet.wait(lambda: fleet.reported.slots["main"].candidate == second)
    fleet.silent = False
    report = fleet.wait_outcome(fleet.deploy(third), "committed")
    assert report.active == third


def test_trial_goes_on_under_a_newer_generation_of_the_same_bytes(world):
    fleet = world.fleet
    ref = world.add("1.0.0")
    fleet.deploy(ref, seconds=1.0)
    fleet.wait(lambda: fleet.reported and "main" in fleet.reported.slots)
    report = fleet.wait_outcome(fleet.deploy(ref, seconds=0.2), "committed")
    assert report.attempted == 2


def test_fleet_quarantine_is_kept(world):
    first = world.install()
    second = world.add("2.0.0")
    generation = world.fleet.deploy(second, quarantined=(second.digest,))
    assert world.fleet.wait_outcome(generation, "refused").active == first


def test_second_agent_on_the_same_folder_is_refused(world, forks):
    world.fleet.wait(lambda: world.fleet.births)
    other = forks.start(world.config, world.folder / "other")
    assert forks.wait(other) != 0
    assert world.fleet.deploy(world.add("1.0.0")) == 1
    world.fleet.wait_outcome(1, "committed")


def test_a_first_version_that_fails_its_trial_leaves_the_slot_empty(world):
    fleet = world.fleet
    bad = world.add("1.0.0-errors")
    report = fleet.wait_outcome(fleet.deploy(bad), "rolled_back")
    assert (report.last_verified, report.candidate) == (None, None)
    fleet.wait(lambda: fleet.reported.slots["main"].active is None, what="nothing served")
    assert fleet.reported.health == "ok" and fleet.reported.quarantined == (bad.digest,)
    fleet.wait_outcome(fleet.deploy(world.add("1.1.0")), "committed")


@pytest.mark.parametrize("named", [False, True])
def test_a_version_that_the_fleet_forbids_is_dropped(world, named):
    fleet = world.fleet
    first = world.install("1.0.0")
    generation = fleet.deploy(first if named else None, quarantined=(first.digest,))
    fleet.wait(lambda: fleet.reported.generation == generation, what="the order")
    fleet.wait(lambda: fleet.reported.slots["main"].active is None, what="nothing served")
    report = fleet.reported.slots["main"]
    assert (report.last_verified, report.outcome) == (None, "rolled_back")
    assert "quarantined by the fleet" in report.detail
    folder = world.folder / "device" / "state" / "bundles" / first.digest.split(":")[1]
    fleet.wait(lambda: not folder.exists(), what="its bytes are gone")


def test_a_forbidden_version_gives_way_to_the_one_before_it(world):
    first = world.install("1.0.0")
    second = world.install("2.0.0")
    world.fleet.deploy(None, quarantined=(second.digest,))
    world.fleet.wait(lambda: world.fleet.reported.slots["main"].active == first)
    assert world.fleet.reported.slots["main"].last_verified == first


def test_a_forbidden_version_serves_until_its_successor_does(world):
    first = world.install("1.0.0")
    second = world.add("2.0.0")
    generation = world.fleet.deploy(second, quarantined=(first.digest,))
    report = world.fleet.wait_outcome(generation, "committed")
    assert report.active == second
    served = (world.folder / "points.journal").read_text().split()
    assert served == ["1.0.0", "2.0.0"]


def test_a_committed_version_that_crashes_on_and_on_gives_way(world, forks):
    fleet = world.fleet
    forks.stop(world.pid)
    world.config.write_text(world.config.read_text() + "\n[telemetry]\nwindow_seconds = 0.4\n")
    world.start()
    first = world.install("1.0.0")
    bad = world.add("2.0.0-loop")
    fleet.deploy(bad, seconds=0.1)
    fleet.wait(lambda: bad.digest in fleet.reported.quarantined, what="quarantine")
    fleet.wait(lambda: fleet.reported.slots["main"].active == first, what="the version before")
    report = fleet.reported.slots["main"]
    assert (report.last_verified, report.outcome) == (first, "rolled_back")
    if "did not come through" not in report.detail:  # it came through its trial
        assert "crashed 5 times in a row" in report.detail


def test_damaged_bytes_are_replaced_while_the_version_before_serves(world, forks):
    fleet = world.fleet
    first = world.install("1.0.0")
    second = world.install("2.0.0")
    forks.kill(world.pid)
    fleet.silent = True
    state = world.folder / "device" / "state"
    damaged = max(
        (state / "bundles" / second.digest.split(":")[1]).glob("blobs/sha256/*"),
        key=lambda path: path.stat().st_size,
    )
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    world.start()
    fleet.wait(lambda: [e for e in fleet.events if e.kind == "damaged"], what="event")
    fleet.wait(lambda: fleet.reported.slots["main"].active == first, what="the version before")
    assert fleet.reported.slots["main"].last_verified == second
    fleet.wait(lambda: fleet.reported.health == "degraded", what="degraded")
    fleet.silent = False
    fleet.wait(lambda: fleet.reported.slots["main"].active == second, 60, what="mended")
    fleet.wait(lambda: fleet.reported.health == "ok", what="ok")


def test_a_disk_that_cannot_be_written_does_not_keep_it_from_serving(world, forks):
    fleet = world.fleet
    first = world.install("1.0.0")
    forks.stop(world.pid)
    state = world.folder / "device" / "state"
    blocked = state / ".state.json.new"
    blocked.mkdir()  # so that no new state can be written, whoever runs this
    world.start()
    fleet.wait(lambda: [e for e in fleet.events if e.kind == "storage"], what="event")
    fleet.wait(lambda: fleet.reported.slots["main"].active == first, what="serves")
    generation = fleet.deploy(world.add("2.0.0"))
    fleet.wait(
        lambda: [e for e in fleet.events if e.message.startswith("an order waits")], what="waits"
    )
    assert world.state().generation == 1
    blocked.rmdir()
    fleet.wait_outcome(generation, "committed")
