"""The API and the command line, against a real server process with a real broker."""

import http.client
import json
import urllib.parse

import pytest

from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import COMMANDS
from edgeml.errors import NotTrustedError, UnreachableError, UsageError
from edgeml.fleet import auth
from edgeml.fleet.client import FleetClient
from edgeml.fleet.store import Store
from edgeml.fleet.views import RolloutRequest
from edgeml.messages.enrolment import decode_enrolment
from tests.support.fleet_server import MqttDevices, fleet_server
from tests.support.fleetlet import tiny_bundle


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with fleet_server(tmp_path_factory.mktemp("server")) as running:
        bundle = tiny_bundle(running.data.parent, "kws", "1.0.0", seed=1)
        running.bundle = bundle.path
        running.client.push(bundle.path)
        with MqttDevices(running, ["cam-1", "cam-2"]) as devices:
            running.devices = devices
            stream = Stream(running)
            stream.until(lambda: sum(d.online for d in running.client.devices()) == 2)
            stream.close()
            yield running


class Stream:
    """Server-sent events of a server."""

    def __init__(self, server):
        parts = urllib.parse.urlsplit(server.url)
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        headers = {"Authorization": f"Bearer {server.token}"}
        self._connection.request("GET", "/api/v1/stream", headers=headers)
        self._reply = self._connection.getresponse()
        assert self._reply.getheader("content-type").startswith("text/event-stream")
        assert self._reply.readline() == b": connected\n"

    def next(self):
        while True:
            line = self._reply.readline()
            assert line, "the stream has ended"
            if line.startswith(b"data: "):
                return json.loads(line[6:])

    def until(self, wanted):
        while not wanted():
            self.next()

    def close(self):
        self._connection.close()


def call(server, method, path, body=None, headers=None):
    parts = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    data = json.dumps(body).encode() if body is not None else None
    sent = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, data, {**sent, **(headers or {})})
    reply = connection.getresponse()
    result = reply.status, dict(reply.getheaders()), reply.read()
    connection.close()
    return result


def edgeml(server, *words):
    command = LazyGroup(COMMANDS, name="edgeml")
    return run(command, [*words, "--server", server.url, "--data", str(server.data)])


@pytest.mark.parametrize(
    "path",
    [
        "devices",
        "devices/x",
        "models",
        "models/a/1.0.0",
        "rollouts",
        "rollouts/x",
        "events",
        "health",
        "stream",
    ],
)
def test_nothing_is_shown_without_a_token(server, path):
    status, headers, body = call(server, "GET", f"/api/v1/{path}")
    assert status == 401
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["exit_code"] == 4
    wrong = {"Authorization": "Bearer x", "Cookie": "edgeml_session=y"}
    assert call(server, "GET", f"/api/v1/{path}", headers=wrong)[0] == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "rollouts"),
        ("POST", "rollouts/preview"),
        ("POST", "rollouts/x/abort"),
        ("POST", "models"),
        ("PUT", "models/kws/aliases/prod"),
        ("POST", "models/kws/1.0.0/release"),
        ("POST", "devices/x/enrol"),
        ("POST", "logout"),
    ],
)
def test_nothing_is_changed_without_a_token(server, method, path):
    assert call(server, method, f"/api/v1/{path}", {})[0] == 401


def test_a_browser_logs_in_and_out(server):
    login = {"user": "admin", "password": server.ready["password"]}
    status, headers, _ = call(server, "POST", "/api/v1/login", login)
    assert status == 200
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    held = {"Cookie": cookie.split(";")[0]}
    assert call(server, "GET", "/api/v1/health", headers=held)[0] == 200
    assert call(server, "POST", "/api/v1/logout", headers=held)[0] == 204
    assert call(server, "GET", "/api/v1/health", headers=held)[0] == 401


def test_a_viewer_looks_and_changes_nothing(server):
    store = Store.at(server.data / "fleet.db")
    with store.write() as db:
        auth.add_user(db, "guest", "secret", "viewer", 1.0)
    store.close()
    _, _, body = call(server, "POST", "/api/v1/login", {"user": "guest", "password": "secret"})
    guest = FleetClient(server.url, json.loads(body)["token"])
    assert guest.devices()
    for change in (
        lambda: guest.create(RolloutRequest("kws", "1.0.0")),
        lambda: guest.control("x", "abort", ""),
        lambda: guest.push(server.bundle),
        lambda: guest.set_alias("kws", "prod", "1.0.0"),
        lambda: guest.release("kws", "1.0.0", "why"),
        lambda: guest.enrol("x", "auto", {}),
    ):
        with pytest.raises(NotTrustedError, match="not change"):
            change()


def test_one_server_per_folder(server, capsys):
    command = LazyGroup(COMMANDS, name="edgeml")
    words = ["fleet", "serve", "--data", str(server.data), "--http", "127.0.0.1:0"]
    assert run(command, words) == 2
    assert "another server runs" in capsys.readouterr().err
    port = server.url.rpartition(":")[2]
    assert run(command, ["fleet", "serve", "--http", f"127.0.0.1:{port}"]) == 2
    assert "cannot listen" in capsys.readouterr().err


