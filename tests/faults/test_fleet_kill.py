"""The fleet's server is killed in the middle of a rollout, and the broker forgets everything."""

import shutil
import time

import pytest

from edgeml.fleet.views import RolloutRequest
from edgeml.gates import HealthGate, LabelGate
from tests.support.fleet_server import MqttDevices, fleet_server
from tests.support.fleetlet import tiny_bundle

QUICK = (HealthGate(soak=0.3), LabelGate(minimum=20, patience=30.0))


def follow(server, rollout, until):
    """Ask until the rollout is in one of some states; every round is a request to the server."""
    while (row := server.client.rollout(rollout).row).state not in until:
        time.sleep(0.05)
    return row


@pytest.mark.parametrize(("accuracy", "end"), [(0.95, "done"), (0.2, "rolled_back")])
def test_a_killed_server_goes_on_where_it_was(tmp_path, accuracy, end):
    names = [f"cam-{i}" for i in range(4)]
    with fleet_server(tmp_path) as server:
        for number in (1, 2):
            bundle = tiny_bundle(tmp_path / "made", "kws", f"{number}.0.0", seed=number)
            server.client.push(bundle.path)
        with MqttDevices(server, names) as devices:
            while sum(row.online for row in server.client.devices()) < 4:
                time.sleep(0.05)
            first = RolloutRequest("kws", "1.0.0", strategy="all-at-once", gates=QUICK)
            follow(server, server.client.create(first).id, {"done"})
            devices.accuracies = {"1.0.0": 0.95, "2.0.0": accuracy}
            made = server.client.create(RolloutRequest("kws", "2.0.0", gates=QUICK)).id
            generations = {row.device: row.wanted for row in server.client.devices()}
            server.kill()
            shutil.rmtree(server.data / "broker")
            server.start()
            assert follow(server, made, {"done", "rolled_back"}).state == end
            expected = "2.0.0" if end == "done" else "1.0.0"
            while set(devices.versions().values()) != {expected}:
                time.sleep(0.05)
            for row in server.client.devices():
                assert row.wanted >= generations[row.device]
            for device in devices.devices.values():
                assert device.accepted == sorted(set(device.accepted))
