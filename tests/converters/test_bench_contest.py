"""The conversion benchmark: its networks are what they say, its rules are just."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgeml.runtime.measure import Ratio

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("name", ["cnn_digits", "mbv2_digits", "vit_digits"])
def test_a_trained_network_is_right_on_97_of_100_digits(benchmarks, tmp_path, name):
    import nine

    model, data = nine.make(name, tmp_path)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    with np.load(data) as arrays:
        (logits,) = session.run(None, {"image": arrays["test/image"]})
        right = np.mean(logits.argmax(1) == arrays["test/labels"])
    assert right >= 0.97
    assert len(logits) == 719


def test_a_body_of_chance_has_live_channels_and_the_same_bytes_each_time(benchmarks):
    from nine.branches import shufflenet
    from nine.builder import Net

    def build():
        net = Net("small", 1)
        dice = np.random.default_rng(0)
        image = net.input("image", dice.standard_normal((2, 3, 64, 64)).astype(np.float32))
        last = shufflenet(net, image)
        return last, net.model({"features": last})

    (last, one), (_, other) = build(), build()
    assert one.SerializeToString() == other.SerializeToString()
    assert np.isfinite(last.data).all()
    assert (last.data.max((0, 2, 3)) > 0).mean() > 0.9


def row(way, times, state, low=None):
    from contest.compare import Row

    ratio = Ratio(times, times * 0.97 if low is None else low, times * 1.03)
    return Row(way, 1.0, ratio, 0.0, 0.0, state, 30.0, 1, 0.0, 0, "")


def test_the_best_peer_is_the_fastest_that_is_decided_within_the_limit(benchmarks):
    from contest.compare import best_peer

    rows = [row("ort fp32", 1.0, "ok"), row("a", 2.0, "ok"), row("b", 3.0, "undecided"),
            row("c", 4.0, "fails"), row("edgeml", 5.0, "ok")]  # fmt: skip
    assert best_peer(rows) == "a"
    assert best_peer([r for r in rows if r.way != "a"]) == "b"
    assert best_peer([r for r in rows if r.way in ("ort fp32", "c", "edgeml")]) == "ort fp32"


def test_the_largest_process_below_a_command_is_found(benchmarks):
    from rivals import process

    eats = (
        "import sys, subprocess; subprocess.run([sys.executable, '-c', 'b = b\"x\" * (120 << 20)'])"
    )
    done = process.run([process.sys.executable, "-c", eats], 60.0)
    assert done.code == 0
    assert 120 << 20 < done.peak_bytes < 200 << 20
    assert (
        process.run([process.sys.executable, "-c", "import time; time.sleep(60)"], 0.2).code == 124
    )
