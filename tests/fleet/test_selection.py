"""Selectors and waves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.errors import UsageError
from edgeml.fleet.selector import fits, parse_selector
from edgeml.fleet.strategies import parse_waves, plan

NAMES = st.sets(st.text("abcdef0123", min_size=1, max_size=8), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", True),
        ("device=cam-1,cam-2", True),
        ("device=cam-2", False),
        ("tag.site=berlin", True),
        ("tag.site=rome,berlin profile=cpu-arm64", True),
        ("tag.site=berlin profile=cpu-x86-64", False),
        ("tag.floor=1", False),
    ],
)
def test_selector(text, expected):
    terms = parse_selector(text)
    assert fits(terms, "cam-1", "cpu-arm64", {"site": "berlin"}) is expected


@pytest.mark.parametrize("text", ["", "  ", "site=berlin", "tag.=x", "device=", "everything"])
def test_selector_that_cannot_be_understood(text):
    with pytest.raises(UsageError):
        parse_selector(text)


@given(NAMES, st.text("0123456789abcdef", min_size=1, max_size=8))
def test_waves_hold_every_device_once(names, salt):
    waves = plan("canary", sorted(names), salt)
    assert sorted(d for wave in waves for d in wave) == sorted(names)
    assert all(waves)
    assert waves == plan("canary", sorted(names, reverse=True), salt)


@given(NAMES, st.floats(0.05, 0.4), st.floats(0.5, 0.9))
def test_a_higher_share_only_adds(names, low, high):
    first = plan("canary", sorted(names), "s", (low, 1.0))[0]
    more = plan("canary", sorted(names), "s", (high, 1.0))[0]
    assert set(first) <= set(more)


def test_one_of_four_is_the_canary_and_not_always_the_same():
    names = ["a", "b", "c", "d"]
    canaries = {plan("canary", names, f"r{i}")[0] for i in range(40)}
    assert all(len(wave) == 1 for wave in canaries)
    assert len(canaries) > 1


def test_all_at_once():
    assert plan("all-at-once", ["b", "a"], "s") == (("a", "b"),)
    with pytest.raises(UsageError, match="all-at-once"):
        plan("all-at-once", ["a"], "s", (0.5, 1.0))
    with pytest.raises(UsageError, match="did you mean 'canary'|unknown strategy"):
        plan("canari", ["a"], "s")
    with pytest.raises(UsageError, match="no device"):
        plan("canary", [], "s")


def test_waves_are_parsed():
    assert parse_waves("25%, 100%") == (0.25, 1.0)
    assert parse_waves("") == ()
    for bad in ("25", "50%,25%,100%", "25%", "0%,100%", "a%", "25%,25%,100%"):
        with pytest.raises(UsageError):
            parse_waves(bad)
