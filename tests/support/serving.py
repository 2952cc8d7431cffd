"""Real serving processes for tests, and small clients for them."""

import contextlib
import http.client
import json
import socket
import subprocess
import sys

import msgspec
import numpy as np

from edgeml_agent.control import Reply


@contextlib.contextmanager
def process(*arguments, env=None):
    """Start ``python ARGUMENTS``; it ends with the test, whatever happens."""
    child = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@contextlib.contextmanager
def served(*bundles, options=()):
    """Start ``edgeml-agent serve`` on a free port; yield the process and what it announced."""
    code = "from edgeml_agent.cli import main; main()"
    arguments = ("-c", code, "serve", *bundles, "--http", "127.0.0.1:0", "--json", *options)
    with process(*arguments) as child:
        line = child.stdout.readline()
        assert line, child.stderr.read()
        ready = json.loads(line)
        assert ready.get("ready"), ready
        yield child, ready


def address(ready):
    """Return HOST:PORT of what was announced."""
    return next(a for a in ready["addresses"] if a.startswith("http://"))[len("http://") :]


class Control:
    """The supervisor's side of the control socket, as short as it can be."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(str(path))
        self.stream = self.socket.makefile("rb")

    def ask(self, request):
        """Send a request and return the reply."""
        return self.raw(msgspec.json.encode(request))

    def raw(self, data):
        """Send a line and return the reply."""
        self.socket.sendall(data + b"\n")
        return msgspec.json.decode(self.stream.readline(), type=Reply)

    def close(self):
        """Hang up."""
        self.stream.close()
        self.socket.close()


class UnixConnection(http.client.HTTPConnection):
    """http.client over a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=20)
        self.path = str(path)

    def connect(self):
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def call(connection, method, path, body=None, headers=()):
    """Make one request on a keep-alive connection; return status, headers and decoded body."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body)
    connection.request(method, path, data, dict(headers))
    response = connection.getresponse()
    raw = response.read()
    is_json = response.getheader("Content-Type", "").startswith("application/json")
    return response.status, response.headers, json.loads(raw) if is_json and raw else raw


def infer(connection, model, name, array, **more):
    """Ask for a prediction as JSON; return status and decoded body."""
    tensor = {"name": name, "shape": list(array.shape), "datatype": "FP32",
              "data": np.asarray(array, np.float32).ravel().tolist()}  # fmt: skip
    status, _, body = call(
        connection, "POST", f"/v2/models/{model}/infer", {"inputs": [tensor], **more}
    )
    return status, body
