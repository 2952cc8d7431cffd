"""What the data plane costs beside the least that is possible: one client, one Unix socket.

Three paths run the same model with one thread, in turns within one run: the model alone in this
process; length-prefixed frames over a Unix socket to a process that does nothing else; and the
Open Inference Protocol with binary tensors over the Unix socket of ``edgeml-agent serve``. Only
the ratios within one run mean something. Run from the root of the checkout:

    python benchmarks/serving.py [BUNDLE] [--rounds 20] [--requests 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeml.bundle import Bundle
from edgeml.runtime.base import Session
from edgeml.runtime.bind import open_variant
from edgeml.tensors import Array

ROOT = Path(__file__).resolve().parents[1]
_LENGTH = struct.Struct("<I")


def default_bundle(folder: Path) -> Path:
    """Make the small bundle of the tests."""
    sys.path.insert(0, str(ROOT))
    from tests.support.bundles import make_bundle

    made: Path = make_bundle(folder, fallback=False)  # type: ignore[no-untyped-call]  # tests
    return made


def open_session(bundle: Bundle, folder: Path) -> Session:
    """Open the first variant, as the data plane does."""
    manifest, variant = bundle.manifest, bundle.manifest.variants[0]
    files = bundle.unpack(folder, variant.id)
    return open_variant(files, variant, manifest.inputs, manifest.outputs).session()


def raw_server(path: str, bundle_path: str) -> None:
    """Answer frames on a Unix socket for ever: the floor for anything that crosses a process."""
    bundle = Bundle.open(Path(bundle_path))
    spec = bundle.manifest.inputs[0]
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(bundle, Path(folder) / "files")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        connection, _ = listener.accept()
        shape = [1, *spec.shape[1:]]
        while data := receive(connection):
            feed = np.frombuffer(data, spec.dtype).reshape(shape)
            output = next(iter(session.run({spec.name: feed}).values())).tobytes()
            connection.sendall(_LENGTH.pack(len(output)) + output)


def receive(connection: socket.socket) -> bytes:
    """Return one frame; empty at the end of the stream."""
    data = connection.recv(1 << 16)
    if not data:
        return b""
    size = _LENGTH.unpack_from(data)[0] + _LENGTH.size
    while len(data) < size:
        data += connection.recv(1 << 20)
    return data[_LENGTH.size :]


def connect(path: Path) -> socket.socket:
    """Connect to a Unix socket as soon as it is there."""
    deadline = time.monotonic() + 60
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return connection


def raw_call(connection: socket.socket, sample: Array) -> Callable[[], object]:
    """Return one request over frames."""
    data = sample.tobytes()
    frame = _LENGTH.pack(len(data)) + data

    def call() -> object:
        connection.sendall(frame)
        return receive(connection)

    return call


def oip_call(connection: socket.socket, bundle: Bundle, sample: Array) -> Callable[[], object]:
    """Return one request of the Open Inference Protocol with binary tensors, both ways."""
    manifest = bundle.manifest
    raw = sample.tobytes()
    tensor = {"name": manifest.inputs[0].name, "shape": list(sample.shape), "datatype": "FP32",
              "parameters": {"binary_data_size": len(raw)}}  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    request = (
        f"POST /v2/models/{manifest.name}/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\n"
        f"Content-Length: {len(head) + len(raw)}\r\n\r\n"
    ).encode() + head + raw  # fmt: skip

    def call() -> object:
        connection.sendall(request)
        data = connection.recv(1 << 16)
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += connection.recv(1 << 16)
        start = data.lower().index(b"content-length:") + 15
        size = end + 4 + int(data[start : data.index(b"\r\n", start)])
        while len(data) < size:
            data += connection.recv(1 << 20)
        if not data.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the data plane answered: {data[:300]!r}")
        return data

    return call


def measure(paths: dict[str, Callable[[], object]], rounds: int, n: int) -> dict[str, list[float]]:
    """Return seconds per call of every path, in turns so that all meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    for call in paths.values():
        for _ in range(n):
            call()
    for _ in range(rounds):
        for name, call in paths.items():
            for _ in range(n):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return times


def report(times: dict[str, list[float]]) -> dict[str, object]:
    """Print a table and return the figures."""
    rows = {
        name: {
            "p50_us": statistics.median(values) * 1e6,
            "p95_us": statistics.quantiles(values, n=20)[-1] * 1e6,
            "min_us": min(values) * 1e6,
        }
        for name, values in times.items()
    }
    floor = rows["raw frames, Unix socket"]["p50_us"]
    print(f"{'path':<32}{'p50 us':>10}{'p95 us':>10}{'min us':>10}{'x raw':>8}")
    for name, row in rows.items():
        row["ratio_to_raw"] = row["p50_us"] / floor
        print(f"{name:<32}{row['p50_us']:>10.1f}{row['p95_us']:>10.1f}{row['min_us']:>10.1f}"
              f"{row['ratio_to_raw']:>8.2f}")  # fmt: skip
    return {"host": platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "paths": rows}  # fmt: skip


def run(bundle_path: Path, folder: Path, rounds: int, requests: int) -> dict[str, object]:
    """Start both servers, measure, and end them."""
    bundle = Bundle.open(bundle_path)
    spec = bundle.manifest.inputs[0]
    sample = np.random.default_rng(0).random((1, *spec.shape[1:])).astype(np.float32)
    raw_path, uds = folder / "raw.sock", folder / "serve.sock"
    serve = "from edgeml_agent.cli import main; main()"
    commands = (
        [sys.executable, __file__, "--raw-server", str(raw_path), str(bundle_path)],
        [sys.executable, "-c", serve, "serve", str(bundle_path), "--http", "", "--uds", str(uds)],
    )
    servers = [subprocess.Popen(c, stdout=subprocess.DEVNULL) for c in commands]
    try:
        session = open_session(bundle, folder / "files")
        paths: dict[str, Callable[[], object]] = {
            "model alone, in process": lambda: session.run({spec.name: sample}),
            "raw frames, Unix socket": raw_call(connect(raw_path), sample),
            "edgeml-agent serve, Unix socket": oip_call(connect(uds), bundle, sample),
        }
        return report(measure(paths, rounds, requests))
    finally:
        for server in servers:
            server.terminate()
            server.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Cost of the data plane over a raw socket.")
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--raw-server", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.raw_server:
        raw_server(given.raw_server, str(given.bundle))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = given.bundle or default_bundle(folder)
        figures = run(bundle, folder, given.rounds, given.requests)
    print(json.dumps(figures))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
