"""Golden samples, and the files that hold them."""

import io
import zipfile

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from edgeml.errors import DataError, DeviceError
from edgeml.manifest import Tolerance
from edgeml.runtime.golden import golden_check, load_arrays, save_arrays


class Fixed:
    """A session that answers with what it was given."""

    def __init__(self, **outputs):
        self.outputs = outputs

    def run(self, feed):
        if not self.outputs:
            raise DeviceError("it broke")
        return self.outputs

    def close(self):
        pass


def check(got, want, atol=0.0, rtol=0.0, share=1.0):
    session = Fixed(y=np.asarray(got, np.float32))
    return golden_check(
        session, {}, {"y": np.asarray(want, np.float32)}, Tolerance(atol, rtol, share)
    )


def test_equal_is_right_at_no_tolerance():
    result = check([1, 2, 3], [1, 2, 3])
    assert (result.ok, result.worst, result.share, result.reason) == (True, 0.0, 1.0, "")


def test_the_relative_part_is_of_the_largest_value():
    assert check([0.5, 100], [0.0, 100], rtol=0.01).ok
    result = check([2.0, 100], [0.0, 100], rtol=0.01)
    assert not result.ok
    assert result.worst == pytest.approx(2.0)
    assert "'y'" in result.reason


def test_a_share_may_be_wrong():
    got, want = [0, 0, 0, 9], [0, 0, 0, 0]
    assert check(got, want, atol=1, share=0.75).ok
    result = check(got, want, atol=1, share=0.76)
    assert not result.ok
    assert result.share == 0.75


@pytest.mark.parametrize(
    ("got", "want", "ok"),
    [
        (np.nan, np.nan, True),
        (np.nan, 1.0, False),
        (1.0, np.nan, False),
        (np.inf, np.inf, True),
        (-np.inf, np.inf, False),
        (np.inf, 1.0, False),
        (1.0, np.inf, False),
    ],
)
def test_nan_and_infinity_are_right_only_where_they_were_recorded(got, want, ok):
    result = check([0.0, got], [0.0, want], atol=1e30, rtol=1e30)
    assert result.ok is ok
    assert result.worst == (0.0 if ok else np.inf)


def test_what_cannot_be_compared():
    expected = {"y": np.zeros((2, 2), np.float32)}
    some = Tolerance(1.0, 1.0)
    assert "shape" in golden_check(Fixed(y=np.zeros((2, 3))), {}, expected, some).reason
    assert "missing" in golden_check(Fixed(z=np.zeros((2, 2))), {}, expected, some).reason
    assert "it broke" in golden_check(Fixed(), {}, expected, some).reason
    assert not golden_check(Fixed(y=np.zeros((2, 2))), {}, {}, some).ok


def test_the_worst_output_is_named():
    got = Fixed(a=np.zeros(4), b=np.array([0, 0, 5.0, 5.0]))
    result = golden_check(got, {}, {"a": np.zeros(4), "b": np.zeros(4)}, Tolerance(1.0, 0.0))
    assert (result.ok, result.output, result.share, result.worst) == (False, "b", 0.5, 5.0)


def test_integers_and_text():
    same = Fixed(n=np.array([1, 2]), t=np.array(["a", "b"]))
    want = {"n": np.array([1, 2]), "t": np.array(["a", "b"])}
    assert golden_check(same, {}, want, Tolerance(0.0, 0.0)).ok
    want["t"] = np.array(["a", "c"])
    assert golden_check(same, {}, want, Tolerance(9.0, 9.0)).output == "t"


_ARRAYS = hnp.arrays(
    dtype=st.sampled_from(
        ["float32", "float64", "float16", "int8", "uint8", "int64", "bool", "<U3"]
    ),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["x", "calib/x", "y_1"]), _ARRAYS, max_size=3))
def test_arrays_come_back_and_bytes_are_always_the_same(arrays):
    data = save_arrays(arrays)
    assert data == save_arrays(dict(reversed(list(arrays.items()))))
    back = load_arrays(data)
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
        assert back[name].flags.writeable


def test_numpy_reads_and_writes_the_same_files(tmp_path):
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "f": np.asfortranarray(np.eye(3))}
    (tmp_path / "a.npz").write_bytes(save_arrays(arrays))
    with np.load(tmp_path / "a.npz") as read:
        np.testing.assert_array_equal(read["x"], arrays["x"])
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    back = load_arrays((tmp_path / "b.npz").read_bytes())
    np.testing.assert_array_equal(back["f"], arrays["f"])
    np.testing.assert_array_equal(back["x"], arrays["x"])


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_arrays_or_one_error(data):
    with pytest.raises(DataError):
        load_arrays(data)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_gives_arrays_or_one_error(data):
    good = bytearray(save_arrays({"x": np.arange(40, dtype=np.float32), "y": np.eye(3)}))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        load_arrays(bytes(good))
    except DataError as error:
        assert "\n" not in error.message


def _npz(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def _npy(header, body=b"", version=(1, 0)):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(2, "little") + text + body


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"), "type object"),
        (_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10**15,), }"), "."),
        (_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"), "0 bytes"),
        (_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4), }", bytes(16)), "."),
        (_npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }"), "type"),
        (_npy("{}", version=(3, 0)), "format"),
        (b"not numpy", "."),
    ],
)
def test_hostile_members(content, words):
    with pytest.raises(DataError, match=words):
        load_arrays(_npz("x.npy", content))


def test_what_is_too_large_or_not_an_array():
    data = save_arrays({"x": np.zeros(100_000)})
    assert len(data) < 10_000
    with pytest.raises(DataError, match="more than 1000 bytes"):
        load_arrays(data, limit=1000)
    with pytest.raises(DataError, match="not an array"):
        load_arrays(_npz("x.txt", b"hello"))
    with pytest.raises(DataError, match="cannot be stored"):
        save_arrays({"x": np.array([{}], dtype=object)})
