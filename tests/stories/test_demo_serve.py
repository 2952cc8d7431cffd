"""``edgeml demo --serve`` stays up until Ctrl-C."""

import json
import signal
import subprocess
import time
import urllib.request

import pytest

from tests.support.demo import DEMO, children_below


@pytest.mark.slow
def test_serve_stays_up_and_ends_with_ctrl_c(tmp_path):
    out = tmp_path / "demo"
    child = subprocess.Popen(
        [*DEMO, "--out", str(out), "--serve"], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        address = password = ""
        for line in child.stdout:
            if "dashboard: " in line:
                address = line.split("dashboard: ")[1].strip()
            if "password: " in line:
                password = line.split("password: ")[1].strip()
                break
        assert address and password
        body = json.dumps({"user": "admin", "password": password}).encode()
        request = urllib.request.Request(
            f"{address}/api/v1/login", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert reply.status == 200
        child.send_signal(signal.SIGINT)
        child.stdout.read()
        assert child.wait(timeout=60) == 0
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    end = time.monotonic() + 10
    while children_below(out) and time.monotonic() < end:
        time.sleep(0.1)
    assert children_below(out) == []
