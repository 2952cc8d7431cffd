"""``edgeml-agent serve`` as a user meets it: a real process, real clients, real sockets."""

import gzip
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgeml_agent.serve.metrics import METRICS
from tests.support.bundles import make_bundle, reference
from tests.support.serving import UnixConnection, address, call, infer, process, served

RNG = np.random.default_rng(5)
X = RNG.normal(size=(3, 4)).astype(np.float32)
IMAGES = RNG.normal(size=(2, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    first = make_bundle(folder)
    second = make_bundle(folder, "pic", "2.1.0", kind="cnn", packed=True)
    uds = folder / "s.sock"
    with served(first, second, options=("--uds", str(uds))) as (child, ready):
        ready["uds"] = uds
        ready["process"] = child
        yield ready


@pytest.fixture
def client(plane):
    connection = http.client.HTTPConnection(address(plane), timeout=20)
    yield connection
    connection.close()


@pytest.fixture
def triton(plane):
    import tritonclient.http

    with tritonclient.http.InferenceServerClient(address(plane)) as found:
        yield found


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tritonclient_infers_in_every_form(triton, binary_in, binary_out):
    import tritonclient.http as http_client

    tensor = http_client.InferInput("image", IMAGES.shape, "FP32")
    tensor.set_data_from_numpy(IMAGES, binary_data=binary_in)
    wanted = None
    if binary_out is not None:
        wanted = [http_client.InferRequestedOutput("logits", binary_data=binary_out)]
    for version in ("", "2.1.0"):
        answer = triton.infer(
            "pic", [tensor], model_version=version, outputs=wanted, request_id="mine",
            timeout=5_000_000,
        )  # fmt: skip
        right = reference(kind="cnn")({"image": IMAGES})["logits"]
        np.testing.assert_allclose(answer.as_numpy("logits"), right, atol=1e-5)
        assert answer.get_response()["id"] == "mine"
        assert answer.get_response()["model_version"] == "2.1.0"


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_tritonclient_may_compress(triton, compression):
    import tritonclient.http as http_client

    tensor = http_client.InferInput("x", X.shape, "FP32")
    tensor.set_data_from_numpy(X)
    answer = triton.infer(
        "demo", [tensor], request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )  # fmt: skip
    np.testing.assert_allclose(answer.as_numpy("y"), reference()({"x": X})["y"], atol=1e-5)


def test_tritonclient_asks_everything_else(triton):
    from tritonclient.utils import InferenceServerException

    assert triton.is_server_live() and triton.is_server_ready()
    assert triton.is_model_ready("demo") and triton.is_model_ready("demo", "1.0.0")
    assert not triton.is_model_ready("none") and not triton.is_model_ready("demo", "9.0.0")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    metadata = triton.get_model_metadata("demo")
    assert metadata["versions"] == ["1.0.0"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    config = triton.get_model_config("demo")
    assert config["max_batch_size"] >= 1 and config["input"][0]["data_type"] == "TYPE_FP32"
    assert {m["name"] for m in triton.get_inference_statistics()["model_stats"]} == {"demo", "pic"}
    assert triton.get_inference_statistics("pic")["model_stats"][0]["version"] == "2.1.0"
    assert {m["state"] for m in triton.get_model_repository_index()} == {"READY"}
    with pytest.raises(InferenceServerException, match="not served") as error:
        triton.get_model_metadata("none")
    assert error.value.status() == "404"


def test_many_at_once_get_their_own_answers(plane):
    right, wrong = reference(), []

    def worker(seed):
        rng = np.random.default_rng(seed)
        connection = http.client.HTTPConnection(address(plane), timeout=20)
        for i in range(40):
            x = rng.normal(size=(1 + i % 3, 4)).astype(np.float32)
            status, body = infer(connection, "demo", "x", x, id=f"{seed}-{i}")
            got = np.array(body["outputs"][0]["data"], np.float32).reshape(-1, 3)
            good = status == 200 and body["id"] == f"{seed}-{i}"
            if not good or not np.allclose(got, right({"x": x})["y"], atol=1e-5):
                wrong.append(body)
        connection.close()

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_health_says_what_serves(client):
    assert call(client, "GET", "/v2/health/live")[2] == {"live": True, "ready": True}
    status, _, body = call(client, "GET", "/v2/health/ready")
    assert status == 200 and body["ready"] and body["degraded"] == {}
    assert body["models"] == {"demo": "1.0.0", "pic": "2.1.0"}
    status, _, body = call(client, "GET", "/v2/models/demo/ready")
    assert (status, body) == (200, {"name": "demo", "ready": True})


def tensor(**changes):
    base = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    return {"inputs": [{**base, **changes}]}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "word"),
    [
        ("POST", "/v2/models/none/infer", tensor(), 404, "not served"),
        ("POST", "/v2/models/demo/versions/9.9.9/infer", tensor(), 404, "1.0.0"),
        ("GET", "/v2/nothing", None, 404, "no path"),
        ("GET", "/v2/models/demo/", None, 404, "no path"),
        ("GET", "/", None, 404, "no path"),
        ("GET", "/v2/models/demo/infer", None, 405, "GET"),
        ("DELETE", "/v2", None, 405, "DELETE"),
        ("POST", "/v2/models/demo/infer", b"{", 400, "not an inference request"),
        ("POST", "/v2/models/demo/infer", tensor(name="z"), 400, "unknown input"),
        ("POST", "/v2/models/demo/infer", tensor(shape=[4]), 400, "shape"),
        ("POST", "/v2/models/demo/infer", tensor(shape=[0, 4], data=[]), 400, "0 rows"),
        ("POST", "/v2/models/demo/infer", tensor(datatype="FP64"), 400, "float64"),
        ("POST", "/v2/models/demo/infer", tensor(data=[1e39] * 4), 400, "not finite"),
        ("POST", "/v2/models/demo/infer", {**tensor(), "outputs": [{"name": "z"}]}, 400, "output"),
        ("POST", "/v2/models/demo/feedback", {"id": "never", "label": 1}, 404, "never"),
        ("POST", "/v2/models/demo/feedback", {"id": 1}, 400, "body"),
    ],
)
def test_every_wrong_request_is_one_clear_error(client, method, path, body, status, word):
    got, headers, answer = call(client, method, path, body)
    assert got == status and word in answer["error"] and "\n" not in answer["error"]
    assert (got == 405) == ("Allow" in headers)
    assert infer(client, "demo", "x", X)[0] == 200, "the connection goes on"


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("br", b"x", 415),
        ("gzip", b"not gzip", 400),
        ("gzip", gzip.compress(json.dumps(tensor()).encode(), mtime=0)[:-4], 400),
        ("gzip", gzip.compress(b" " * (65 << 20), mtime=0), 413),
    ],
)
def test_compressed_bodies_are_bounded(client, encoding, body, status):
    headers = {"Content-Encoding": encoding}
    assert call(client, "POST", "/v2/models/demo/infer", body, headers)[0] == status


