"""A demo that is killed takes its processes with it."""

import signal
import subprocess
import time

import pytest

from tests.support.demo import DEMO, children_below


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_it_is_killed(tmp_path, number):
    out = tmp_path / "demo"
    child = subprocess.Popen([*DEMO, "--out", str(out)], stdout=subprocess.PIPE, text=True)
    try:
        for line in child.stdout:
            if "devices enrolled and online" in line:
                break
        assert children_below(out)
        child.send_signal(number)
        assert child.wait(timeout=60) != 0
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    end = time.monotonic() + 20
    while children_below(out) and time.monotonic() < end:
        time.sleep(0.1)
    assert children_below(out) == []
