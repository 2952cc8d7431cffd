"""MLflow servers for tests: a small one of our own, and (where its address is given) a real one.

Both go through the same tests: ``make test-mlflow`` starts a real server in an environment of its
own, and hands its address over in ``EDGEML_TEST_MLFLOW``.
"""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class State:
    """What the small server holds."""

    def __init__(self):
        self.experiments, self.runs, self.models, self.versions = {}, {}, {}, []
        self.artifacts, self.calls, self.headers = {}, [], []
        self.artifact_root = "mlflow-artifacts:"
        self.fail = {}  # path -> (status, error code)


class Handler(BaseHTTPRequestHandler):
    """Answers as MLflow's documentation of its REST interface says; strict about fields."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_args):
        pass

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status, code):
        self.answer(status, {"error_code": code, "message": f"no: {code}"})

    def begin(self):
        state, url = self.server.state, urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(url.path).removeprefix("/api/2.0/")
        state.calls.append(path)
        state.headers.append(dict(self.headers))
        if path in state.fail:
            self.refuse(*state.fail[path])
            return state, None, {}
        return state, path, {k: v[0] for k, v in parse_qs(url.query).items()}

    def do_GET(self):
        state, path, query = self.begin()
        if path == "mlflow/experiments/get-by-name":
            name = query["experiment_name"]
            if name not in state.experiments:
                return self.refuse(404, "RESOURCE_DOES_NOT_EXIST")
            found = {"experiment_id": state.experiments[name], "name": name}
            return self.answer(200, {"experiment": found})
        return path and self.refuse(404, "ENDPOINT_NOT_FOUND")

    def do_PUT(self):
        state, path, _ = self.begin()
        if path:
            state.artifacts[path.removeprefix("mlflow-artifacts/artifacts/")] = self.body
            self.answer(200, {})

    def do_POST(self):
        state, path, _ = self.begin()
        if path is None:
            return None
        body = json.loads(self.body)
        name = path.removeprefix("mlflow/").replace("/", "_").replace("-", "_")
        return getattr(self, name)(state, body)

    def experiments_create(self, state, body):
        state.experiments[body["name"]] = str(len(state.experiments) + 1)
        self.answer(200, {"experiment_id": state.experiments[body["name"]]})

    def runs_create(self, state, body):
        run_id = f"{len(state.runs):032x}"
        assert set(body) <= {"experiment_id", "run_name", "start_time", "tags"}
        uri = f"{state.artifact_root}/{body['experiment_id']}/{run_id}/artifacts"
        state.runs[run_id] = {
            "status": "RUNNING", "params": {}, "metrics": {}, "tags": pairs(body["tags"]),
            "name": body["run_name"],
        }  # fmt: skip
        self.answer(200, {"run": {"info": {"run_id": run_id, "artifact_uri": uri}, "data": {}}})

    def runs_log_batch(self, state, body):
        run = state.runs[body["run_id"]]
        params, metrics = body.get("params", []), body.get("metrics", [])
        assert len(params) <= 100
        assert len(metrics) <= 1000
        assert all(len(p["value"]) <= 6000 and len(p["key"]) <= 250 for p in params)
        run["params"] |= pairs(params)
        run["metrics"] |= {m["key"]: m["value"] for m in metrics}
        self.answer(200, {})

    def runs_update(self, state, body):
        state.runs[body["run_id"]]["status"] = body["status"]
        self.answer(200, {"run_info": {}})

    def registered_models_create(self, state, body):
        if body["name"] in state.models:
            return self.refuse(400, "RESOURCE_ALREADY_EXISTS")
        state.models[body["name"]] = body
        return self.answer(200, {"registered_model": body})

    def model_versions_create(self, state, body):
        assert body["name"] in state.models
        number = sum(v["name"] == body["name"] for v in state.versions) + 1
        state.versions.append({**body, "version": str(number), "tags": pairs(body["tags"])})
        self.answer(200, {"model_version": {"version": str(number)}})


def pairs(items):
    return {item["key"]: item["value"] for item in items}


@contextmanager
def small_server():
    """Yield (address, state) of the small server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.state = State()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(30)