def test_a_not_finite_raw_input_is_refused_too(client):
    raw = np.array([[1, np.nan, 2, 3]], np.float32).tobytes()
    head = tensor(parameters={"binary_data_size": len(raw)})
    del head["inputs"][0]["data"]
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    status, _, body = call(client, "POST", "/v2/models/demo/infer", text + raw, headers)
    assert status == 400 and "not finite" in body["error"]


def test_the_unix_socket_serves_the_same(plane):
    connection = UnixConnection(plane["uds"])
    status, body = infer(connection, "pic", "image", IMAGES)
    connection.close()
    right = reference(kind="cnn")({"image": IMAGES})["logits"].ravel()
    assert status == 200
    np.testing.assert_allclose(body["outputs"][0]["data"], right, atol=1e-5)


def test_labels_come_late_and_are_counted(client):
    predicted = [int(c) for c in reference()({"x": X})["y"].argmax(axis=1)]
    _, body = infer(client, "demo", "x", X[:1])
    assert body["id"], "a request without an id gets one"
    wrong = (predicted[0] + 1) % 3
    feedback = "/v2/models/demo/feedback"
    answers = [call(client, "POST", feedback, {"id": body["id"], "label": wrong})]
    infer(client, "demo", "x", X, id="three")
    names = [f"class{c}" for c in predicted]
    answers.append(call(client, "POST", feedback, {"id": "three", "label": names}))
    answers.append(call(client, "POST", feedback, {"id": "three", "label": names}))
    assert [(a[0], a[2].get("labelled"), a[2].get("correct")) for a in answers] == [
        (200, 1, 0), (200, 3, 3), (404, None, None),
    ]  # fmt: skip
    page = call(client, "GET", "/metrics")[2].decode()
    assert re.search(r'feedback_labels_total\{model="demo".*agreed="true"\} 3', page)


