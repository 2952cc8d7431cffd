"""The supervisor's socket: stage, switch, settle, revert, probe, observe, quit."""

import contextlib
import http.client
import json
import threading
import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgeml.bundle import Bundle
from edgeml.drift.reference import decode as reference_of
from edgeml.drift.window import DriftWindow
from edgeml.drift.window import decode as window_of
from edgeml.messages.payloads import Ref
from edgeml_agent.control import Clear, Observe, Probe, Quit, Revert, Settle, Stage, Switch
from tests.support.bundles import PROFILE, make_bundle, reference
from tests.support.serving import Control, UnixConnection, call, infer, process

X = np.random.default_rng(3).normal(size=(2, 4)).astype(np.float32)


def staging(path, slot="demo", profile=PROFILE, **changes):
    bundle = Bundle.open(path)
    fields = {"model": bundle.manifest.name, "version": bundle.manifest.version,
              "digest": bundle.digest, **changes}  # fmt: skip
    return Stage(slot, Ref(**fields), str(path), profile)


@contextlib.contextmanager
def data_plane(folder, **changes):
    """Start a data plane; yield its control client and the path of its HTTP socket."""
    folder.mkdir(parents=True, exist_ok=True)
    sockets = folder / "c.sock", folder / "h.sock"
    given = {"http": "", "uds": str(sockets[1]), "cache": str(folder / "cache"), **changes}
    arguments = ("-m", "edgeml_agent.serve", "--control", sockets[0], "--settings",
                 json.dumps(given))  # fmt: skip
    with process(*arguments) as child:
        deadline = time.monotonic() + 30
        while True:
            try:
                control = Control(sockets[0])
                break
            except OSError:
                assert child.poll() is None, child.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.01)
        try:
            yield control, sockets[1], child
        finally:
            control.close()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    made = {v: make_bundle(folder, version=f"{v}.0.0", seed=v) for v in range(1, 6)}
    made["wrong"] = make_bundle(folder, version="9.0.0", fallback=False, wrong_golden=("main",))
    made["broken"] = make_bundle(folder, version="8.0.0", fallback=False, broken=("main",))
    return made


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    with data_plane(tmp_path_factory.mktemp("plane")) as found:
        yield found


def version_of(socket, slot="demo"):
    connection = UnixConnection(socket)
    status, body = infer(connection, slot, "x", X)
    connection.close()
    if status == 404:
        return None
    assert status == 200, body
    return body["model_version"]


def test_one_update_from_stage_to_settle(plane, bundles):
    control, socket, _ = plane
    slot = "update"
    reply = control.ask(staging(bundles[1], slot))
    assert reply.ok and slot not in reply.slots and version_of(socket, slot) is None
    reply = control.ask(Switch(slot))
    assert reply.slots[slot].ref.version == "1.0.0" and version_of(socket, slot) == "1.0.0"
    assert reply.slots[slot].placement == "CPUExecutionProvider"
    assert control.ask(Settle(slot)).ok and control.ask(Probe(slot)).ok
    assert control.ask(staging(bundles[2], slot)).ok and version_of(socket, slot) == "1.0.0"
    assert control.ask(Switch(slot)).ok and version_of(socket, slot) == "2.0.0"
    assert control.ask(Revert(slot)).ok and version_of(socket, slot) == "1.0.0"
    assert control.ask(staging(bundles[3], slot)).ok
    assert control.ask(Revert(slot)).ok and version_of(socket, slot) == "1.0.0"
    reply = control.ask(Revert(slot))
    assert not reply.ok and reply.kind == "state" and version_of(socket, slot) == "1.0.0"
    assert reply.slots[slot].requests >= 3
    assert control.ask(Clear(slot)).ok and control.ask(Clear(slot)).ok
    assert slot not in control.ask(Clear("never")).slots and version_of(socket, slot) is None


def test_what_must_not_serve_says_which_way_it_fails(plane, bundles):
    control, socket, _ = plane
    slot = "bad"
    control.ask(staging(bundles[1], slot))
    control.ask(Switch(slot))
    for request, kind, word in [
        (staging(bundles["wrong"], slot), "golden", "golden samples"),
        (staging(bundles["broken"], slot), "load", "model"),
        (staging(bundles[2], slot, profile="npu"), "load", "no variant for profile 'npu'"),
        (staging(bundles[2], slot, version="7.0.0"), "load", "expected demo 7.0.0"),
        (staging(bundles[2], slot, digest="sha256:" + "1" * 64), "load", "expected"),
        (Stage(slot, Ref("demo", "1.0.0", "sha256:x"), "/nowhere", PROFILE), "load", "nowhere"),
        (Switch(slot), "state", "nothing is staged"),
        (Switch("never"), "state", "no slot"),
        (Probe("never"), "state", "no slot"),
    ]:
        reply = control.ask(request)
        assert not reply.ok and reply.kind == kind and word in reply.error, reply
        assert "\n" not in reply.error
        assert version_of(socket, slot) == "1.0.0"
    for raw in (b"{}", b"nonsense", b'{"type": "dance"}', b"\xff", b"[" * 5000):
        reply = control.raw(raw)
        assert not reply.ok and reply.kind == "state"


