"""Starts a real MLflow server, and runs the tests that need one: ``make test-mlflow``."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

PATIENCE_S = 120


def main(program: str) -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    quiet = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with tempfile.TemporaryDirectory(prefix="edgeml-mlflow-") as name:
        folder = Path(name)
        words = [program, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        words += ["--backend-store-uri", f"sqlite:///{folder / 'store.db'}"]
        words += ["--artifacts-destination", str(folder / "artifacts")]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(words, env=quiet, stdout=log, stderr=log)
        try:
            wait_for(address, server, folder / "log")
            tests = [sys.executable, "-m", "pytest", "-q", "-m", "mlflow", "tests/core"]
            env = {**os.environ, "EDGEML_TEST_MLFLOW": address}
            return subprocess.run(tests, env=env).returncode
        finally:
            server.terminate()
            server.wait(30)


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise SystemExit(f"MLflow did not start:\n{log.read_text()[-2000:]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
