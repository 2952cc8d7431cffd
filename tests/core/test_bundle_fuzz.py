"""Whatever is done to a bundle: it opens as it was, or a typed error says why not."""

import contextlib
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.bundle import Bundle, layers, pack
from edgeml.errors import BundleError, NotTrustedError
from tests.golden.make_bundle import sample

with tempfile.TemporaryDirectory() as _folder:
    GOOD = pack(*sample(), Path(_folder) / "x.edgeml")
    DATA = GOOD.path.read_bytes()
POSITION = st.integers(0, len(DATA) - 1)
EDIT = st.one_of(
    st.tuples(st.just("flip"), POSITION, st.integers(1, 255)),
    st.tuples(st.just("cut"), POSITION, st.integers(0, 2000)),
    st.tuples(st.just("insert"), POSITION, st.binary(max_size=700)),
    st.tuples(st.just("copy"), POSITION, POSITION),
    st.tuples(st.just("end"), POSITION, st.just(0)),
)


def edited(data, edit):
    kind, at, value = edit
    if kind == "flip":
        at = min(at, len(data) - 1)
        return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :] if data else data
    if kind == "cut":
        return data[:at] + data[at + value :]
    if kind == "insert":
        return data[:at] + value + data[at:]
    if kind == "copy":
        return data[:at] + data[value : value + 512] + data[at + 512 :]
    return data[:at]


@settings(max_examples=300, deadline=None)
@given(st.lists(EDIT, min_size=1, max_size=4))
def test_a_changed_bundle_is_the_same_or_refused(edits):
    data = DATA
    for edit in edits:
        data = edited(data, edit)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.edgeml"
        path.write_bytes(data)
        out = Path(folder) / "out"
        with contextlib.suppress(BundleError, NotTrustedError):
            bundle = Bundle.open(path)
            bundle.check()
            assert (bundle.digest, bundle.manifest) == (GOOD.digest, GOOD.manifest)
            bundle.unpack(out)
        assert sorted(p.name for p in Path(folder).iterdir()) in (
            ["x.edgeml"],
            ["out", "x.edgeml"],
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["schemaVersion", "layers", "config", "digest", "size", "annotations"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=200), JSON))
def test_an_oci_manifest_is_parsed_or_refused(value):
    import json

    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    with contextlib.suppress(BundleError):
        layers(data)
