"""Payloads: round trips, old and new readers, malformed and oversized bytes; and their page."""

import contextlib
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeml.errors import NotTrustedError
from edgeml.hardware import DeviceFacts
from edgeml.messages import measuring, payloads, topics
from edgeml.messages.payloads import MAX_PAYLOAD, decode, encode

KINDS = [
    payloads.Birth,
    payloads.State,
    payloads.Reported,
    payloads.Telemetry,
    payloads.Event,
    payloads.Rpc,
    payloads.BlockRequest,
    payloads.BlockReply,
    payloads.DesiredState,
    measuring.MeasureOrder,
    measuring.MeasureStatus,
]
PARTS = [payloads.Ref, payloads.SlotReport, payloads.SlotTarget, DeviceFacts]
PARTS += [measuring.Figures, measuring.Conditions]
BINARY = (payloads.Telemetry, payloads.BlockReply)
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "mqtt.md"

# JSON numbers are safe in every reader within these bounds.
LEAVES = {
    int: st.integers(-(2**53), 2**53),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=20),
    bytes: st.binary(max_size=20),
    bool: st.booleans(),
    type(None): st.none(),
    Any: st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
        ),
        max_leaves=4,
    ),
}


def values(kind):
    """A strategy for one struct, from the types of its fields."""
    return st.builds(kind, **{f.name: of_type(f.type) for f in msgspec.structs.fields(kind)})


def of_type(annotation):
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return values(annotation)
    origin, args = getattr(annotation, "__origin__", None), getattr(annotation, "__args__", ())
    if origin is dict:
        return st.dictionaries(of_type(args[0]), of_type(args[1]), max_size=2)
    if origin is tuple and args[-1] is Ellipsis:
        return st.lists(of_type(args[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(of_type, args))
    if args:  # a union
        return st.one_of(*map(of_type, args))
    return LEAVES[annotation]


def tree(message):
    """The bytes of a message as plain values, and the function that makes bytes of such."""
    library = msgspec.msgpack if isinstance(message, BINARY) else msgspec.json
    return library.decode(encode(message)), library.encode


relaxed = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@relaxed
@given(data=st.data())
def test_every_payload_comes_back_equal(kind, data):
    message = data.draw(values(kind))
    assert decode(encode(message), kind) == message


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@relaxed
@given(data=st.data())
def test_an_old_reader_understands_a_new_writer(kind, data):
    message = data.draw(values(kind))
    plain, pack = tree(message)
    assert decode(pack(with_news(plain)), kind) == message


def with_news(value):
    """Add a key that no release knows to every object."""
    if not isinstance(value, dict):
        return value
    return value | {"from_the_future": {"a": [1, None]}}


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@relaxed
@given(data=st.data())
def test_a_new_reader_understands_an_old_writer(kind, data):
    """Every field that has a default may be missing: that is how fields are added."""
    message = data.draw(values(kind))
    plain, pack = tree(message)
    optional = {f.name for f in msgspec.structs.fields(kind) if not f.required}
    bare = {key: value for key, value in plain.items() if key not in optional}
    assert isinstance(decode(pack(bare), kind), kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@settings(max_examples=60, deadline=None)
@given(noise=st.binary(max_size=200))
def test_noise_is_refused_or_read(kind, noise):
    with contextlib.suppress(NotTrustedError):
        assert isinstance(decode(noise, kind), kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b"{", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"\x91" * 100_000],
    ids=["empty", "null", "list", "cut", "deep", "deep-objects", "not-utf8", "deep-msgpack"],
)
def test_malformed_payloads_are_not_trusted(kind, payload):
    with pytest.raises(NotTrustedError):
        decode(payload, kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_oversized_payloads_are_not_trusted(kind):
    with pytest.raises(NotTrustedError, match="expected at most"):
        decode(b" " * (MAX_PAYLOAD + 1), kind)


def test_a_wrong_type_is_named():
    with pytest.raises(NotTrustedError, match=r"State: .*online"):
        decode(b'{"device":"d","boot":"b","online":3}', payloads.State)


def rows(title):
    """The first column of the table below a heading of the page."""
    text = PAGE.read_text()
    section = re.search(rf"^#+ `?{title}`?.*?$(.*?)(?=^#|\Z)", text, re.M | re.S)
    assert section, f"no section '{title}' in {PAGE.name}"
    return re.findall(r"^\| `([^`]+)` \|", section[1], re.M)


@pytest.mark.parametrize("kind", [*KINDS, *PARTS], ids=lambda k: k.__name__)
def test_the_page_lists_every_field(kind):
    assert rows(kind.__name__) == [f.name for f in msgspec.structs.fields(kind)]


def test_the_page_lists_every_topic():
    listed = rows("Topics")
    assert listed == [f"up/{k}" for k in topics.UP] + [f"down/{k}" for k in topics.DOWN]
    retained = {row for row in listed if re.search(rf"^\| `{row}` \| yes", PAGE.read_text(), re.M)}
    assert retained == topics.RETAINED
