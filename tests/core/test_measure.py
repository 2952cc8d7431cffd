"""Measuring: intervals, clocks, equal copies, batches, memory."""

import math
import time

import numpy as np
import onnx
import pytest

from edgeml.errors import DeviceError, RequestError, UsageError
from edgeml.runtime import ProgramOptions, get_runtime
from edgeml.runtime.measure import (
    COPIES,
    LEAST_ROUNDS,
    Ratio,
    Timing,
    calibrate_batch,
    choose_clock,
    different,
    interleave,
    sign_interval,
    speedup,
)
from edgeml.runtime.memory import measure_memory
from tests.support.models import cnn, mlp


def timing(wall, cpu=None):
    wall = np.asarray(wall, float)
    return Timing(samples=wall, wall=wall, cpu=np.asarray(wall if cpu is None else cpu, float))


def run_of(path, name="onnxruntime", batch=1):
    program = get_runtime(name).prepare(path, ProgramOptions())
    session = program.session()
    feed = {spec.name: spec.zeros(batch) for spec in program.inputs}
    return lambda: session.run(feed)


def test_two_copies_of_one_model_are_rarely_called_different(tmp_path):
    """Every pair is made anew, so that the copies lie differently in memory each time."""
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    wrong = 0
    for seed in range(200):
        timings = interleave(
            {"a": run_of(path), "b": run_of(path)}, rounds=20, min_block_s=0.0005, seed=seed
        )
        wrong += different(timings["a"], timings["b"])
    assert wrong <= 10


def test_more_work_is_called_different(tmp_path):
    onnx.save(mlp(), tmp_path / "mlp.onnx")
    onnx.save(cnn(channels=16, size=16), tmp_path / "cnn.onnx")
    timings = interleave(
        {"large": run_of(tmp_path / "cnn.onnx", batch=8), "small": run_of(tmp_path / "mlp.onnx")},
        rounds=10,
    )
    ratio = speedup(timings["large"], timings["small"])
    assert different(timings["large"], timings["small"])
    assert 1.0 < ratio.low <= ratio.value <= ratio.high


def test_every_round_visits_all_in_a_seeded_order():
    def visits(seed):
        seen = []
        runs = {name: lambda name=name: seen.append(name) for name in "abc"}
        interleave(runs, rounds=8, min_block_s=0.0, seed=seed)
        return seen[12:]  # the first four calls of each settle how many make a block

    seen = visits(0)
    rounds = ["".join(seen[i : i + 3]) for i in range(0, len(seen), 3)]
    assert len(rounds) == 8
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 1
    assert visits(0) == seen
    assert visits(1) != seen


def test_timings_are_those_of_the_calls():
    calls = []

    def run():
        calls.append(1)
        time.sleep(0.001)

    found = interleave({"sleep": run}, rounds=6, min_block_s=0.004)["sleep"]
    assert len(found.wall) == len(found.cpu) == 6
    assert len(calls) > len(found.samples) >= 12
    assert found.samples.min() >= 0.001
    assert found.p50 <= found.p95 <= found.p99
    assert found.latency_ms()["p50"] == pytest.approx(found.p50 * 1000)
    assert found.cpu.max() < found.wall.min()  # sleeping costs no processor time


def test_a_budget_ends_it_but_not_before_an_interval_is_possible():
    found = interleave({"a": lambda: time.sleep(0.002)}, rounds=1000, budget_s=0.0)
    assert len(found["a"].wall) == LEAST_ROUNDS
    with pytest.raises(UsageError, match="rounds"):
        interleave({"a": int}, rounds=LEAST_ROUNDS - 1)


def test_what_a_run_raises_comes_out():
    def broken():
        raise DeviceError("gone")

    with pytest.raises(DeviceError, match="gone"):
        interleave({"a": broken})


