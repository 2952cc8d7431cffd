"""What a crash, a hang or too much memory costs: one job."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import onnx
import pytest

from edgeml_converters.jobs import JobError, Limits, Pool, resident_bytes
from edgeml_converters.jobs.pool import ONE_THREAD, ServerGoneError, busy_ticks
from edgeml_converters.jobs.server import PRELOAD
from edgeml_converters.worker import BuildJob, Built, PassCall
from tests.support import models
from tests.support.bounded import killed_after

EVIL = """
import os, signal, time
from edgeml_converters.passes.base import PassResult

class Evil:
    options = {}
    needs = frozenset()
    promises = frozenset()
    def __init__(self, how=""):
        self.how = how
    def run(self, model, context):
        if self.how == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.how == "hang":
            time.sleep(600)
        if self.how == "eat":
            kept = bytearray(600 << 20)
            kept[::4096] = b"1" * len(kept[::4096])
            time.sleep(600)
        if self.how == "exit":
            os.write(2, b"one\\nthe disk is full\\n")
            os._exit(1)
        if self.how == "no room":
            os._exit(73)
        if self.how == "raise":
            raise ValueError("two\\nlines")
        if self.how == "kill the server":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        return PassResult(model, False, (str(os.getpid()),))
"""


class Nonsense(msgspec.Struct, tag="nonsense"):
    """A job that no worker knows."""


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """Return a function that makes a job of a plug-in that misbehaves, as others' code may."""
    plugin = tmp_path / "plugin"
    (plugin / "evil-1.0.dist-info").mkdir(parents=True)
    (plugin / "evil.py").write_text(EVIL)
    (plugin / "evil-1.0.dist-info" / "METADATA").write_text("Name: evil\nVersion: 1.0\n")
    (plugin / "evil-1.0.dist-info" / "entry_points.txt").write_text(
        "[edgeml.passes]\nevil = evil:Evil\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(plugin))
    onnx.save(models.mlp(), tmp_path / "m.onnx")
    (tmp_path / "calibration.npz").write_bytes(b"PK\x05\x06" + bytes(18))  # an empty archive

    def job(how):
        folder = tmp_path / f"files-{time.monotonic_ns()}"
        folder.mkdir()
        passes = (PassCall("evil", {"how": how}),)
        return BuildJob(
            str(tmp_path / "m.onnx"), str(folder), passes, "cpu", (), (),
            str(tmp_path / "calibration.npz"),
        )  # fmt: skip

    return job


@pytest.fixture
def pool(tmp_path):
    (tmp_path / "work").mkdir()
    with Pool(Limits(60, 500 << 20), tmp_path / "work") as made:
        yield made


def test_one_job_is_lost_and_those_beside_and_after_it_run_on(pool, evil, tmp_path):
    assert pool.run(evil(""), Built, "build").steps[0].name == "evil"
    for how, says in (
        ("crash", "crashed .killed by SIGSEGV"),
        ("exit", "exit 1.*the disk is full"),
        ("raise", "ValueError: two lines"),
        ("eat", "MiB of memory, more than the bound of 500 MiB"),
    ):
        with pytest.raises(JobError, match=says):
            pool.run(evil(how), Built, "build")
    with pytest.raises(OSError, match="No space left"):
        pool.run(evil("no room"), Built, "build")
    with pytest.raises(JobError, match="Invalid value 'nonsense'"):
        pool.run(Nonsense(), Built, "build")
    assert pool.run(evil(""), Built, "build")
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["build.log"]


@pytest.mark.parametrize("can_fork", [True, False])
def test_every_job_has_a_process_of_its_own(pool, evil, monkeypatch, can_fork):
    monkeypatch.setattr("edgeml_converters.jobs.pool.CAN_FORK", can_fork)
    seen = {pool.run(evil(""), Built, "build").steps[0].notes[0] for _ in range(3)}
    assert len(seen) == 3
    assert str(os.getpid()) not in seen
    with pytest.raises(JobError, match="SIGSEGV"):
        pool.run(evil("crash"), Built, "build")


def test_a_hang_ends_at_the_bound_and_a_stop_ends_it_at_once(tmp_path, evil):
    with Pool(Limits(seconds=1.5), tmp_path) as pool:
        pool.run(evil(""), Built, "build")  # the server is up
        started = time.monotonic()
        with pytest.raises(JobError, match="longer than the bound"):
            pool.run(evil("hang"), Built, "build")
        assert time.monotonic() - started < 60
        pool.stop.set()
        with pytest.raises(JobError, match="stopped"):
            pool.run(evil("hang"), Built, "build")


def test_a_child_that_waits_for_ever_ends_long_before_the_bound(tmp_path, evil, caplog):
    with Pool(Limits(seconds=200, idle_seconds=0.5), tmp_path) as pool:
        with pytest.raises(JobError, match="no processor time"):
            pool.run(evil("hang"), Built, "build")
        assert "once more in a new process" in caplog.text  # a copy may have been the cause
        assert pool.run(evil(""), Built, "build")


def test_processor_time_goes_up_and_is_unknown_beside_children():
    before = busy_ticks(os.getpid())
    assert before is not None
    while busy_ticks(os.getpid()) == before:
        sum(range(10_000))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert busy_ticks(os.getpid()) is None
    finally:
        child.kill()
        child.communicate(timeout=30)
    assert busy_ticks(child.pid) is None


@pytest.mark.parametrize("kind", PRELOAD)
def test_what_a_server_imports_starts_no_thread_and_no_process(kind):
    """A copy has one thread: a lock that another one holds at that moment is never released."""
    code = f"""
import os
from edgeml.plugins import load_object
from edgeml_converters.jobs.server import PRELOAD
for name in PRELOAD[{kind!r}]:
    load_object(name)
(task,) = os.listdir("/proc/self/task")
assert not open(f"/proc/self/task/{{task}}/children").read()
"""
    env = {**os.environ, **ONE_THREAD}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=env)


