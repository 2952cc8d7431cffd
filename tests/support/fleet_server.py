"""A real fleet server: ``edgeml fleet serve`` as a process, with the real broker, on loopback."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

from edgeml.errors import UnreachableError
from edgeml.fleet.client import FleetClient
from edgeml.link.mqtt import MqttLink
from edgeml.trust.desired import DirectorKeys
from edgeml.trust.repository import TrustRepository
from tests.support.bounded import killed_after
from tests.support.fleet_simulator import SimDevice

_EDGEML = (sys.executable, "-c", "from edgeml.cli import main; main()")


def children(process):
    """Return the pids of what a process has started, from any of its threads."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


class FleetProcess:
    """The process, its address, and a client with the admin's token."""

    def __init__(self, folder, *options):
        self.data = folder / "fleet"
        self._options = options
        self._mqtt = "127.0.0.1:0"  # the first start chooses a port, later ones keep it

    def start(self, *more):
        """Start, and wait until it says that it is ready."""
        command = [
            *_EDGEML,
            "-v",
            "fleet",
            "serve",
            "--json",
            "--data",
            str(self.data),
            "--http",
            "127.0.0.1:0",
            "--mqtt",
            self._mqtt,
            *self._options,
            *more,
        ]
        self.log = (self.data.parent / "server.log").open("ab")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log)
        with killed_after(self._process):
            line = self._process.stdout.readline()
        if not line:
            self.stop()
            raise UnreachableError((self.data.parent / "server.log").read_text())
        self.ready = json.loads(line)
        self.url = self.ready["url"]
        self.token = (self.data / "admin-token").read_text().strip()
        self.client = FleetClient(self.url, self.token)
        self._mqtt = self.ready["mqtt"]
        host, _, port = self.ready["mqtt"].rpartition(":")
        self.mqtt = (host, int(port))
        return self

    def kill(self):
        """Take the power away: no signal is handled, nothing is said goodbye to."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self.log.close()

    def stop(self):
        """Stop gracefully; return the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._process.stdout.close()
        self.log.close()
        return code


@contextlib.contextmanager
def fleet_server(folder, *options):
    """A running server that ends with the block."""
    server = FleetProcess(folder, *options)
    try:
        yield server.start()
    finally:
        server.stop()


class MqttDevices:
    """Simulated devices on a real broker, with traffic from a thread of their own."""

    name = "default"

    def __init__(self, server, names):
        self._server = server
        trust = TrustRepository(server.data / "trust")
        self.keys = DirectorKeys((trust.director_signer.public_key,))
        self.bad_installs = set()
        self.full_disks = set()
        self.accuracies = {}
        self.devices = {name: SimDevice(self, name) for name in names}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def device_link(self, name, will):
        return MqttLink(*self._server.mqtt, name, will, backoff=(0.1, 0.5))

    def installs(self, _device, ref):
        return ref.version not in self.bad_installs

    def accuracy(self, ref):
        return self.accuracies.get(ref.version, 0.95)

    def _serve(self):
        while not self._stop.wait(0.2):
            for device in self.devices.values():
                device.serve()

    def versions(self, slot="kws"):
        return {name: device.version(slot) for name, device in self.devices.items()}

    def __enter__(self):
        for device in self.devices.values():
            device.link.open()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        for device in self.devices.values():
            device.link.close()
