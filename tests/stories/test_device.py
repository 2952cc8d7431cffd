"""A device from its enrolment on: the real commands, the real data plane, a real broker."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeml.bundle import Bundle
from edgeml.link.mqtt import MqttLink
from tests.support.broker import real_broker
from tests.support.bundles import make_bundle, reference
from tests.support.fleetlet import Fleetlet

X = np.random.default_rng(5).normal(size=(2, 4)).astype(np.float32)
AGENT = [sys.executable, "-c", "from edgeml_agent.cli import main; main()"]


def agent(*words, check=True):
    done = subprocess.run(
        [*AGENT, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Device:
    """One device with everything real."""

    def __init__(self, folder, broker):
        self.folder = folder
        self.link = MqttLink("127.0.0.1", broker.port, "fleet")
        self.link.open()
        assert self.link.wait_connected(10)
        self.fleet = Fleetlet(folder, self.link, port=broker.port)
        self.port = free_port()
        file = folder / "enrolment.json"
        file.write_bytes(msgspec.json.encode(self.fleet.enrolment()))
        told = agent(
            "enrol", file, "--state", folder / "dev", "--http", f"127.0.0.1:{self.port}", "--json"
        )
        assert json.loads(told.stdout)["device"] == "dev1"
        self.config = folder / "dev" / "agent.toml"
        text = self.config.read_text()
        self.config.write_text(text + "\n[telemetry]\nwindow_seconds = 0.5\n")
        with (folder / "agent.log").open("w") as log:
            self.process = subprocess.Popen(
                [*AGENT, "run", "--config", str(self.config), "--log", "json"],
                stderr=log,
            )

    def add(self, version, **options):
        path = make_bundle(self.folder, name="demo", version=version, **options)
        return self.fleet.add(Bundle.open(path))

    def infer(self, x=X):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.tolist()}
        connection.request("POST", "/v2/models/main/infer", json.dumps({"inputs": [tensor]}))
        reply = connection.getresponse()
        body = json.loads(reply.read())
        connection.close()
        assert reply.status == 200, body
        output = body["outputs"][0]
        return np.array(output["data"], np.float32).reshape(output["shape"])

    def plane_pid(self):
        listing = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        return int(Path(listing).read_text().split()[0])

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(30)
        finally:
            self.process.kill()
            self.link.close()
        assert code == 0


@pytest.fixture
def device(tmp_path):
    with real_broker() as broker:
        found = Device(tmp_path, broker)
        try:
            yield found
        finally:
            found.close()


def right(answer, seed):
    return np.allclose(answer, reference(seed)({"x": X})["y"], atol=1e-4)


def test_a_device_from_its_enrolment_on(device):
    fleet = device.fleet
    first = device.add("1.0.0", seed=1)
    report = fleet.wait_outcome(fleet.deploy(first, seconds=0.5), "committed", seconds=90)
    assert report.variant.startswith("cpu-x86-64.onnxruntime.")
    assert right(device.infer(), 1)

    # Version 2 while requests go on: not one is lost, each is answered by one of the two.
    second = device.add("2.0.0", seed=2)
    stop, answers, faults = threading.Event(), [], []

    def traffic():
        while not stop.is_set():
            try:
                answers.append(device.infer())
            except (AssertionError, OSError) as error:
                faults.append(error)

    thread = threading.Thread(target=traffic, daemon=True)
    thread.start()
    fleet.wait_outcome(fleet.deploy(second, seconds=1.0, requests=20), "committed", seconds=60)
    stop.set()
    thread.join()
    assert not faults
    assert all(right(answer, 1) or right(answer, 2) for answer in answers)
    assert right(device.infer(), 2)

    # Version 3 fails its own golden samples.
    bad = device.add("3.0.0", seed=3, wrong_golden=("main", "fp32"))
    report = fleet.wait_outcome(fleet.deploy(bad), "rolled_back", seconds=60)
    assert report.active == second
    assert fleet.reported.quarantined == (bad.digest,)
    assert right(device.infer(), 2)

    # What was served is told, window by window, each with its own version.
    asked = len(answers) + 3
    fleet.wait(lambda: sum(w.requests for w in fleet.windows) >= asked, what="windows")
    assert {w.ref.version for w in fleet.windows} == {"1.0.0", "2.0.0"}

    # The data plane is killed.
    os.kill(device.plane_pid(), signal.SIGKILL)
    fleet.wait(lambda: fleet.reported.health == "failing", what="failing")
    fleet.wait(lambda: fleet.reported.slots["main"].active == second, 60, "serving again")
    assert right(device.infer(), 2)

    told = json.loads(agent("status", "--config", device.config, "--json").stdout)
    assert told["running"] is True
    assert told["reported"]["slots"]["main"]["active"]["version"] == "2.0.0"
    assert "demo 2.0.0" in agent("status", "--config", device.config).stdout

    checked = json.loads(agent("doctor", "--config", device.config, "--json").stdout)
    grades = {finding["name"]: finding["grade"] for finding in checked["findings"]}
    assert set(grades.values()) <= {"good", "warning"}
    assert set(grades) == {"state", "disk", "clock", "root", "runtimes", "broker"}
    for line in (device.folder / "agent.log").read_text().splitlines():
        if line.startswith("{"):
            assert set(json.loads(line)) >= {"time", "level", "logger", "message"}


def test_status_and_doctor_of_a_stopped_device(tmp_path):
    config = tmp_path / "agent.toml"
    config.write_text(
        'device = "d"\nfleet = "f"\nstate = "state"\nroot = "root.json"\n'
        f'[broker]\nhost = "127.0.0.1"\nport = {free_port()}\n'
    )
    done = agent("status", "--config", config, check=False)
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 2
    done = agent("doctor", "--config", config, "--json", check=False)
    assert done.returncode == 1
    findings = json.loads(done.stdout)["findings"]
    assert {f["name"] for f in findings if f["grade"] == "bad"} == {"root", "broker"}