def test_a_server_that_is_killed_is_replaced(pool, evil):
    with pool.converse(evil("kill the server"), "build") as child, pytest.raises(ServerGoneError):
        child.answer(Built)
    assert pool.run(evil(""), Built, "build")


def test_all_processes_end_with_the_one_that_asked(tmp_path, evil):
    job = msgspec.json.encode(evil("hang")).decode()
    code = (
        "import sys, os, msgspec, pathlib\n"
        "from edgeml_converters.jobs import Limits, Pool\n"
        "from edgeml_converters.worker import BuildJob\n"
        f"job = msgspec.json.decode({job!r}, type=BuildJob)\n"
        f"pool = Pool(Limits(), pathlib.Path({str(tmp_path)!r}))\n"
        "child = pool.converse(job, 'build')\n"
        "child._channel.receive(object)\n"  # it has started
        "print('started', flush=True)\n"
        "sys.stdin.read()\n"
    )
    asking = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "EDGEML_TEST_MARK": str(tmp_path)},
    )  # fmt: skip
    with killed_after(asking):
        assert asking.stdout.readline() == b"started\n"
        assert len(marked(tmp_path)) == 3
        asking.send_signal(signal.SIGKILL)
        asking.communicate()
    end = time.monotonic() + 30
    while marked(tmp_path) and time.monotonic() < end:
        time.sleep(0.02)
    assert marked(tmp_path) == []


def marked(mark):
    """Return the processes that have a mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        found += [process.name] if f"EDGEML_TEST_MARK={mark}".encode() in environment else []
    return found


def test_resident_bytes_of_this_process_and_of_none():
    assert resident_bytes(os.getpid()) > 1 << 20
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert resident_bytes(gone.pid) == 0


def test_a_server_is_not_ended_by_a_child_that_is_not_its_own():
    code = """
import os, socket
from edgeml_converters.jobs.server import Server
from edgeml_converters.jobs.wire import Channel
server = Server(socket.socketpair()[0], True)
stranger = os.fork() or os._exit(0)
ours = os.fork() or os._exit(0)
server._children[ours] = Channel(socket.socketpair()[0])
for pid in (stranger, ours):
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
server._reap()
assert not server._children
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