def test_metrics_are_what_the_reference_says(client):
    infer(client, "demo", "x", X)
    status, headers, page = call(client, "GET", "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = page.decode().splitlines()
    sample = re.compile(r'([a-z_]+)(\{([a-z_]+="[^"]*",?)*\})? [0-9.e+-]+')
    names = set()
    for line in lines:
        if not line.startswith("#"):
            found = sample.fullmatch(line)
            assert found, line
            names.add(re.sub(r"_(bucket|sum|count)$", "", found[1]))
    assert names == set(METRICS)
    assert {line.split()[2] for line in lines if line.startswith("# TYPE")} == set(METRICS)
    buckets = [int(x.split()[-1]) for x in lines if x.startswith("edgeml_inference_duration")
               and "_bucket" in x and 'model="demo"' in x]  # fmt: skip
    assert buckets == sorted(buckets) and buckets[-1] >= 1
    text = Path(__file__).parents[2].joinpath("docs/reference/metrics.md").read_text()
    documented = set(re.findall(r"^\| `(edgeml_[a-z_]+)`", text, re.MULTILINE))
    assert documented == set(METRICS)


def test_a_client_that_vanishes_harms_nobody(plane, client):
    host, _, port = address(plane).rpartition(":")
    body = json.dumps(tensor()).encode()
    head = f"POST /v2/models/demo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    for cut in (3, len(head), len(head) + 5, len(head) + len(body)):
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall((head.encode() + body)[:cut])
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    assert infer(client, "demo", "x", X)[0] == 200


def test_sigterm_answers_what_is_in_flight_and_exits_0(tmp_path):
    bundle = make_bundle(tmp_path, kind="cnn")
    with served(bundle) as (child, ready):
        codes, started = [], threading.Event()

        def worker():
            connection = http.client.HTTPConnection(address(ready), timeout=20)
            try:
                while True:
                    codes.append(infer(connection, "demo", "image", IMAGES)[0])
                    if len(codes) > 50:
                        started.set()
            except (http.client.HTTPException, ConnectionError):
                return  # between two requests: the server is gone
            finally:
                connection.close()

        threads = [threading.Thread(target=worker) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert started.wait(20)
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
        for thread in threads:
            thread.join()
    assert set(codes) == {200}


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--http", "0.0.0.0:0"], 2, "token"),
        (["--http", "nowhere"], 2, "HOST:PORT"),
        (["--http", ""], 2, "Unix socket"),
        (["--profile", "npu-of-tomorrow"], 2, "npu-of-tomorrow"),
        (["--max-batch", "0"], 2, "max_batch"),
        (["--uds", "{file}"], 2, "not a socket"),
    ],
)
def test_what_cannot_be_served_is_one_line(tmp_path, arguments, code, word):
    bundle = make_bundle(tmp_path)
    (tmp_path / "file").write_text("mine")
    words = [a.replace("{file}", str(tmp_path / "file")) for a in arguments]
    program = "from edgeml_agent.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", str(bundle), "--http", "127.0.0.1:0", *words],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == code and word in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and done.stdout == ""
    assert (tmp_path / "file").read_text() == "mine"


def test_an_open_address_asks_for_the_token(tmp_path):
    bundle = make_bundle(tmp_path)
    uds = tmp_path / "u.sock"
    options = ("--http", "0.0.0.0:0", "--token", "s3cret", "--uds", str(uds))
    with served(bundle, options=options) as (_, ready):
        port = address(ready).rpartition(":")[2]
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
        assert call(connection, "GET", "/v2")[0] == 401
        good = {"Authorization": "Bearer s3cret"}
        assert call(connection, "GET", "/v2", headers=good)[0] == 200
        connection.close()
        local = UnixConnection(uds)
        assert call(local, "GET", "/v2")[0] == 200, "the socket's file guards itself"
        local.close()


def test_a_broken_first_choice_is_visible_in_health(tmp_path):
    bundle = make_bundle(tmp_path, wrong_golden=("main",))
    with served(bundle) as (_, ready):
        assert "golden samples" in ready["models"]["demo"]["degraded"]
        connection = http.client.HTTPConnection(address(ready), timeout=20)
        body = call(connection, "GET", "/v2/health/ready")[2]
        assert body["ready"] and "golden" in body["degraded"]["demo"]
        assert infer(connection, "demo", "x", X)[0] == 200
        page = call(connection, "GET", "/metrics")[2].decode()
        connection.close()
    assert re.search(r'degraded\{model="demo",version="1.0.0"\} 1', page)
    assert re.search(r'fallback_total\{model="demo",version="1.0.0"\} 1', page)


def test_the_module_is_never_started_without_a_supervisor():
    with process("-m", "edgeml_agent.serve") as child:
        _, error = child.communicate(timeout=30)
        assert child.returncode == 2 and "--control" in error


def test_an_address_that_is_taken(tmp_path):
    bundle = make_bundle(tmp_path)
    code = "from edgeml_agent.cli import main; main()"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        http = f"127.0.0.1:{taken.getsockname()[1]}"
        with process("-c", code, "serve", bundle, "--http", http) as child:
            assert child.wait(30) == 2
            error, hint = child.stderr.read().splitlines()[-2:]
    assert error.startswith(f"error: cannot listen on '{http}'")
    assert hint == "hint: stop the process that uses it, or choose another address"