def test_a_new_password_on_the_servers_machine(server, capsys):
    command = LazyGroup(COMMANDS, name="edgeml")
    here = ["fleet", "password", "--data", str(server.data), "--yes", "--json"]
    login = {"user": "admin", "password": server.ready["password"]}
    session = json.loads(call(server, "POST", "/api/v1/login", login)[2])["token"]
    assert run(command, [*here, "--dry-run"]) == 0
    assert call(server, "POST", "/api/v1/login", login)[0] == 200
    capsys.readouterr()
    assert run(command, here) == 0
    server.ready["password"] = json.loads(capsys.readouterr().out)["password"]
    assert call(server, "POST", "/api/v1/login", login)[0] == 401
    login["password"] = server.ready["password"]
    assert call(server, "POST", "/api/v1/login", login)[0] == 200
    with pytest.raises(NotTrustedError):
        FleetClient(server.url, session).devices()  # what the old password opened is shut
    (server.data / "admin-token").rename(server.data / "kept")
    assert run(command, here) == 0
    server.ready["password"] = json.loads(capsys.readouterr().out)["password"]
    server.token = (server.data / "admin-token").read_text().strip()
    assert FleetClient(server.url, server.token).devices()
    assert run(command, [*here[:2], "amdin", *here[2:]]) == 2
    assert "did you mean 'admin'" in capsys.readouterr().err
    assert run(command, [*here[:3], str(server.data / "nothing"), "--yes"]) == 2
    assert "holds no fleet" in capsys.readouterr().err


def test_a_start_that_fails_makes_no_password(server, tmp_path, capsys):
    command = LazyGroup(COMMANDS, name="edgeml")
    data = tmp_path / "new"
    words = ["fleet", "serve", "--data", str(data), "--http", "127.0.0.1:0"]
    assert run(command, [*words, "--mqtt", "{}:{}".format(*server.mqtt)]) == 2
    assert "--mqtt" in capsys.readouterr().err
    assert not (data / "admin-token").exists()
    (tmp_path / "file").write_text("")
    words[3] = str(tmp_path / "file")
    assert run(command, words) == 2
    assert "cannot write in" in capsys.readouterr().err
    (data / "fleet.db").write_bytes(b"not a database" * 100)
    words[3] = str(data)
    assert run(command, words) == 2
    assert "cannot open the database" in capsys.readouterr().err


def test_guessing_is_slowed_down(server):
    for _ in range(5):
        wrong = {"user": "root", "password": "x"}
        assert call(server, "POST", "/api/v1/login", wrong)[0] == 401
    assert call(server, "POST", "/api/v1/login", wrong)[0] == 429


def test_bad_bodies_are_problems(server):
    held = {"Authorization": f"Bearer {server.token}"}
    for body in ({"model": "kws"}, {"model": "kws", "version": "1.0.0", "wavs": "1"}, []):
        status, _, data = call(server, "POST", "/api/v1/rollouts/preview", body, held)
        assert status == 422
        assert json.loads(data)["type"] == "UsageError"
    ask = {"model": "kws", "version": "1.0.0"}
    for odd in (
        {"trial_requests": 0},
        {"trial_requests": 10**39},
        {"trial_seconds": 1e300},
        {"gates": [{"type": "labels", "minimum": 0}]},
        {"gates": [{"type": "labels", "max_drops": 0.1}]},
        {"gates": [{"type": "install", "max_failed": 2}]},
        {"gates": [{"type": "install", "name": "health"}]},
    ):
        path = "/api/v1/rollouts/preview"
        assert call(server, "POST", path, {**ask, **odd}, held)[0] == 422, odd
    form = {**held, "Content-Type": "application/x-www-form-urlencoded"}
    assert call(server, "POST", "/api/v1/rollouts", {}, form)[0] == 422
    assert call(server, "GET", "/api/v1/events?limit=x", headers=held)[0] == 422
    assert call(server, "GET", "/api/v1/nowhere", headers=held)[0] == 404


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["v1/devices", "nowhere"])
def test_odd_methods_are_answered_in_the_apis_way(server, method, path):
    status, headers, body = call(server, method, f"/api/{path}")
    assert status == 404
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["exit_code"] == 2


def test_the_document_knows_every_route_and_schema(server):
    status, _, data = call(server, "GET", "/api/openapi.json")
    document = json.loads(data)
    assert status == 200
    for path in ("devices", "rollouts", "rollouts/preview", "models", "events", "health", "login"):
        assert f"/api/v1/{path}" in document["paths"]
    text = data.decode()
    known = set(document["components"]["schemas"])
    used = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert used <= known
    assert "RolloutRequest" in known


def test_the_client_raises_what_the_server_said(server):
    with pytest.raises(NotTrustedError, match="not known"):
        FleetClient(server.url, "wrong").devices()
    with pytest.raises(UsageError, match="no device"):
        server.client.preview(RolloutRequest("kws", "1.0.0", "device=nobody"))
    with pytest.raises(UnreachableError, match="no fleet answers"):
        FleetClient("http://127.0.0.1:9", "x").devices()
    with pytest.raises(UsageError, match="no address"):
        FleetClient("localhost", "x")


