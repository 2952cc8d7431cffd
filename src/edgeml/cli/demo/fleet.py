"""The demo's fleet: one server and four agents, as real processes, driven through the API."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from edgeml.cli.demo.processes import Processes, free_port
from edgeml.errors import GateError, InternalError, UnreachableError
from edgeml.fleet.client import FleetClient
from edgeml.fleet.views import RolloutDetail, RolloutRequest
from edgeml.gates import HealthGate, InstallGate, LabelGate

EDGEML = (sys.executable, "-m", "edgeml.cli")
AGENT = (sys.executable, "-c", "from edgeml_agent.cli import main; main()")
MODEL = "digits"
_ENDED = {"done", "rolled_back", "aborted"}
_START_S, _ROLLOUT_S = 60.0, 90.0
#: Short limits, so that a demo shows in seconds what a fleet takes hours for.
GATES = (
    InstallGate(minimum=1, timeout=30.0),
    HealthGate(soak=2.0),
    LabelGate(max_drop=0.05, minimum=60, patience=30.0, required=True),
)
#: The first version has nobody to be compared with.
FIRST_GATES = (InstallGate(minimum=4, timeout=30.0), HealthGate(soak=1.0))


class Ready(msgspec.Struct, frozen=True):
    """What ``edgeml fleet serve --json`` prints when it is ready."""

    url: str
    mqtt: str
    user: str
    password: str = ""
    broker: str = ""


class DemoFleet:
    """Starts fleet and agents below a folder, and rolls versions out."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        """Nothing is started yet."""
        self.folder = folder
        self.processes = processes
        self.data = folder / "fleet"
        self.ports: dict[str, int] = {}

    def start(self) -> Ready:
        """Start the server and wait until it answers."""
        http, mqtt = free_port(), free_port()
        self.processes.start(
            "fleet",
            [
                *(*EDGEML, "fleet", "serve", "--data", str(self.data), "--fleet", "demo"),
                *("--http", f"127.0.0.1:{http}", "--mqtt", f"127.0.0.1:{mqtt}", "--json"),
            ],
        )
        log = self.processes.logs / "fleet.log"
        self.processes.wait_for("the fleet server", lambda: self._ready(log) is not None, _START_S)
        ready = self._ready(log)
        assert ready is not None
        self.client = FleetClient(ready.url, (self.data / "admin-token").read_text().strip())
        return ready

    def _ready(self, log: Path) -> Ready | None:
        """Return what the server said when it was ready; None before."""
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("{") and '"url"' in line:
                return msgspec.json.decode(line, type=Ready)
        return None

    def enrol(self, device: str, profile: str, tags: dict[str, str]) -> None:
        """Enrol a device, and start its agent."""
        home = self.folder / "devices" / device
        home.mkdir(parents=True)
        file = home / "enrolment.json"
        file.write_bytes(self.client.enrol(device, profile, tags)[0])
        self.ports[device] = free_port()
        address = f"127.0.0.1:{self.ports[device]}"
        self.processes.run([*AGENT, "enrol", str(file), "--state", str(home), "--http", address])
        config = home / "agent.toml"
        if "[telemetry]" in config.read_text():
            raise InternalError(f"{config} has windows of its own, expected the default")
        with config.open("a") as stream:
            stream.write("\n[telemetry]\nwindow_seconds = 1.0\n")
        self.processes.start(device, [*AGENT, "run", "--config", str(config)])

    def wait_online(self) -> None:
        """Wait until the fleet has heard of every agent."""

        def all_online() -> bool:
            rows = self.client.devices()
            return {r.device for r in rows if r.online} >= set(self.ports)

        self.processes.wait_for("all agents online", all_online, _START_S)

    def roll_out(self, version: str, strategy: str, first: bool) -> tuple[RolloutDetail, float]:
        """Roll a version out and follow it to its end.

        Returns:
            The rollout and how many seconds it took.

        Raises:
            UnreachableError: It did not end in time.
        """
        began = time.monotonic()
        request = RolloutRequest(
            MODEL,
            version,
            strategy=strategy,
            gates=FIRST_GATES if first else GATES,
            trial_requests=10,
            trial_seconds=2.0,
        )
        row = self.client.create(request)

        def ended() -> bool:
            return self.client.rollout(row.id).row.state in _ENDED

        self.processes.wait_for(f"rollout of {version}", ended, _ROLLOUT_S)
        return self.client.rollout(row.id), time.monotonic() - began

    def wait_serving(self, version: str, seconds: float = 30.0) -> None:
        """Wait until every device serves a version and has settled.

        Raises:
            GateError: A device does not come to it.
        """

        def settled() -> bool:
            rows = [r for r in self.client.devices() if r.device in self.ports]
            slots = [s for r in rows for s in r.slots if s.slot == MODEL]
            return len(slots) == len(self.ports) and all(
                s.version == version and s.last_verified == version for s in slots
            )

        try:
            self.processes.wait_for(f"all devices on {version}", settled, seconds)
        except UnreachableError as error:
            raise GateError(error.message, error.hint) from error

    def variants(self) -> dict[str, tuple[str, str]]:
        """Return device -> (version, variant) of what serves now."""
        rows = [r for r in self.client.devices() if r.device in self.ports]
        return {r.device: (s.version, s.variant) for r in rows for s in r.slots if s.slot == MODEL}
