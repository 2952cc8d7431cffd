"""convert --on-device: a real fleet, a real broker, real agents that measure; nothing stands in."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest

import edgeml
from edgeml.bundle import Bundle
from edgeml.errors import UnreachableError, UsageError
from edgeml.fleet.measurement import MeasureRequest
from tests.support import models
from tests.support.bounded import killed_after
from tests.support.fleet_server import children, fleet_server

AGENT = [sys.executable, "-c", "from edgeml_agent.cli import main; main()"]
EDGEML = [sys.executable, "-c", "from edgeml.cli import main; main()"]
PROFILE = "cpu-x86-64"


class Agent:
    """A real agent of a real fleet."""

    def __init__(self, server, folder, name):
        self.server, self.name, self.folder = server, name, folder / name
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.http = f"127.0.0.1:{free.getsockname()[1]}"
        server_file = folder / f"{name}.json"
        server_file.write_bytes(server.client.enrol(name, PROFILE, {"site": "lab"})[0])
        subprocess.run(
            [*AGENT, "enrol", server_file, "--state", self.folder, "--http", self.http],
            check=True,
            capture_output=True,
        )
        self.log = (folder / f"{name}.log").open("ab")
        self.start()

    def start(self):
        config = self.folder / "agent.toml"
        self.process = subprocess.Popen(
            [*AGENT, "run", "--config", config], stdout=self.log, stderr=self.log
        )
        wait(lambda: self._row().online, f"{self.name} is online")

    def _row(self):
        return self.server.client.device(self.name).row

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        self.log.close()


def wait(true, what, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := true():
                return found
        except edgeml.errors.InputError:
            pass  # the device is not known yet
        time.sleep(0.05)
    raise AssertionError(f"never: {what}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A fleet with two agents, and a model with data."""
    folder = tmp_path_factory.mktemp("lab")
    onnx.save(models.cnn(), folder / "m.onnx")
    images = np.random.default_rng(0).normal(size=(80, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "d.npz", x_calib=images[:16], x_test=images[16:])
    with fleet_server(folder) as server:
        agents = [Agent(server, folder, name) for name in ("cam-1", "cam-2")]
        try:
            yield server, agents, folder
        finally:
            for agent in agents:
                agent.stop()


def command(server, folder, out, *more, data=False):
    """A conversion; without data it tries the source alone, on every runtime, and is short."""
    given = ["--data", folder / "d.npz", "--max-drop", "0.2"] if data else []
    return [
        *EDGEML, "convert", folder / "m.onnx", "--profile", PROFILE, *given,
        "--effort", "quick", "--shape", "image=1,1,8,8", "--threads", "1", "--no-cache",
        "-o", folder / out, "--server", server.url, "--token", server.token, "--json", *more,
    ]  # fmt: skip


def test_candidates_are_measured_on_the_devices_that_were_named(lab):
    server, _agents, folder = lab
    done = subprocess.run(
        command(server, folder, "two.edgeml", "--on-device", "tag.site=lab", data=True),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert result["host"].startswith("cam-1: ")
    assert "cam-2: " in result["host"]
    timed = [c for c in result["candidates"] if c["latency_ms"]]
    assert len(timed) >= 3
    assert result["baseline"]["latency_ms"]["p50"] > 0
    assert result["winner"]["evidence"] == "measured"
    assert any("gains least" in note for note in result["warnings"])
    manifest = Bundle.open(folder / "two.edgeml").manifest
    assert manifest.variants[0].evidence.state == "measured"
    assert manifest.variants[0].evidence.host == result["host"]
    for job in measurements(server):
        assert job.state == "done"
        assert {part.state for part in job.parts.values()} == {"done"}
        assert all(part.facts.cpu for part in job.parts.values())
    assert not list((server.data / "scratch").iterdir()) or wait(
        lambda: not list((server.data / "scratch").iterdir()), "the scratch area is empty"
    )
    assert server.client.versions() == []  # candidates never come into the registry


def measurements(server):
    from edgeml.fleet.measurement import Measurement

    return server.client._get("measurements", list[Measurement])


def predict(agent):
    """Ask a device for an answer; return the status."""
    host, _, port = agent.http.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    image = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.1] * 64}
    connection.request("POST", "/v2/models/m/infer", json.dumps({"inputs": [image]}))
    status = connection.getresponse().status
    connection.close()
    return status