def test_windows_never_span_two_versions_and_lose_nothing(plane, bundles):
    control, socket, _ = plane
    slot = "window"
    control.ask(Observe())
    control.ask(staging(bundles[1], slot))
    control.ask(Switch(slot))
    for _ in range(5):
        version_of(socket, slot)
    connection = UnixConnection(socket)
    infer(connection, slot, "x", X * np.inf)
    infer(connection, slot, "x", X[:1], id="late")
    control.ask(staging(bundles[2], slot))
    control.ask(Switch(slot))
    for _ in range(3):
        version_of(socket, slot)
    control.ask(Settle(slot))
    label = json.dumps({"id": "late", "label": 0})
    connection.request("POST", f"/v2/models/{slot}/feedback", label)
    assert connection.getresponse().status == 200
    connection.close()
    windows = {w.ref.version: w for w in control.ask(Observe()).windows if w.slot == slot}
    assert windows["1.0.0"].requests == 6 and windows["1.0.0"].errors == {"request": 1}
    assert windows["1.0.0"].labelled == 1, "a label counts for the version that predicted"
    assert windows["2.0.0"].requests == 3 and windows["2.0.0"].labelled == 0
    assert sum(windows["1.0.0"].latency) == 6
    assert not [w for w in control.ask(Observe()).windows if w.slot == slot]


def test_every_row_reaches_the_drift_window(plane, tmp_path):
    control, socket, _ = plane
    path = make_bundle(tmp_path, version="3.3.3")
    bundle = Bundle.open(path)
    control.ask(staging(path, "drift"))
    control.ask(Switch("drift"))
    rng = np.random.default_rng(0)
    connection = UnixConnection(socket)
    sent = [rng.normal(size=(n, 4)).astype(np.float32) for n in (1, 5, 30, 3, 40, 2)]
    for array in sent[:3]:
        infer(connection, "drift", "x", array)
    first = control.ask(Observe()).windows
    for array in sent[3:]:
        infer(connection, "drift", "x", array)
    connection.close()
    second = control.ask(Observe()).windows
    from_device = DriftWindow(reference_of(bundle.read(bundle.manifest.drift)))
    for window in (*first, *second):
        if window.slot == "drift":
            from_device.merge(window_of(window.drift, from_device.reference))
    ours = DriftWindow(from_device.reference)
    everything = np.concatenate(sent)
    ours.add({"x": everything}, reference()({"x": everything}))
    assert from_device.n == 81
    np.testing.assert_array_equal(from_device.counts, ours.counts)


def test_a_fallback_is_told_as_status_and_event(plane, tmp_path):
    control, socket, _ = plane
    bundle = make_bundle(tmp_path, version="4.4.4", broken=("main",))
    control.ask(Observe())
    assert control.ask(staging(bundle, "fall")).ok
    status = control.ask(Switch("fall")).slots["fall"]
    assert status.variant.endswith("fp32") and "main" in status.degraded
    version_of(socket, "fall")
    reply = control.ask(Observe())
    assert [(kind, level) for kind, level, _ in reply.events][:1] == [("fallback", "warning")]
    assert [w.fallbacks for w in reply.windows if w.slot == "fall"] == [1]


def test_hot_swaps_under_load_lose_and_mix_nothing(plane, bundles):
    control, socket, _ = plane
    slot, right = "hot", {f"{v}.0.0": reference(v) for v in range(1, 6)}
    control.ask(staging(bundles[1], slot))
    control.ask(Switch(slot))
    stop, failures, answered = threading.Event(), [], []

    def worker(seed):
        rng = np.random.default_rng(seed)
        connection = UnixConnection(socket)
        while not stop.is_set():
            x = rng.normal(size=(1 + seed % 2, 4)).astype(np.float32)
            try:
                status, body = infer(connection, slot, "x", x)
            except (OSError, http.client.HTTPException) as error:
                failures.append(error)
                return
            if status != 200:
                failures.append(body)
                continue
            got = np.array(body["outputs"][0]["data"], np.float32).reshape(-1, 3)
            if not np.allclose(got, right[body["model_version"]]({"x": x})["y"], atol=1e-4):
                failures.append(("wrong answer", body))
            answered.append(body["model_version"])
        connection.close()

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        for v in (2, 3, 4, 5, 1, 2):
            before = len(answered)
            assert control.ask(staging(bundles[v], slot)).ok
            assert control.ask(Switch(slot)).ok
            if v == 4:
                assert control.ask(Revert(slot)).ok
            else:
                assert control.ask(Settle(slot)).ok
            deadline = time.monotonic() + 20
            while len(answered) < before + 60 and time.monotonic() < deadline and not failures:
                time.sleep(0.005)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[:3]
    assert len(answered) >= 300 and set(answered) >= {"1.0.0", "2.0.0", "3.0.0", "5.0.0"}


