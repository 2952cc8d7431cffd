"""kill -9 at every transition of the updater, and between write, sync and rename of its state.

Whatever the point: after it the state on the disk is whole, the generation has not fallen, the
next start serves the version that is last verified on the disk, and the update comes to its end.
"""

import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgeml.link.mqtt import MqttLink
from edgeml_agent import enrol
from edgeml_agent.state import read_state
from edgeml_agent.transitions import Phase
from tests.support.agent_process import AgentForks
from tests.support.broker import real_broker
from tests.support.fleetlet import Fleetlet, tiny_bundle

WORKERS = 3


class Lane:
    """One device of its own, with a fleet of its own, that is killed again and again."""

    def __init__(self, folder, port, number, version, outcome, fresh=False):
        self.outcome = outcome
        self.folder = folder / f"lane{number}"
        self.folder.mkdir()
        self.link = MqttLink("127.0.0.1", port, f"fleet{number}", backoff=(0.1, 0.3))
        self.link.open()
        assert self.link.wait_connected(10)
        self.fleet = Fleetlet(self.folder, self.link, f"dev{number}", port)
        self.first = None
        self.second = self.fleet.add(tiny_bundle(self.folder, version=version))
        self.forks = AgentForks()
        self.device = self.folder / "device"
        enrol.enrol(self.fleet.enrolment(), self.device)
        if not fresh:
            self.first = self.fleet.add(tiny_bundle(self.folder, version="1.0.0", size=300_000))
            self.fleet.deploy(self.first, seconds=0.1)
            self.run_to_end(1, "committed")
        shutil.copytree(self.device, self.folder / "template")
        self.generation = self.fleet.deploy(self.second, seconds=0.1)

    def state(self):
        return read_state(self.device / "state" / "state.json")

    def points(self, name="points"):
        return self.folder / name

    def run_to_end(self, generation, outcome):
        """Run the agent until the attempt is over; return the versions that it served."""
        journal = self.points().with_suffix(".journal")
        journal.write_text("")
        pid = self.forks.start(self.device / "agent.toml", self.points())

        def over():
            slot = self.state().slot("main")
            if not journal.read_text():  # it does not serve yet
                return None
            return slot.phase is Phase.IDLE and slot.attempted == generation and slot.outcome

        assert self.fleet.wait(over, 30, f"end of generation {generation}") == outcome
        self.passed = self.points().read_text().split()  # before the stop, which is one more write
        assert self.forks.stop(pid) == 0
        return journal.read_text().split()

    def dry_run(self):
        """Return every point that an update passes."""
        self.points().write_text("")
        self.run_to_end(self.generation, self.outcome)
        return self.passed

    def cut(self, point):
        """Kill the agent at one point, look, and let it go on; return whether it was passed.

        How often the state is written depends on when messages arrive: the last writes of the
        dry run may not come again. The beginning and the end of every act must.
        """
        shutil.rmtree(self.device)
        shutil.copytree(self.folder / "template", self.device)
        before = self.state()
        pid = self.forks.start(self.device / "agent.toml", self.points(), point)
        code = self.forks.wait(pid, 20)
        if code is None and not point.startswith(("enter", "leave")):
            slot = self.state().slot("main")
            assert slot.attempted == self.generation
            assert slot.outcome == self.outcome
            return False
        assert code == -signal.SIGKILL, f"{point} was never passed"
        cut = self.state()
        verified = cut.slot("main").last_verified
        assert cut.generation >= before.generation
        assert verified == self.first or (self.outcome == "committed" and verified == self.second)
        if cut.slot("main").phase is Phase.COMMIT:
            assert verified == self.second
        served = self.run_to_end(self.generation, self.outcome)
        assert served[0] == (verified or self.second).version, point
        after = self.state()
        slot = after.slot("main")
        wanted = self.second if self.outcome == "committed" else self.first
        assert after.generation == self.generation
        assert (slot.active, slot.last_verified, slot.candidate) == (wanted, wanted, None)
        assert (self.second.digest in after.quarantined) == (self.outcome != "committed")
        assert (self.device / "state" / "bundles" / wanted.digest.split(":")[1]).is_dir()
        return True

    def close(self):
        self.forks.close()
        self.link.close()


@pytest.mark.parametrize(
    ("version", "outcome", "fresh", "chosen"),
    [
        ("2.0.0", "committed", False, lambda points: points),
        ("2.0.0-golden", "rolled_back", False, lambda p: p[p.index("enter-warmup#1") :]),
        ("2.0.0", "committed", True, lambda points: [p for p in points if p[:2] in ("en", "sy")]),
    ],
    ids=["commit", "rollback", "first"],
)
def test_power_cut_at_every_point(tmp_path, version, outcome, fresh, chosen):
    with real_broker() as broker:
        lanes = [Lane(tmp_path, broker.port, n, version, outcome, fresh) for n in range(WORKERS)]
        try:
            points = chosen(lanes[0].dry_run())
            acts = {point for point in points if point.startswith("enter-")}
            assert len(acts) == (6 if outcome == "committed" else 2), points
            shares = [points[n::WORKERS] for n in range(WORKERS)]
            with ThreadPoolExecutor(WORKERS) as pool:
                cuts = pool.map(lambda lane, share: [*map(lane.cut, share)], lanes, shares)
                passed = [one for lane in cuts for one in lane]
            assert len(passed) == len(points)
            assert passed.count(False) <= len(points) // 10
        finally:
            for lane in lanes:
                lane.close()


def test_endless_power_cuts_in_the_trial_end_in_a_rollback(tmp_path):
    with real_broker() as broker:
        lane = Lane(tmp_path, broker.port, 0, "2.0.0", "rolled_back")
        try:
            for _ in range(4):
                pid = lane.forks.start(lane.device / "agent.toml", lane.points(), "enter-trial#1")
                assert lane.forks.wait(pid) == -signal.SIGKILL
            lane.run_to_end(2, "rolled_back")
            state = lane.state()
            assert state.slot("main").last_verified == lane.first
            assert lane.second.digest in state.quarantined
        finally:
            lane.close()