def test_a_device_that_serves_goes_on_serving_while_it_measures(lab):
    server, (first, _second), folder = lab
    where = ["--server", server.url, "--token", server.token]
    for words in (
        ["registry", "push", folder / "two.edgeml"],
        ["fleet", "deploy", "m@1.0.0", "--to", "device=cam-1", "--strategy", "all-at-once",
         "--soak", "0.2", "--yes", "--wait"],
    ):  # fmt: skip
        subprocess.run([*EDGEML, *words, *where], check=True, capture_output=True, timeout=120)
    assert predict(first) == 200
    process = subprocess.Popen(
        command(server, folder, "busy.edgeml", "--on-device", "device=cam-1"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    answers = []
    with killed_after(process, 240):
        while process.poll() is None:
            answers.append(predict(first))
            time.sleep(0.02)
        _told, said = process.communicate()
    assert process.returncode == 0, said
    assert len(answers) > 10
    assert set(answers) == {200}
    assert server.client.device("cam-1").row.health == "ok"


def test_whom_nobody_can_ask_is_an_error_before_any_work(lab):
    server, _agents, folder = lab
    for selector, code, said in (
        ("tag.site=mars", 2, "fits no device"),
        ("nonsense", 2, "selector term"),
    ):
        done = subprocess.run(
            command(server, folder, "none.edgeml", "--on-device", selector),
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert said in json.loads(done.stdout)["error"]["message"]
    server.client.enrol("cam-9", PROFILE, {"site": "nowhere"})
    with pytest.raises((UnreachableError, UsageError)):
        edgeml.convert(
            folder / "m.onnx", PROFILE, on_device="device=cam-9", server=server.url,
            token=server.token, out=folder / "none.edgeml",
        )  # fmt: skip
    assert not (folder / "none.edgeml").exists()


def test_a_broker_that_ends_while_devices_measure_costs_time_only(lab):
    server, _agents, folder = lab
    known = {job.id for job in measurements(server)}
    process = subprocess.Popen(
        command(server, folder, "broker.edgeml", "--on-device", "device=cam-2"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait(lambda: {job.id for job in measurements(server)} - known, "a measurement")
    for broker in children(server._process.pid):
        os.kill(broker, signal.SIGKILL)
    _told, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    job = next(j for j in measurements(server) if j.id not in known)
    assert job.state == "done"
    assert [part.state for part in job.parts.values()] == ["done"]


def test_an_agent_that_is_killed_while_it_measures_goes_on_when_it_starts_again(lab):
    server, (first, _second), folder = lab
    known = {job.id for job in measurements(server)}
    process = subprocess.Popen(
        command(server, folder, "again.edgeml", "--on-device", "device=cam-1"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip

    def begun():
        jobs = [job for job in measurements(server) if job.id not in known]
        return any(p.state == "measuring" for job in jobs for p in job.parts.values())

    wait(begun, "cam-1 measures")
    first.kill()
    first.start()
    told, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    (result,) = json.loads(told)["results"]
    assert result["winner"]["evidence"] == "measured"


def test_a_conversion_that_is_interrupted_cancels_what_devices_do(lab):
    server, _agents, folder = lab
    known = {job.id for job in measurements(server)}
    process = subprocess.Popen(
        command(server, folder, "cut.edgeml", "--on-device", "device=cam-2"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    job = wait(
        lambda: next((j for j in measurements(server) if j.id not in known), None), "a measurement"
    )
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    wait(lambda: server.client.measurement(job.id).state == "cancelled", "it is cancelled")
    assert not (folder / "cut.edgeml").exists()
    # The device is free again at once: the next one is done.
    again = server.client.measurement(job.id)
    assert {part.state for part in again.parts.values()} == {"cancelled"}


def test_only_who_may_deploy_may_let_devices_measure(lab):
    server, _agents, folder = lab
    from edgeml.errors import NotTrustedError
    from edgeml.fleet.client import FleetClient

    stranger = FleetClient(server.url, "wrong")
    request = MeasureRequest("all", "x")
    with pytest.raises(NotTrustedError):
        stranger.measure(folder / "two.edgeml", request)
    with pytest.raises(UsageError, match="no variant of the bundle"):
        server.client.measure(folder / "two.edgeml", request)