def test_unpacked_files_are_checked_and_what_is_not_used_is_removed(tmp_path, bundles):
    def kept():
        return {p.name for p in (tmp_path / "cache" / "bundles").iterdir()}

    digests = {v: Bundle.open(bundles[v]).digest[7:] for v in (1, 2)}
    with data_plane(tmp_path) as (control, _, child):
        control.ask(staging(bundles[1]))
        control.ask(Switch("demo"))
        control.ask(staging(bundles[2]))
        control.ask(Switch("demo"))
        assert kept() == set(digests.values())
        control.ask(Settle("demo"))
        assert kept() == {digests[2]}
        child.kill()
        child.wait()
    model = next((tmp_path / "cache" / "bundles" / digests[2]).rglob("model.onnx"))
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 0xFF
    model.write_bytes(data)
    with data_plane(tmp_path) as (control, socket, _):
        assert control.ask(staging(bundles[2])).ok, "a damaged copy is made anew"
        assert control.ask(Switch("demo")).slots["demo"].degraded == ""
        assert version_of(socket) == "2.0.0"


def test_quit_is_answered_and_ends_in_order(tmp_path, bundles):
    with data_plane(tmp_path) as (control, socket, child):
        control.ask(staging(bundles[1]))
        control.ask(Switch("demo"))
        assert control.ask(Quit()).ok
        assert child.wait(20) == 0
        assert not socket.exists() and not (tmp_path / "c.sock").exists()


class SlotMachine(RuleBasedStateMachine):
    """Any order of requests leaves the slot as a simple model of it says."""

    plane = None
    made = None
    number = 0

    def __init__(self):
        super().__init__()
        type(self).number += 1
        self.slot = f"machine{self.number}"
        self.serving = self.staged = self.old = None

    def ask(self, request, allowed):
        reply = self.plane[0].ask(request)
        assert reply.ok == allowed, reply
        return reply

    @rule()
    def stage(self):
        version = 1 + (self.serving or 0) % 2
        self.ask(staging(self.made[version], self.slot), True)
        self.staged = version

    @rule()
    def switch(self):
        self.ask(Switch(self.slot), self.staged is not None)
        if self.staged is not None:
            self.serving, self.old, self.staged = self.staged, self.serving, None

    @rule()
    def settle(self):
        self.ask(Settle(self.slot), self.serving is not None)
        if self.serving is not None:
            self.old = None

    @rule()
    def revert(self):
        self.ask(Revert(self.slot), self.staged is not None or self.old is not None)
        if self.staged is not None:
            self.staged = None
        elif self.old is not None:
            self.serving, self.old = self.old, None

    @precondition(lambda self: self.serving is not None)
    @rule()
    def probe(self):
        self.ask(Probe(self.slot), True)

    @invariant()
    def serves_what_the_model_says(self):
        want = f"{self.serving}.0.0" if self.serving else None
        assert version_of(self.plane[1], self.slot) == want


def test_any_order_of_requests(plane, bundles):
    SlotMachine.plane, SlotMachine.made = plane, bundles
    case = SlotMachine.TestCase
    case.settings = settings(max_examples=6, stateful_step_count=12, deadline=None)
    case("runTest").runTest()


def test_counters_go_on_over_a_switch_and_back(plane, bundles):
    control, socket, _ = plane
    slot = "counted"

    def answered():
        connection = UnixConnection(socket)
        page = call(connection, "GET", "/metrics")[2]
        connection.close()
        head = f'edgeml_inference_requests_total{{model="{slot}",version='
        lines = [line for line in page.decode().splitlines() if line.startswith(head)]
        found = {line.split('"')[3]: int(line.split()[-1]) for line in lines if "success" in line}
        assert len(found) == len(lines), "a series stands there twice"
        return found

    for number, expected in [(1, {"1.0.0": 2}), (2, {"1.0.0": 2, "2.0.0": 2}),
                             (1, {"1.0.0": 4, "2.0.0": 2})]:  # fmt: skip
        control.ask(staging(bundles[number], slot))
        control.ask(Switch(slot))
        control.ask(Settle(slot))
        version_of(socket, slot), version_of(socket, slot)
        assert answered() == expected
