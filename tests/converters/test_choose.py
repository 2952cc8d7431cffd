"""Who wins is a pure function; these are its rules, one by one."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml_converters.choose import MIN_GAIN, OBJECTIVES, choose, pareto
from edgeml_converters.results import Candidate, Drop, Latency, Speedup, Standing

BASE = "onnxruntime.fp32"


def candidate(runtime, recipe, ms, size=1000, drop=0.0, verdict=Standing.PASSED, spread=0.01, **kw):
    ratio = 10.0 / ms
    return Candidate(
        runtime=runtime,
        precision="fp32",
        recipe=recipe,
        size_bytes=size,
        latency_ms=Latency(ms, ms * 1.1, ms * 1.2),
        speedup=Speedup(ratio, (ratio * (1 - spread), ratio * (1 + spread))),
        drop=Drop(drop, drop + 0.002, 0.01),
        verdict=verdict,
        **kw,
    )


def base(**kw):
    return candidate("onnxruntime", "fp32", 10.0, **kw)


def test_the_fastest_that_passes_wins():
    chosen = choose(
        [base(), candidate("openvino", "int8", 4.0), candidate("onnxruntime", "int8", 5.0)], BASE
    )
    assert chosen.winner == "openvino.int8"
    assert "2.50 x faster" in chosen.reason
    assert all(c.reason for c in chosen.candidates)


def test_what_is_not_surely_faster_does_not_replace_the_source():
    close = candidate("openvino", "int8", 9.9, spread=0.05)
    chosen = choose([base(), close], BASE)
    assert chosen.winner == BASE
    assert "not surely faster" in chosen.candidates[1].reason
    little = candidate("openvino", "int8", 9.8, spread=0.005)
    assert "not surely 2% faster" in choose([base(), little], BASE).candidates[1].reason


def test_an_undecided_one_wins_only_if_nothing_decided_gains():
    doubtful = candidate(
        "openvino", "int8", 4.0, verdict=Standing.UNDECIDED, reason="too little data"
    )
    decided = candidate("onnxruntime", "int8", 8.0)
    slower = candidate("onnxruntime", "other", 12.0)
    assert choose([base(), doubtful, decided], BASE).winner == decided.id
    chosen = choose([base(), doubtful, slower], BASE)
    assert chosen.winner == doubtful.id
    assert "too little data" in chosen.reason


def test_what_failed_never_wins():
    bad = candidate("openvino", "int8", 1.0, verdict=Standing.FAILED, reason="loses 0.2 of top1")
    chosen = choose([base(), bad], BASE)
    assert chosen.winner == BASE
    assert chosen.candidates[1].reason == "loses 0.2 of top1"


def test_noise_does_not_choose_between_equals():
    a = candidate("openvino", "int8", 4.00, drop=0.004)
    b = candidate("onnxruntime", "int8", 4.05, drop=0.001)
    assert choose([base(), a, b], BASE).winner == b.id


def test_a_budget_takes_out_what_breaks_it_the_baseline_too():
    small = candidate("onnxruntime", "int8", 12.0, size=100)
    chosen = choose([base(), small], BASE, budgets={"size_bytes": 500})
    assert chosen.winner == small.id
    assert "budget" in chosen.candidates[0].reason
    nothing = choose([base(), small], BASE, budgets={"size_bytes": 50})
    assert nothing.winner == BASE
    assert nothing.candidates[0].verdict == Standing.FAILED


@pytest.mark.parametrize(("objective", "winner"), [("size", "a"), ("memory", "b")])
def test_other_objectives(objective, winner):
    a = candidate("onnxruntime", "a", 12.0, size=100, memory_bytes=900)
    b = candidate("onnxruntime", "b", 12.0, size=900, memory_bytes=100)
    chosen = choose([base(memory_bytes=1000), a, b], BASE, objective)
    assert chosen.winner == f"onnxruntime.{winner}"


def test_a_candidate_that_was_not_measured_is_on_no_front():
    lost = Candidate("openvino", "int8", "x", verdict=Standing.ERROR, reason="crashed")
    chosen = choose([base(), lost], BASE)
    assert chosen.winner == BASE
    assert pareto([base(), lost]) == {BASE}


numbers = st.floats(0.1, 100.0)
some = st.builds(
    lambda i, ms, size, drop, verdict: candidate(
        "openvino",
        f"r{i}",
        ms,
        size=size,
        drop=drop,
        verdict=verdict,
        memory_bytes=size,
        reason="r",
    ),
    st.integers(0, 10_000),
    numbers,
    st.integers(1, 10_000),
    st.floats(0, 0.5),
    st.sampled_from(Standing),
)


@given(st.lists(some, max_size=8, unique_by=lambda c: c.id), st.sampled_from(OBJECTIVES))
def test_the_winner_is_never_worse_than_the_source_and_the_order_is_of_no_matter(many, objective):
    source = base(memory_bytes=1000)
    chosen = choose([source, *many], BASE, objective)
    assert choose([*reversed(many), source], BASE, objective).winner == chosen.winner
    winner = next(c for c in chosen.candidates if c.id == chosen.winner)
    assert winner.verdict in (Standing.PASSED, Standing.UNDECIDED)
    if winner.id != BASE and objective == "latency":
        assert winner.speedup.interval[0] > MIN_GAIN
    if winner.verdict == Standing.UNDECIDED:
        gains = [c for c in chosen.candidates if c.verdict == Standing.PASSED and c.id != BASE]
        if objective == "latency":
            assert not [c for c in gains if c.speedup.interval[0] > MIN_GAIN]
    assert all(c.reason for c in chosen.candidates)
    assert not math.isnan(msgspec.structs.asdict(winner)["size_bytes"])


@given(st.lists(some, min_size=1, max_size=8, unique_by=lambda c: c.id))
def test_nothing_on_the_front_is_beaten_and_all_else_is(many):
    front = pareto(many)
    assert front

    def point(c):
        return (c.drop.value, c.latency_ms.p50, c.size_bytes)

    def beats(a, b):
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    for c in many:
        beaten = any(beats(point(o), point(c)) for o in many)
        assert beaten == (c.id not in front)


def test_equal_is_not_said_of_what_was_not_measured():
    def unmeasured(recipe, size, **kw):
        return Candidate("onnxruntime", "fp32", recipe, size_bytes=size, **kw)

    out = unmeasured("fp32", 900, verdict=Standing.FAILED, reason="the profile does not run it")
    a, b = (unmeasured(n, s, verdict=Standing.PASSED) for n, s in (("cuda", 500), ("rt", 700)))
    chosen = choose([out, a, b], BASE)
    assert chosen.winner == a.id
    assert "the source is out (the profile does not run it)" in chosen.reason
    assert "was not measured here" in chosen.candidates[2].reason
    assert "equal" not in chosen.candidates[2].reason