@pytest.mark.parametrize("n", [6, 7, 10, 20, 30, 31, 100])
def test_the_sign_interval_has_its_level(n):
    low, high = sign_interval(n)
    outside = sum(math.comb(n, i) for i in range(low + 1)) / 2**n
    assert 2 * outside <= 0.05
    assert 2 * (outside + math.comb(n, low + 1) / 2**n) > 0.05  # the next is too narrow
    assert high == n - 1 - low


def test_the_sign_interval_covers_a_skewed_median():
    """Noise of a machine is not normal: mostly a little, sometimes a lot."""
    rng = np.random.default_rng(0)
    low, high = sign_interval(20)
    draws = np.sort(rng.lognormal(0.0, 2.0, (4000, 20)), axis=1)
    missed = np.mean((draws[:, low] > 1.0) | (draws[:, high] < 1.0))
    assert missed <= 0.05


def test_a_ratio_is_taken_inside_the_rounds():
    """The machine gets four times slower half-way; the ratio stays."""
    speed = np.repeat([1.0, 4.0], 10)
    ratio = speedup(timing(0.002 * speed), timing(0.001 * speed))
    assert ratio == Ratio(2.0, 2.0 / (1 + COPIES), 2.0 * (1 + COPIES), "wall")
    with pytest.raises(UsageError, match="rounds"):
        speedup(timing([1.0] * 6), timing([1.0] * 7))


def test_the_clock():
    quiet = timing([1.0] * 20)
    taken = timing([1.0] * 5 + [3.0] * 15, [1.0] * 20)
    waiting = timing([1.0] * 20, [0.1] * 20)
    threads = timing([1.0] * 5 + [3.0] * 15, [2.0] * 20)
    assert choose_clock(quiet, quiet) == "wall"
    assert choose_clock(quiet, taken) == "cpu"
    assert choose_clock(taken, waiting) == "wall"  # an accelerator works while the processor waits
    assert choose_clock(taken, threads) == "wall"
    assert speedup(taken, quiet).value == 1.0
    assert speedup(taken, quiet, clock="wall").value == 3.0


class Simulated:
    """A session whose run takes a known time."""

    def __init__(self, fixed, each, most=99):
        self.fixed, self.each, self.most, self.closed = fixed, each, most, False

    def run(self, feed):
        size = len(feed["x"])
        if size > self.most:
            raise RequestError("too many")
        time.sleep(self.fixed + self.each * size)  # waiting does not depend on other work
        return feed

    def close(self):
        self.closed = True


@pytest.mark.parametrize(
    ("fixed", "each", "most", "batch"),
    [(0.0, 0.005, 99, 1), (0.005, 0.00001, 99, 8), (0.005, 0.00001, 4, 4)],
)
def test_the_batch_that_pays(fixed, each, most, batch):
    session = Simulated(fixed, each, most)
    feed = {"x": np.zeros((1, 2), np.float32)}
    plan = calibrate_batch(lambda: session, feed, sizes=(1, 2, 4, 8))
    assert plan.batch == batch
    assert session.closed
    assert set(plan.seconds) <= {1, 2, 4, 8}


def test_a_batch_of_one_must_work():
    with pytest.raises(RequestError):
        calibrate_batch(lambda: Simulated(0, 0, 0), {"x": np.zeros((1, 1), np.float32)})


def test_the_memory_of_a_model_is_its_own(tmp_path):
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    onnx.save(mlp(), small)
    onnx.save(mlp(features=2000, hidden=4000, classes=10), large)  # 32 MB of weights
    low = measure_memory("onnxruntime", small)
    high = measure_memory("onnxruntime", large)
    assert low.peak_bytes > low.base_bytes > 10_000_000
    assert high.model_bytes - low.model_bytes > 25_000_000


def test_memory_of_a_file_that_does_not_load(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(DeviceError, match=r"bad\.onnx.*ended with 1.*ModelError"):
        measure_memory("onnxruntime", tmp_path / "bad.onnx")
