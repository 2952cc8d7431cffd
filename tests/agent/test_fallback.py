"""The chain of variants: who serves after a failure, and how the first choice comes back."""

import numpy as np
import pytest

from edgeml.errors import DeviceError, ModelError, RequestError
from edgeml.manifest import Evidence, EvidenceState, Tolerance, Variant
from edgeml_agent.serve import fallback
from edgeml_agent.serve.fallback import Chain


def variant(name):
    evidence = Evidence(EvidenceState.CHECKED, "test")
    return Variant(
        f"cpu.{name}.fp32", "cpu", name, "fp32", "fp32", (), "m.onnx", (), (), evidence,
        Tolerance(0.0, 0.0),
    )  # fmt: skip


class Device:
    """Opens variants whose behaviour the test sets: id -> set of faults."""

    def __init__(self):
        self.faults = {}
        self.open_now = []
        self.events = []

    def open(self, chosen):
        if "load" in self.faults.get(chosen.runtime, ()):
            raise ModelError(f"{chosen.runtime} does not load")
        opened = Opened(self, chosen.runtime)
        self.open_now.append(opened)
        return opened

    def check(self, opened, chosen):
        if "golden" in self.faults.get(chosen.runtime, ()):
            raise DeviceError("golden samples differ")

    def note(self, kind, severity, message):
        self.events.append(kind)

    def chain(self, *names):
        return Chain([variant(n) for n in names], self.open, self.check, self.note)


class Opened:
    def __init__(self, device, name):
        self.device, self.name, self.placement = device, name, name.upper()

    def run(self, feed):
        assert self in self.device.open_now, "run after close"
        faults = self.device.faults.get(self.name, ())
        if "run" in faults or (feed["x"] < 0).any():
            raise DeviceError(f"{self.name} broke")
        if np.isnan(feed["x"]).any():
            raise RequestError("nan")
        return {"y": feed["x"] + 1}

    def close(self):
        if self in self.device.open_now:
            self.device.open_now.remove(self)


GOOD = {"x": np.ones(2, np.float32)}


@pytest.mark.parametrize("fault", ["load", "golden"])
def test_what_cannot_serve_is_passed_over_visibly(fault):
    device = Device()
    device.faults["npu"] = {fault}
    chain = device.chain("npu", "cpu")
    assert chain.variant.runtime == "cpu" and chain.placement == "CPU"
    assert "npu" in chain.degraded and device.events == ["fallback"]
    assert [o.name for o in device.open_now] == ["cpu"], "what failed its samples is closed"
    chain.close()
    assert not device.open_now


def test_no_variant_at_all_is_the_first_error():
    device = Device()
    device.faults = {"npu": {"load"}, "cpu": {"golden"}}
    with pytest.raises(ModelError, match="npu does not load"):
        device.chain("npu", "cpu")
    assert not device.open_now


def test_a_failed_run_is_tried_once_on_the_next_which_then_serves():
    device = Device()
    chain = device.chain("npu", "cpu")
    assert not chain.degraded
    device.faults["npu"] = {"run"}
    np.testing.assert_array_equal(chain.run(GOOD)["y"], GOOD["x"] + 1)
    assert chain.variant.runtime == "cpu" and "npu broke" in chain.degraded
    assert device.events == ["fallback"]
    assert [o.name for o in device.open_now] == ["cpu"]


def test_the_first_choice_returns_only_after_its_golden_samples(monkeypatch):
    device = Device()
    chain = device.chain("npu", "cpu")
    device.faults["npu"] = {"run", "golden"}
    chain.run(GOOD)
    before = chain.pause
    assert not chain.restore() and chain.pause == 2 * before
    device.faults["npu"] = set()
    assert chain.restore()
    assert not chain.degraded and chain.placement == "NPU"
    assert device.events == ["fallback", "fallback_over"]
    # A relapse soon after its return has to wait longer.
    device.faults["npu"] = {"run"}
    chain.run(GOOD)
    assert chain.pause == 4 * before
    device.faults["npu"] = {"load"}
    for _ in range(20):
        assert not chain.restore()
    assert chain.pause == fallback.LONGEST_PAUSE
    chain.close()
    assert not device.open_now
    assert not chain.restore(), "nothing comes back after the end"


def test_a_request_that_breaks_every_variant_changes_nothing():
    device = Device()
    chain = device.chain("npu", "cpu")
    with pytest.raises(DeviceError):
        chain.run({"x": -GOOD["x"]})
    assert chain.variant.runtime == "npu" and not chain.degraded and not device.events
    np.testing.assert_array_equal(chain.run(GOOD)["y"], GOOD["x"] + 1)
    with pytest.raises(RequestError):
        chain.run({"x": GOOD["x"] * np.nan})
    assert not chain.degraded


def test_without_a_fallback_the_failure_is_told_and_the_next_request_runs():
    device = Device()
    chain = device.chain("cpu")
    with pytest.raises(DeviceError, match="cpu broke"):
        chain.run({"x": -GOOD["x"]})
    chain.run(GOOD)
    chain.golden()
    device.faults["cpu"] = {"golden"}
    with pytest.raises(DeviceError, match="differ"):
        chain.golden()
