"""Histograms and calibration methods against brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeml_converters.quantizer import parameters as rules
from edgeml_converters.quantizer import ranges
from edgeml_converters.quantizer.histogram import SIDE, Histogram

finite = st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False, width=32)
arrays = hnp.arrays(np.float32, st.integers(1, 200), elements=finite)


def histogram(*parts):
    found = Histogram()
    for part in parts:
        found.add(np.asarray(part, np.float32))
    return found


@given(st.lists(arrays, min_size=1, max_size=4), st.randoms())
def test_a_histogram_does_not_depend_on_the_order(parts, dice):
    shuffled = list(parts)
    dice.shuffle(shuffled)
    one, other = histogram(*parts), histogram(*shuffled)
    assert one.width == other.width
    assert np.array_equal(one.counts, other.counts)
    assert (one.low, one.high) == (other.low, other.high)


@given(arrays)
def test_a_histogram_counts_each_value_in_its_bin(array):
    found = histogram(array)
    assert found.counts.sum() == array.size
    assert (found.low, found.high) == (array.min(), array.max())
    largest = float(np.abs(array).max())
    if not found.width:
        assert largest == 0
        return
    assert math.frexp(found.width)[0] == 0.5  # a power of two
    assert largest <= SIDE * found.width
    if largest > 1e-20:
        assert largest >= SIDE * found.width / 2
    want = np.floor(array.astype(np.float64) / found.width).astype(int) + SIDE
    assert np.array_equal(found.counts, np.bincount(want, minlength=2 * SIDE))


@given(arrays)
def test_every_method_gives_a_range_within_what_was_seen_and_round_zero(array):
    found = histogram(array)
    for choose in ranges.METHODS.values():
        low, high = choose(found)
        assert min(found.low, 0) <= low <= 0 <= high <= max(found.high, 0)


def test_percentile_is_the_percentile():
    array = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    array[:5] = 1000  # far out, and too rare to count
    found = histogram(array)
    low, high = ranges.percentile(found)
    rest = (1 - ranges.COVERED) / 2
    assert low == pytest.approx(np.quantile(array, rest), abs=2 * found.width)
    assert high == pytest.approx(np.quantile(array, 1 - rest), abs=2 * found.width)


def squared_error(array, low, high):
    found = rules.activation(low, high)
    if found.scale == 1.0 and found.zero_point == 0:
        return float((array.astype(np.float64) ** 2).mean())
    back = (rules.stored(array, found).astype(np.float64) - found.zero_point) * found.scale
    return float(((array - back) ** 2).mean())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(2, 50), st.booleans())
def test_mse_is_near_the_best_of_all_ranges(seed, outlier, signed):
    dice = np.random.default_rng(seed)
    array = dice.normal(size=20_000).astype(np.float32)
    array = array if signed else np.abs(array)
    array[:4] = outlier
    low, high = ranges.mse(histogram(array))
    whole = min(float(array.min()), 0.0), float(array.max())
    grid = np.linspace(0.02, 1, 60)
    lows = grid * whole[0] if signed else [0.0]
    best = min(squared_error(array, a, b) for a in lows for b in grid * whole[1])
    assert squared_error(array, low, high) <= 1.35 * best
    assert squared_error(array, low, high) <= squared_error(array, *whole) * 1.001


def test_entropy_cuts_off_what_is_far_out_and_keeps_what_is_even():
    dice = np.random.default_rng(2)
    bell = dice.normal(size=100_000).astype(np.float32)
    bell[:3] = 100
    _, high = ranges.entropy(histogram(bell))
    assert 3 < high < 20
    even = dice.uniform(-1, 1, 100_000).astype(np.float32)
    low, high = ranges.entropy(histogram(even))
    assert low == pytest.approx(-1, abs=0.05)
    assert high == pytest.approx(1, abs=0.05)


def test_entropy_keeps_all_of_a_few_values():
    grey = np.repeat(np.arange(17, dtype=np.float32) / 16, 100)
    assert ranges.entropy(histogram(grey)) == (0, 1)
    assert ranges.entropy(histogram(-grey)) == (-1, 0)


@given(finite, finite)
def test_an_activation_covers_its_range_and_holds_zero(a, b):
    low, high = min(a, b), max(a, b)
    for scheme, (_, smallest, largest) in rules.STORED.items():
        found = rules.activation(low, high, scheme)
        assert smallest <= found.zero_point <= largest
        assert np.float32(found.scale) == found.scale
        zero = rules.stored(np.zeros(1), found, scheme)
        assert zero[0] == found.zero_point
        edges = np.array([min(low, 0), max(high, 0)])
        back = (rules.stored(edges, found, scheme).astype(float) - found.zero_point) * found.scale
        if found.scale != 1.0:
            assert np.all(np.abs(back - edges) <= 1.001 * found.scale)


shaped = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 6)),
    elements=st.floats(-100, 100, width=32),
)


@given(shaped, st.sampled_from([None, 0, 1]), st.booleans())
def test_weights_are_within_half_a_step(array, axis, reduce_range):
    found = rules.weights(array, axis, reduce_range=reduce_range)
    limit = 64 if reduce_range else 127
    assert found.values.dtype == np.int8
    assert np.abs(found.values.astype(int)).max() <= limit
    assert found.scale.shape == (() if axis is None else (array.shape[axis],))
    shape = [1, 1]
    if axis is not None:
        shape[axis] = -1
    scale = found.scale.astype(np.float64).reshape(shape)
    assert np.all(np.abs(found.values * scale - array) <= 0.5001 * scale + 1e-30)


@given(
    hnp.arrays(np.float32, 4, elements=st.floats(-1e9, 1e9, width=32)),
    st.floats(1e-9, 10),
)
def test_a_bias_always_fits(bias, input_scale):
    array = np.full((4, 3), 1e-3, np.float32)
    array[0] = 0
    found = rules.weights(array, 0, input_scale=input_scale, bias=bias)
    values, scale = rules.bias(bias, input_scale, found.scale)
    assert np.abs(values.astype(np.int64)).max() <= 2**30 + 2**8
    error = np.abs(values * scale.astype(np.float64) - bias)
    assert np.all(error <= 0.5001 * scale + 1e-6 * np.abs(bias))
