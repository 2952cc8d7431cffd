"""What a crash, a hang or too much memory costs: one job."""

import os
import subprocess
import sys
import time
from threading import Event

import msgspec
import pytest

from edgeml_converters import jobs
from edgeml_converters.jobs import JobError, Limits, resident_bytes, run_job


class Nonsense(msgspec.Struct, tag="nonsense"):
    """A job that no worker knows."""


@pytest.fixture
def instead(monkeypatch):
    """Run other code than the worker in the child process."""
    real = subprocess.Popen

    def use(code):
        def start(_words, **options):
            return real([sys.executable, "-c", code, _words[-1]], **options)

        monkeypatch.setattr(jobs.subprocess, "Popen", start)

    return use


def test_a_job_that_nobody_knows_is_a_reason_and_no_traceback_of_ours():
    with pytest.raises(JobError, match="crashed"):
        run_job(Nonsense(), dict, Limits(30))


def test_a_crash_is_told_by_its_signal(instead):
    instead("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(JobError, match="SIGSEGV"):
        run_job(Nonsense(), dict, Limits(30))


def test_a_hang_ends_at_the_bound(instead):
    instead("import time; time.sleep(600)")
    started = time.monotonic()
    with pytest.raises(JobError, match="longer than the bound"):
        run_job(Nonsense(), dict, Limits(seconds=0.3))
    assert time.monotonic() - started < 60


def test_a_stop_ends_it_at_once(instead):
    instead("import time; time.sleep(600)")
    stop = Event()
    stop.set()
    with pytest.raises(JobError, match="stopped"):
        run_job(Nonsense(), dict, Limits(600), stop)


def test_a_worker_ends_with_the_process_that_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "job")  # nobody writes: the worker waits for ever
    code = (
        "import subprocess, sys, os; c = subprocess.Popen([sys.executable, '-m', "
        f"'edgeml_converters.worker', {str(tmp_path)!r}], stdin=subprocess.PIPE, stdout=1); "
        "os.kill(os.getpid(), 9)"
    )
    # The pipe closes when the last process that holds it has ended: the worker is one of them.
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -9


def test_too_much_memory_ends_it(instead):
    instead(
        "import time; x = bytearray(300 << 20); x[::4096] = b'1' * len(x[::4096]); time.sleep(99)"
    )
    with pytest.raises(JobError, match="MiB of memory"):
        run_job(Nonsense(), dict, Limits(60, 100 << 20))


def test_the_last_line_of_a_failed_child_is_the_reason(instead):
    instead("print('one'); raise SystemExit('the disk is full')")
    with pytest.raises(JobError, match="exit 1.*the disk is full"):
        run_job(Nonsense(), dict, Limits(30))


def test_a_child_without_room_for_its_files_is_no_fault_of_the_candidate(instead):
    instead(f"raise SystemExit({jobs.NO_SPACE})")
    with pytest.raises(OSError, match="No space left"):
        run_job(Nonsense(), dict, Limits(30))


def test_resident_bytes_of_this_process_and_of_none():
    assert resident_bytes(os.getpid()) > 1 << 20
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert resident_bytes(gone.pid) == 0
