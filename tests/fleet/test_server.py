"""The server's own parts: what ends by accident is started again."""

import contextlib
import json
import os
import pathlib
import signal
import threading

from tests.support.fleet_server import FleetProcess, MqttDevices, children, fleet_server


def test_a_signal_right_after_the_ready_line_ends_it_gracefully(tmp_path):
    server = FleetProcess(tmp_path)
    for more in ((), (), (), (), ("--after-restore",)):
        server.start(*more)
        assert server.stop() == 0
    log = (tmp_path / "server.log").read_text()
    assert "Traceback" not in log
    assert log.count("Finished server process") == 5
    metadata = server.data / "trust" / "metadata" / "timestamp.json"
    assert json.loads(metadata.read_text())["signed"]["version"] > 1_700_000_000
    assert log.count("an older copy was restored") == 1


def test_a_broker_that_dies_is_started_again(tmp_path):
    with fleet_server(tmp_path) as server:
        process = int((server.data / "lock").read_text())
        (broker,) = children(process)
        with MqttDevices(server, ["cam-1"]) as devices:
            link = devices.devices["cam-1"].link
            here, gone, back = threading.Event(), threading.Event(), threading.Event()
            link.on_connection(lambda up: (back if gone.is_set() else here).set() if up else None)
            link.on_connection(lambda up: None if up or not here.is_set() else gone.set())
            assert link.connected or here.wait(60)
            here.set()
            os.kill(broker, signal.SIGKILL)
            with contextlib.suppress(FileNotFoundError):
                (server.data / "broker" / "mosquitto.db").unlink()
            assert back.wait(90)
            (again,) = children(process)
            assert again != broker
    assert not pathlib.Path(f"/proc/{again}").exists()
