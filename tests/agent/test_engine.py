"""The engine behind real HTTP, with a model whose pace the test sets."""

import asyncio
import json
import threading

import numpy as np
import pytest

from edgeml.bundle import Bundle
from edgeml.errors import DeviceError
from edgeml.messages.payloads import Ref
from edgeml_agent.control import Stage
from edgeml_agent.serve.process import DataPlane
from edgeml_agent.serve.settings import Settings, parse_settings
from tests.support.bundles import make_bundle

BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}],
     "parameters": {}}
).encode()  # fmt: skip


class Gate:
    """Stands before the model: waits for the test, and fails when it says so."""

    def __init__(self, opened):
        self.inner = opened.run
        self.entered = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self.broken = False

    def run(self, feed):
        self.entered.set()
        assert self.go.wait(20)
        if self.broken:
            raise DeviceError("the device is gone")
        return self.inner(feed)


async def request(path, body=BODY, target="/v2/models/demo/infer"):
    """Make one request; return status, headers and decoded body."""
    reader, writer = await asyncio.open_unix_connection(path)
    method = "POST" if body else "GET"
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        answer = json.loads(await reader.readexactly(int(headers["content-length"])))
        return int(lines[0].split()[1]), headers, answer
    finally:
        writer.close()


def serve(tmp_path, main, **changes):
    """Serve a bundle in this process, with a gate before its model, and run ``main``."""

    async def whole():
        path = str(tmp_path / "h.sock")
        plane = DataPlane(Settings(http="", uds=path, **changes))
        bundle = Bundle.open(make_bundle(tmp_path))
        ref = Ref("demo", "1.0.0", bundle.digest)
        await plane.slots.stage(Stage("demo", ref, str(bundle.path), ""))
        plane.slots.switch("demo")
        generation = plane.slots.serving()[0]
        gate = Gate(generation.chain.opened)
        generation.chain.opened.run = gate.run
        generation.batcher.inline = False
        generation.batcher.limit = 1
        await plane.start()
        try:
            return await asyncio.wait_for(main(path, gate, generation), 30)
        finally:
            gate.go.set()
            plane.stop()
            await plane.run()

    return asyncio.run(whole())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


def test_a_full_queue_is_503_with_retry_after(tmp_path):
    async def main(path, gate, generation):
        gate.go.clear()
        first = asyncio.create_task(request(path))
        await until(gate.entered.is_set)
        waiting = [asyncio.create_task(request(path)) for _ in range(2)]
        await until(lambda: generation.batcher.depth == 2)
        refused = await request(path)
        gate.go.set()
        rest = await asyncio.gather(first, *waiting)
        return refused, [r[0] for r in rest], dict(generation.counts.errors)

    refused, rest, errors = serve(tmp_path, main, max_queue=2)
    assert refused[0] == 503 and int(refused[1]["retry-after"]) >= 1
    assert rest == [200, 200, 200] and errors == {"overload": 1}


def test_a_client_that_left_the_queue_is_never_run(tmp_path):
    async def main(path, gate, generation):
        gate.go.clear()
        first = asyncio.create_task(request(path))
        await until(gate.entered.is_set)
        gone = asyncio.create_task(request(path))
        await until(lambda: generation.batcher.depth == 1)
        gone.cancel()
        await asyncio.wait([gone])
        await asyncio.sleep(0.05)
        gate.go.set()
        await first
        await until(lambda: generation.counts.errors)
        return dict(generation.counts.errors), generation.batcher.stats.taken

    errors, taken = serve(tmp_path, main)
    assert errors == {"cancelled": 1} and taken == 1


def test_a_hung_model_is_504_and_not_ready(tmp_path):
    async def main(path, gate, generation):
        gate.go.clear()
        answer = await request(path)
        ready = await request(path, b"", "/v2/health/ready")
        gate.go.set()
        await until(lambda: generation.batcher.running_seconds == 0)
        return answer, ready, await request(path, b"", "/v2/health/ready")

    answer, ready, after = serve(tmp_path, main, deadline_seconds=0.2)
    assert answer[0] == 504 and "deadline" in answer[2]["error"]
    assert ready[0] == 503 and ready[2]["live"] and "demo" in ready[2]["reason"]
    assert after[0] == 200


def test_a_request_may_ask_for_an_earlier_deadline(tmp_path):
    async def main(path, gate, generation):
        gate.go.clear()
        hurried = BODY.replace(b'"parameters": {}', b'"parameters": {"timeout": 200000}')
        return await request(path, hurried)

    assert serve(tmp_path, main)[0] == 504


def test_a_device_that_breaks_is_answered_by_the_fallback(tmp_path):
    async def main(path, gate, generation):
        before = await request(path)
        gate.broken = True
        during = await request(path)
        ready = await request(path, b"", "/v2/health/ready")
        await until(lambda: not generation.on_fallback)
        return before, during, ready, await request(path), generation.counts.fallbacks

    before, during, ready, after, fallbacks = serve(tmp_path, main)
    for answer in (before, during, after):
        assert answer[0] == 200
        np.testing.assert_allclose(
            answer[2]["outputs"][0]["data"], before[2]["outputs"][0]["data"], atol=1e-5
        )
    assert ready[0] == 200 and "the device is gone" in ready[2]["degraded"]["demo"]
    assert fallbacks == 1


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "settings"),
        ('{"htp": "x"}', "htp"),
        ('{"max_queue": "many"}', "max_queue"),
        ('{"max_queue": 0}', "max_queue"),
        ('{"idle_seconds": 0}', "idle_seconds"),
        ('{"http": "1.2.3.4:5"}', "token"),
        ('{"http": "localhost:99999"}', "HOST:PORT"),
        ('{"token": "a\\nb"}', "token"),
    ],
)
def test_settings_are_decoded_strictly(text, word):
    from edgeml.errors import UsageError

    with pytest.raises(UsageError, match=word):
        parse_settings(text)
    assert parse_settings('{"http": "[::1]:0"}').address() == ("::1", 0)
    assert parse_settings('{"http": "0.0.0.0:1", "token": "t"}').token == "t"


@pytest.mark.parametrize("binary", [False, True])
def test_outputs_that_are_not_finite_are_an_error_of_the_model(tmp_path, binary):
    body = json.loads(BODY)
    body["parameters"] = {"binary_data_output": binary}

    async def main(path, gate, generation):
        gate.inner = lambda feed: {"y": np.full((1, 3), np.nan, np.float32)}
        status, _, answer = await request(path, json.dumps(body).encode())
        assert status == 500 and "not finite" in answer["error"]
        assert generation.status().errors == {"nonfinite": 1}
        assert generation.status().requests == 0
        generation.nonfinite = True
        status, _, answer = await request(path)
        assert status == 400 and "binary tensor data" in answer["error"]

    serve(tmp_path, main)
