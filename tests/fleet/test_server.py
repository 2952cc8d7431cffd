"""The server's own parts: what ends by accident is started again."""

import contextlib
import os
import pathlib
import signal
import threading

from tests.support.fleet_server import MqttDevices, fleet_server
from tests.support.fleetlet import tiny_bundle


def children(process):
    """Return the pids of what a process has started, from any of its threads."""
    tasks = pathlib.Path(f"/proc/{process}/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


def test_a_broker_that_dies_is_started_again_and_refilled(tmp_path):
    with fleet_server(tmp_path) as server:
        process = int((server.data / "lock").read_text())
        (broker,) = children(process)
        bundle = tiny_bundle(tmp_path, "kws", "1.0.0", seed=1)
        server.client.push(bundle.path)
        with MqttDevices(server, ["cam-1"]) as devices:
            back = threading.Event()
            os.kill(broker, signal.SIGKILL)
            with contextlib.suppress(FileNotFoundError):
                (server.data / "broker" / "mosquitto.db").unlink()
            devices.devices["cam-1"].link.on_connection(lambda up: up and back.set())
            assert back.wait(30)
            (again,) = children(process)
            assert again != broker
    assert not pathlib.Path(f"/proc/{again}").exists()
