"""Topics: made and taken apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.errors import UsageError
from edgeml.link.match import matches
from edgeml.messages import topics

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


@given(names, names, st.sampled_from(topics.UP))
def test_up_and_parse_are_inverse(fleet, device, kind):
    topic = topics.up(fleet, device, kind)
    assert topics.parse(topic) == (fleet, device, "up", kind)
    assert matches(topics.all_up(fleet), topic)
    assert matches(topics.all_up(fleet, kind), topic)
    assert not matches(topics.all_down(fleet, device), topic)


@given(names, names, st.sampled_from(topics.DOWN))
def test_down_and_parse_are_inverse(fleet, device, kind):
    topic = topics.down(fleet, device, kind)
    assert topics.parse(topic) == (fleet, device, "down", kind)
    assert matches(topics.all_down(fleet, device), topic)
    assert not matches(topics.all_down(fleet, device + "x"), topic)
    assert not matches(topics.all_up(fleet), topic)


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text):
    found = topics.parse(text)
    assert found is None or "/".join([topics.PREFIX, *found]) == text


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "edgeml/v1",
        "edgeml/v2/f/d/up/state",
        "edgeml/v1/f/d/up/desired",
        "edgeml/v1/f/d/down/state",
        "edgeml/v1/f/d/side/state",
        "edgeml/v1/f/d/up/state/more",
        "/edgeml/v1/f/d/up/state",
    ],
)
def test_what_is_not_ours_is_none(topic):
    assert topics.parse(topic) is None


@given(names)
def test_good_names_pass(name):
    assert topics.check_name(name, "device") == name


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "+", "#", "a+", "a#", ".a", "-a", "a b", "a\n", "ä", "a" * 65, "$SYS", "a\0"],
)
def test_bad_names_are_refused(name):
    with pytest.raises(UsageError, match="is not a name"):
        topics.check_name(name, "device")


@pytest.mark.parametrize(
    ("pattern", "topic", "fits"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a", False),
        ("a", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("a/+", "a/b/c", False),
        ("+/+", "/b", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "ab", False),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
    ],
)
def test_patterns_fit_as_the_standard_says(pattern, topic, fits):
    assert matches(pattern, topic) is fits
