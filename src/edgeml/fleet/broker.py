"""The broker that the fleet server brings along: mosquitto when it is here, else amqtt.

It listens on the loopback interface only, where it lets everybody in; a fleet whose devices are
elsewhere has a broker with accounts and TLS, and is given its address. The broker is a child
process that dies with us.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from edgeml.errors import UnreachableError, UsageError
from edgeml.messages.payloads import MAX_PAYLOAD

logger = logging.getLogger(__name__)

_GRACE: Final = 5.0
# The queue: at every connect the fleet is sent all retained messages at once, three of each device,
# and mosquitto drops without a word what is above its default of 1,000. 20,000 are enough for 6,000
# devices; the bytes bound what one client that does not read can take.
_MOSQUITTO_CONFIG: Final = """\
# Written anew at every start.
listener {port} {host}
allow_anonymous true
persistence true
persistence_location ./
autosave_interval 60
max_queued_messages 20000
max_queued_bytes 67108864
max_packet_size {max_packet}
{user}log_dest stderr
log_type error
log_type warning
"""
#: Asks the kernel to end this process with its parent, then becomes what it was asked to run.
#: In a process of its own, because code between fork and exec is not safe beside threads.
_DIE_WITH_PARENT: Final = """\
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
#: CONNECT of MQTT 3.1.1: clean session, keepalive 10 s, client id "edgeml-probe".
_CONNECT: Final = b"\x10\x18\x00\x04MQTT\x04\x02\x00\x0a\x00\x0cedgeml-probe"
_DISCONNECT: Final = b"\xe0\x00"


class EmbeddedBroker:
    """An MQTT broker as a child process.

    Start it from a thread that lives as long as it shall: the kernel ends it with that thread.

    Args:
        host: A loopback address, or ``localhost``.
        port: TCP port; 0 for a free one.
        folder: For its configuration, its log and what it keeps; made when missing.
        kind: ``mosquitto``, ``amqtt``, or ``auto`` for the first that is here.

    Raises:
        UsageError: The address is not a loopback address, or mosquitto is not here.
    """

    def __init__(self, host: str, port: int, folder: Path, kind: str = "auto") -> None:
        """Choose the broker; ``start`` runs it."""
        if not is_loopback(host):
            raise UsageError(
                f"the embedded broker listens on loopback only, got '{host}'",
                "install mosquitto with accounts and TLS, and give its address with --broker",
            )
        self._mosquitto = _find_mosquitto() if kind != "amqtt" else None
        if kind == "mosquitto" and self._mosquitto is None:
            raise UsageError("mosquitto is not on the PATH", "apt install mosquitto")
        self.host, self.port, self._folder = host, port or free_port(), folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def kind(self) -> str:
        """``mosquitto`` or ``amqtt``."""
        return "mosquitto" if self._mosquitto else "amqtt"

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def describe(self) -> str:
        """Return one line for people."""
        what = (
            "mosquitto (MQTT 5, keeps sessions and retained messages on disk)"
            if self._mosquitto
            else "amqtt (MQTT 3.1.1, for a demo: keeps nothing; install mosquitto for more)"
        )
        return f"{what} on {self.host}:{self.port}"

    def start(self, timeout: float = 20.0) -> None:
        """Run the broker and wait until it answers.

        Raises:
            UsageError: The port is taken.
            UnreachableError: The broker ended or did not answer in time; the message holds its
                last words.
            OSError: The folder cannot be written.
        """
        if self.running:
            return
        if is_taken(self.host, self.port):  # whoever holds it would answer in our broker's place
            raise UsageError(
                f"port {self.port} of {self.host} is taken",
                "stop who has it, or choose another broker port with --mqtt HOST:PORT",
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / "broker.log"
        command = [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid()), *self._command()]
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # a Ctrl-C is for us; we end the broker after the agents
            )
        deadline = time.monotonic() + timeout
        while self.running and time.monotonic() < deadline:
            if answers(self.host, self.port) and self.running:
                logger.info("broker: %s", self.describe())
                return
            time.sleep(0.05)
        state = "does not answer" if self.running else "ended at once"
        self.stop()
        words = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise UnreachableError(
            f"{self.kind} on {self.host}:{self.port} {state}: {words[0]}",
            f"is the port free? its log is {log}",
        )

    def stop(self) -> None:
        """End the broker: it may save, and is killed when it takes too long."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _command(self) -> list[str]:
        if self._mosquitto is None:
            return [sys.executable, "-m", "edgeml.fleet.broker_child", self.host, str(self.port)]
        config = _MOSQUITTO_CONFIG.format(
            port=self.port,
            host=self.host,
            max_packet=MAX_PAYLOAD + (64 << 10),
            # As root it would become user "mosquitto", who cannot write to our folder.
            user="user root\n" if os.geteuid() == 0 else "",
        )
        (self._folder / "mosquitto.conf").write_text(config)
        return [self._mosquitto, "-c", "mosquitto.conf"]


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def free_port() -> int:
    """Return a TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_taken(host: str, port: int) -> bool:
    """Tell whether somebody listens there already."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # Connections that ended a moment ago are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return True
    return False


def answers(host: str, port: int, timeout: float = 1.0) -> bool:
    """Tell whether an MQTT broker accepts a connection there."""
    try:
        with socket.create_connection((host, port), timeout) as probe:
            probe.sendall(_CONNECT)
            reply = probe.recv(4)
            probe.sendall(_DISCONNECT)
    except OSError:
        return False
    return reply[:1] == b"\x20" and reply[3:4] == b"\x00"


def _find_mosquitto() -> str | None:
    """Return the path of mosquitto; Debian keeps it where users do not look."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which("mosquitto", path=os.pathsep.join([path, "/usr/sbin", "/usr/local/sbin"]))
