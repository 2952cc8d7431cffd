"""Gates: verdicts from observations; intervals that can be checked against the literature."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.gates import (
    AnyGate,
    Arm,
    HealthGate,
    InstallGate,
    LabelGate,
    Observation,
    WaveDevice,
)
from edgeml.stats.proportion import newcombe, wilson


def devices(*states, wave=0, **more):
    return tuple(WaveDevice(f"d{i}", state, wave, **more) for i, state in enumerate(states))


def seen(*parts, age=5.0, wave=0, canary=None, control=None):
    return Observation(age, wave, parts, canary or Arm(), control or Arm())


def test_wilson_is_the_textbook_example():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


def test_newcombe_is_the_textbook_example():
    # Newcombe 1998, example (a), method 10.
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400), st.integers(0, 400))
def test_intervals_hold_the_estimate(a, n, b, m):
    a, b = min(a, n), min(b, m)
    low, high = wilson(a, n)
    assert 0 <= low <= high <= 1
    assert n == 0 or low <= a / n <= high
    low, high = newcombe(a, n, b, m)
    assert -1 <= low <= high <= 1
    if n and m:
        assert low - 1e-12 <= a / n - b / m <= high + 1e-12


def test_install_counts_attempts_and_not_plans():
    # Five of a hundred are there, and all five fail: that is 100 %, not 5 %.
    parts = devices(*["failed"] * 5) + tuple(
        WaveDevice(f"away{i}", "sent", online=False) for i in range(95)
    )
    verdict = InstallGate(minimum=5).judge(seen(*parts))
    assert verdict.state == "fail"
    assert verdict.evidence["failed"].value == 1.0
    assert verdict.evidence["failed"].n == 5


@pytest.mark.parametrize(
    ("states", "age", "expected"),
    [
        (["committed", "trying"], 5, "wait"),
        (["committed", "sent"], 5, "wait"),
        (["committed", "committed"], 5, "pass"),
        (["committed", "trying"], 601, "fail"),  # no end in time is a failure
        (["committed"] * 10 + ["failed"], 5, "pass"),  # 1 of 11 is below 10 %
        (["committed"] * 8 + ["failed"], 5, "fail"),
        (["failed"] + ["trying"] * 10, 5, "wait"),  # 1 of 11, when the others come through
        (["failed"] * 2 + ["trying"] * 10, 5, "fail"),  # too many, whatever the others do
        (["trying"], 601, "fail"),  # nobody ended: late is an end
    ],
)
def test_install(states, age, expected):
    assert InstallGate().judge(seen(*devices(*states), age=age)).state == expected


def test_offline_devices_do_not_block_a_later_wave():
    first = tuple(WaveDevice(f"a{i}", "committed", wave=0) for i in range(3))
    away = tuple(WaveDevice(f"b{i}", "sent", wave=1, online=False) for i in range(3))
    verdict = InstallGate().judge(seen(*first, *away, wave=1))
    assert verdict.state == "undecided"
    assert any("3 of 3 devices are offline" in reason for reason in verdict.reasons)
    assert InstallGate().judge(seen(*(msgspec.structs.replace(d, wave=0) for d in away))).state == (
        "wait"
    )


def test_health_waits_for_the_soak():
    gate = HealthGate(soak=10)
    assert gate.judge(seen(*devices("committed"), age=9)).state == "wait"
    assert gate.judge(seen(*devices("committed"), age=10)).state == "pass"


@pytest.mark.parametrize(
    "harm",
    [
        {"online": False, "offline_seconds": 61.0},
        {"restarts": 3},
        {"degraded": "no GPU"},
        {"health": "failing"},
    ],
)
def test_health_fails_on_harm(harm):
    verdict = HealthGate().judge(seen(*devices("committed", "committed", **harm)))
    assert verdict.state == "fail"
    assert "d0, d1" in verdict.reasons[0]


def test_health_compares_errors_with_the_control():
    bad = Arm(devices=1, requests=90, errors=10)
    parts = devices("committed")
    assert HealthGate().judge(seen(*parts, canary=bad)).state == "fail"
    everywhere = seen(*parts, age=20, canary=bad, control=Arm(3, requests=180, errors=20))
    assert HealthGate().judge(everywhere).state == "pass"
    few = seen(*parts, age=20, canary=Arm(devices=1, requests=5, errors=5))
    assert HealthGate().judge(few).state == "pass"


def test_labels():
    gate = LabelGate(max_drop=0.05, minimum=50, patience=60)
    good = Arm(3, labelled=100, correct=95)

    def judge(canary, control=good, age=5.0, gate=gate):
        return gate.judge(seen(*devices("committed"), age=age, canary=canary, control=control))

    assert judge(Arm(1, labelled=49, correct=0)).state == "wait"
    poor = judge(Arm(1, labelled=50, correct=30))
    assert poor.state == "fail"
    assert poor.evidence["drop"].value == pytest.approx(0.35)
    assert poor.evidence["drop"].interval == newcombe(95, 100, 30, 50)
    assert "drop 35.0%" in poor.reasons[0]
    assert judge(Arm(1, labelled=50, correct=46)).state == "pass"
    late = judge(Arm(1, labelled=3), age=61)
    assert late.state == "undecided"
    assert "not judged" in late.reasons[0]
    required = LabelGate(patience=60, required=True)
    assert judge(Arm(1, labelled=3), age=61, gate=required).state == "wait"
    alone = judge(Arm(1, labelled=90, correct=1), control=Arm())
    assert alone.state == "undecided"
    assert "nothing to compare" in alone.reasons[0]


def test_gates_survive_the_database():
    gates = (InstallGate(max_failed=0.2), HealthGate(soak=3), LabelGate(required=True))
    again = msgspec.json.decode(msgspec.json.encode(gates), type=tuple[AnyGate, ...])
    assert again == gates
