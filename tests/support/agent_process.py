"""Runs the real supervisor in processes of its own that can be killed at any point.

``AgentForks`` keeps one process that has imported everything; each run is a fork of it, so that it
starts in milliseconds. A run is told to kill itself (SIGKILL) at the n-th point: before the
state file is synced, between sync and rename, between rename and the sync of the folder, and at
the begin and the end of every act of the updater.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TINY_PLANE = Path(__file__).with_name("tiny_plane.py")


class AgentForks:
    """Starts agents; all of them end with it."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )
        assert self._ask({"do": "hello"}) == {"ok": True}

    def _ask(self, request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, config: Path, points: Path, kill_at: str = "") -> int:
        """Start an agent; return its process id. ``points`` gets one line per point passed."""
        request = {"do": "start", "config": str(config), "points": str(points), "kill": kill_at}
        return self._ask(request)["pid"]

    def wait(self, pid: int, seconds: float = 60.0) -> int | None:
        """Wait for an agent's end; return its exit code, negative for a signal.

        An agent that has not ended in time is killed, and the answer is None.
        """
        return self._ask({"do": "wait", "pid": pid, "seconds": seconds})["code"]

    def stop(self, pid: int) -> int:
        """Stop an agent gracefully."""
        os.kill(pid, signal.SIGTERM)
        return self.wait(pid)

    def kill(self, pid: int) -> int:
        os.kill(pid, signal.SIGKILL)
        return self.wait(pid)

    def close(self):
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


def _serve():
    """The process that forks."""
    import edgeml_agent.supervisor  # noqa: F401 - paid once, before the forks

    children = set()
    for line in sys.stdin:
        request = json.loads(line)
        reply = {"ok": True}
        if request["do"] == "start":
            pid = os.fork()
            if pid == 0:
                _agent(Path(request["config"]), Path(request["points"]), request["kill"])
            children.add(pid)
            reply = {"pid": pid}
        elif request["do"] == "wait":
            reply = {"code": _reap(request["pid"], request["seconds"])}
            children.discard(request["pid"])
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _reap(pid, seconds):
    """Wait for a child; kill it, and return None, when it takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _agent(config_path, points, kill_at):
    """One agent: the real supervisor with a data plane that runs nothing."""
    code = 70
    try:
        os.dup2(os.open(points.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = _run_agent(config_path, points, kill_at)
    finally:
        os._exit(code)


def _run_agent(config_path, points, kill_at):
    from edgeml.hardware import DeviceFacts
    from edgeml.link.mqtt import MqttLink
    from edgeml_agent import config, keeper, logs, supervisor

    logs.configure("text")
    note = _Points(points, kill_at)
    _watch_state_file(note)

    class Watched(supervisor.Supervisor):
        def acts(self, phases):
            def around(phase, act):
                def watched(name, slot, stopped):
                    note(f"enter-{phase}")
                    result = act(name, slot, stopped)
                    note(f"leave-{phase}")
                    return result

                return watched

            return {phase: around(phase, act) for phase, act in super().acts(phases).items()}

    supervisor._TICK = 0.05
    keeper._BACKOFF = (0.05, 0.2)
    supervisor.BlockFetcher = functools.partial(supervisor.BlockFetcher, timeout=0.5)
    found = config.load(config_path)
    agent = Watched(
        found,
        supervisor.Machine(
            DeviceFacts("x86_64", "Linux"),
            found.profile,
            lambda socket: [
                sys.executable,
                "-SE",
                str(TINY_PLANE),
                str(socket),
                str(points.with_suffix(".journal")),
            ],
        ),
        lambda client, will: MqttLink(
            found.broker.host, found.broker.port, client, will, backoff=(0.1, 0.3)
        ),
    )
    signal.signal(signal.SIGTERM, lambda *_: agent.stop())
    agent.run()
    return 0


class _Points:
    """Writes every point down, and kills this process at the chosen one (``name#number``)."""

    def __init__(self, path, kill_at):
        self._stream = path.open("a")
        self._kill_at = kill_at
        self._counts = {}

    def __call__(self, name):
        self._counts[name] = self._counts.get(name, 0) + 1
        point = f"{name}#{self._counts[name]}"
        self._stream.write(point + "\n")
        self._stream.flush()
        if point == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _watch_state_file(note):
    """Put points between write, sync, rename and the folder's sync of ``state.json``."""

    fsync, rename = os.fsync, os.rename

    def watched_fsync(handle):
        if str(Path(f"/proc/self/fd/{handle}").readlink()).endswith(".state.json.new"):
            note("written")
        fsync(handle)

    def watched_rename(source, target, **options):
        mine = str(target).endswith("/state.json")
        if mine:
            note("synced")
        rename(source, target, **options)
        if mine:
            note("renamed")

    os.fsync, os.rename = watched_fsync, watched_rename


if __name__ == "__main__":
    _serve()
