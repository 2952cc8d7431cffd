"""Drift: counts that merge, survive the wire and bad readings; verdicts that can be believed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeml.drift import reference as drift_reference
from edgeml.drift import window as drift_window
from edgeml.drift.verdict import MIN_SAMPLES, judge
from edgeml.drift.window import DriftWindow
from edgeml.errors import DataError
from edgeml.stats import varint
from edgeml.stats.chi2 import chi2_sf

CLASSES = 4


def data(n, seed, shift=0.0, features=10):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)).astype(np.float32)
    x[:, 0] += shift
    scores = rng.normal(size=(n, CLASSES)).astype(np.float32)
    return {"x": x}, {"y": scores}


REFERENCE = drift_reference.build(*data(2000, 0))


def window(n, seed, shift=0.0):
    found = DriftWindow(REFERENCE)
    found.add(*data(n, seed, shift))
    return found


def test_reference_round_trip_and_shape():
    again = drift_reference.decode(REFERENCE.encode())
    assert again == REFERENCE
    assert again.digest == REFERENCE.digest
    assert again.encode() == REFERENCE.encode()
    assert len(again.features) == 10
    assert all(sum(f.counts) == 2000 for f in again.features)
    inner = np.array([f.counts[2:-3] for f in again.features])
    assert inner.min() > 90
    assert inner.max() < 165


def test_images_are_watched_by_statistics():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 8, 16, 3)).astype(np.uint8)
    made = drift_reference.build({"image": images}, {"value": images[:, 0, 0, :1].astype(float)})
    assert [f.name for f in made.features] == [
        *(f"image.{k}" for k in ("mean", "std", "min", "max", "gradient", "zero", "low", "high")),
        "value",
    ]
    assert made.scores == ()
    dark = DriftWindow(made)
    dark.add({"image": images // 4}, {"value": images[:, 0, 0, :1].astype(float)})
    verdict = judge(dark)
    assert verdict.state == "drift"
    assert verdict.worst[0].name.startswith("image.")


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 40), st.just(10))),
    st.integers(0, 40),
)
def test_merged_is_pooled_whatever_the_values(x, cut):
    y = np.zeros((len(x), CLASSES))
    pooled, left, right = (DriftWindow(REFERENCE) for _ in range(3))
    pooled.add({"x": x}, {"y": y})
    left.add({"x": x[:cut]}, {"y": y[:cut]})
    right.add({"x": x[cut:]}, {"y": y[cut:]})
    left.merge(drift_window.decode(right.encode(), REFERENCE))
    assert left.encode() == pooled.encode()
    assert left.n == len(x)
    assert (left.counts.sum(axis=1) == len(x)).all()


def test_the_wire_is_small():
    rng = np.random.default_rng(0)
    blocks = {f"x{i}": rng.normal(size=(2000, 25)) for i in range(20)}
    found = DriftWindow(drift_reference.build(blocks, {}))
    found.add({name: rng.normal(size=(1000, 25)) for name in blocks}, {})
    assert len(found.encode()) / 500 < 18


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e9, -1e30])
def test_one_bad_reading_changes_no_verdict(bad):
    for shift, state in ((0.0, "ok"), (1.0, "drift")):
        inputs, outputs = data(400, 3, shift)
        inputs["x"][7, :] = bad
        outputs["y"][8, 0] = bad
        found = DriftWindow(REFERENCE)
        found.add(inputs, outputs)
        assert found.n == 400
        assert judge(found).state == state
    inputs, outputs = data(2000, 0)
    inputs["x"][7, :] = bad
    dirty = drift_reference.build(inputs, outputs)
    again = DriftWindow(dirty)
    again.add(*data(400, 3, 1.0))
    assert judge(again).state == "drift"


def test_false_alarms_are_rare():
    alarms = sum(judge(window(300, 100 + seed)).state == "drift" for seed in range(200))
    assert alarms <= 4  # alpha is 1 %: more than 4 of 200 has probability 0.05


def test_clear_drift_is_found_and_named():
    for seed in range(20):
        verdict = judge(window(400, 500 + seed, shift=0.7))
        assert verdict.state == "drift"
        assert verdict.n == 400
        assert verdict.worst[0].name == "x[0]"
        assert verdict.worst[0].effect_low > 0.05
        assert verdict.worst[0].shift > 0.3
        assert "n=400" in str(verdict)
        assert "x[0]" in str(verdict)


def test_classes_that_change_are_found():
    inputs, outputs = data(400, 9)
    outputs["y"][:200, 2] += 10
    found = DriftWindow(REFERENCE)
    found.add(inputs, outputs)
    assert {f.name for f in judge(found).worst} == {"y.class", "y.confidence"}


def test_a_feature_that_becomes_nan_is_found():
    inputs, outputs = data(400, 9)
    inputs["x"][:100, 4] = np.nan
    found = DriftWindow(REFERENCE)
    found.add(inputs, outputs)
    assert judge(found).worst[0].name == "x[4]"


def test_small_harmless_differences_are_no_alarm():
    big = window(20_000, 11, shift=0.05)
    verdict = judge(big, tolerance=0.1)
    assert verdict.state == "ok"


def test_too_few_samples_say_so():
    verdict = judge(window(MIN_SAMPLES - 1, 1))
    assert (verdict.state, verdict.n, verdict.worst) == ("not_enough", MIN_SAMPLES - 1, ())


def test_a_constant_feature_is_watched_too():
    x, y = np.full((200, 1), 5.0), np.zeros((200, 2))
    made = drift_reference.build({"x": x}, {"y": y})
    for value, state in ((5.0, "ok"), (6.0, "drift")):
        found = DriftWindow(made)
        found.add({"x": np.full((100, 1), value)}, {"y": y[:100]})
        assert judge(found).state == state


def test_what_does_not_fit_is_refused():
    inputs, outputs = data(10, 1)
    found = DriftWindow(REFERENCE)
    for bad_inputs, bad_outputs in (
        ({}, outputs),
        ({"x": inputs["x"][:, :3]}, outputs),
        ({"x": inputs["x"][:3]}, outputs),
        (inputs, {}),
        (inputs, {"y": outputs["y"][:, :2]}),
        ({"x": np.float32(1)}, outputs),
    ):
        with pytest.raises(DataError):
            found.add(bad_inputs, bad_outputs)
    assert found.encode() == DriftWindow(REFERENCE).encode()
    with pytest.raises(DataError):
        drift_reference.build({"x": np.zeros((0, 3))}, {})
    with pytest.raises(DataError):
        found.merge(DriftWindow(drift_reference.build(*data(100, 5))))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_harmless(draw):
    wire, ref = window(60, 1).encode(), REFERENCE.encode()
    source = draw.draw(st.sampled_from([wire, ref]))
    at = draw.draw(st.integers(0, len(source) - 1))
    junk = draw.draw(st.binary(max_size=20))
    damaged = source[:at] + junk + source[at + draw.draw(st.integers(0, 20)) :]
    try:
        if source is wire:
            assert drift_window.decode(damaged, REFERENCE).n >= 0
        else:
            DriftWindow(drift_reference.decode(damaged))
    except DataError:
        pass


@given(st.lists(st.integers(0, 2**63 - 1), max_size=50))
def test_varint_round_trip(values):
    assert varint.decode(varint.encode(np.array(values, np.int64)), len(values)).tolist() == values


@pytest.mark.parametrize(
    ("data", "count"), [(b"\x80", 1), (b"\x01", 0), (b"", 1), (b"\xff" * 12, 1)]
)
def test_varint_refuses(data, count):
    with pytest.raises(ValueError, match="expected|longer"):
        varint.decode(data, count)


def test_varint_refuses_a_number_that_is_too_long():
    with pytest.raises(ValueError, match="longer"):
        varint.decode(b"\xff" * 9 + b"\x01", 1)


@pytest.mark.parametrize(
    ("x", "df", "p"),
    [
        *[(3.841458820694124, 1, 0.05), (5.991464547107979, 2, 0.05)],
        *[(24.995790139728616, 15, 0.05), (34.80530573, 18, 0.01), (0.0, 3, 1.0), (1e6, 7, 0.0)],
    ],
)
def test_chi2_agrees_with_the_tables(x, df, p):
    assert chi2_sf(x, df) == pytest.approx(p, rel=1e-6)