def test_enrolment(server, tmp_path, capsys):
    out = tmp_path / "cam-9.json"
    words = ("fleet", "enrol", "cam-9", "--out", str(out), "--tag", "site=berlin")
    assert edgeml(server, *words) == 0
    found = decode_enrolment(out.read_bytes())
    assert (found.device, found.fleet, found.tags) == ("cam-9", "default", {"site": "berlin"})
    assert (found.broker_host, found.broker_port) == server.mqtt
    assert json.loads(found.root)["signed"]["_type"] == "root"
    said = capsys.readouterr()
    assert f"edgeml-agent enrol {out.name} --state DIR" in said.out
    assert "known already" not in said.err
    assert edgeml(server, "fleet", "enrol", "cam-9", "--out", str(out)) == 0
    assert "known already, and keeps its tags" in capsys.readouterr().err
    assert decode_enrolment(out.read_bytes()).tags == {"site": "berlin"}
    assert edgeml(server, *words[:-1], "site=rome") == 0
    assert decode_enrolment(out.read_bytes()).tags == {"site": "rome"}
    odd = ("fleet", "enrol", "cam-8", "--profile", "cpu-x86_64", "--out", str(tmp_path / "x"))
    assert edgeml(server, *odd) == 2
    assert "did you mean 'cpu-x86-64'" in capsys.readouterr().err
    assert "cam-8" not in {row.device for row in server.client.devices()}
    assert edgeml(server, "fleet", "enrol", "a/b", "--out", str(tmp_path / "x")) == 2
    assert (
        edgeml(server, "fleet", "enrol", "x", "--tag", "a=b,c", "--out", str(tmp_path / "x")) == 2
    )
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("fleet", "devices"),
        ("fleet", "device", "cam-1"),
        ("fleet", "events"),
        ("fleet", "rollouts"),
        ("registry", "list"),
        ("registry", "show", "kws@1.0.0"),
    ],
)
def test_commands_print_tables_and_json(server, capsys, words):
    assert edgeml(server, *words) == 0
    assert capsys.readouterr().out.strip()
    assert edgeml(server, *words, "--json") == 0
    json.loads(capsys.readouterr().out)


def test_errors_of_the_command_line(server, capsys):
    assert edgeml(server, "fleet", "device", "cam-11") == 2
    assert "did you mean 'cam-1'" in capsys.readouterr().err
    assert edgeml(server, "fleet", "deploy", "kws@1.0.0", "--to", "site=x") == 2
    assert edgeml(server, "fleet", "deploy", "kws", "--to", "all") == 2
    assert edgeml(server, "fleet", "deploy", "kws@1.0.0", "--to", "all") == 2  # nobody to ask
    assert "--yes" in capsys.readouterr().err
    command = LazyGroup(COMMANDS, name="edgeml")
    gone = ["fleet", "devices", "--server", "http://127.0.0.1:9", "--token", "x", "--json"]
    assert run(command, gone) == 5
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 5


def test_push_plan_alias(server, capsys, tmp_path):
    packed = tiny_bundle(tmp_path, "vww", "1.0.0", seed=5)
    assert edgeml(server, "registry", "push", str(packed.path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["digest"] == packed.digest
    other = tiny_bundle(tmp_path / "other", "vww", "1.0.0", seed=6)
    assert edgeml(server, "registry", "push", str(other.path)) == 2
    assert "a version never changes" in capsys.readouterr().err
    assert edgeml(server, "registry", "alias", "vww@1.0.0", "prod", "--dry-run") == 0
    assert server.client.versions("vww")[0].aliases == ()
    assert edgeml(server, "registry", "alias", "vww@1.0.0", "prod", "--yes") == 0
    assert edgeml(server, "registry", "alias", "vww@1.0.0", "1.0", "--yes") == 2
    assert edgeml(server, "registry", "alias", "vww@1.0.0", "a/b", "--yes") == 2
    cut = tmp_path / "cut.edgeml"
    cut.write_bytes(b"x" * 700)
    capsys.readouterr()
    assert edgeml(server, "registry", "push", str(cut)) == 2
    assert "the file that was sent is not a bundle" in capsys.readouterr().err
    assert edgeml(server, "registry", "push", str(tmp_path)) == 2
    assert "oci-layout" in capsys.readouterr().err
    plan = (
        "fleet",
        "deploy",
        "vww@prod",
        "--to",
        "device=cam-1,cam-2",
        "--waves",
        "50%,100%",
        "--plan",
    )
    capsys.readouterr()
    assert edgeml(server, *plan, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [len(wave) for wave in found["waves"]] == [1, 1]
    assert edgeml(server, *plan, "--json", "--id", found["id"]) == 0
    assert json.loads(capsys.readouterr().out)["waves"] == found["waves"]
    assert server.client.rollouts() == [] or server.client.rollouts()[0].ref.model != "vww"
