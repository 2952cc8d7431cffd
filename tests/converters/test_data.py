"""Evaluation data: the contract's keys, and one clear error for each wrong thing."""

import numpy as np
import pytest

from edgeml.errors import DataError, UsageError
from edgeml.tensors import TensorSpec
from edgeml_converters.data import EvaluationData

X = TensorSpec("x", "float32", (-1, 3))
TOKENS = TensorSpec("ids", "int64", (-1, -1))


def write(folder, **arrays):
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def rows(n, width=3, dtype=np.float32):
    return np.arange(n * width).reshape(n, width).astype(dtype)


def test_long_and_short_names_mean_the_same(tmp_path):
    long = {"calib/x": rows(4), "test/x": rows(6), "test/labels": np.arange(6)}
    a = EvaluationData.open(write(tmp_path, **long), (X,), 0)
    short = {"x_calib": rows(4), "x_test": rows(6), "y_test": np.arange(6)}
    b = EvaluationData.open(write(tmp_path, **short), (X,), 0)
    assert a.digest == b.digest
    assert a.given
    assert len(a.calibration["x"]) == 4
    assert a.notes == ()


def test_integers_are_cast_and_scaled(tmp_path):
    stored = {"calib/x": rows(4, dtype=np.uint8), "test/x": rows(4, dtype=np.uint8)}
    plain = EvaluationData.open(write(tmp_path, **stored), (X,), 0)
    assert plain.test["x"].dtype == np.float32
    assert plain.test["x"][0].tolist() == [0, 1, 2]
    stored |= {"scale/x": np.float32(0.5), "zero_point/x": np.int8(1)}
    scaled = EvaluationData.open(write(tmp_path, **stored), (X,), 0)
    assert scaled.test["x"][0].tolist() == [-0.5, 0, 0.5]


def test_without_calibration_the_first_part_is_set_aside_and_that_is_said(tmp_path):
    path = write(tmp_path, **{"test/x": rows(10), "test/labels": np.arange(10)})
    data = EvaluationData.open(path, (X,), 0)
    assert data.calibration["x"].tolist() == rows(10)[:2].tolist()
    assert data.labels.tolist() == list(range(2, 10))
    assert len(data.test["x"]) == 8
    assert "first 2 of 10" in data.notes[0]


def test_without_data_it_is_chance_and_says_so():
    data = EvaluationData.open(None, (X, TOKENS), 7)
    assert not data.given
    assert data.labels is None
    assert "NO DATA" in data.notes[0]
    assert data.digest == EvaluationData.open(None, (X, TOKENS), 7).digest
    assert data.digest != EvaluationData.open(None, (X, TOKENS), 8).digest


GOOD = {"calib/x": rows(4), "test/x": rows(6)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test/labls": np.arange(6)}, "unknown key 'test/labls'"),
        ({"test/x": rows(6, 4)}, r"'test/x' has shape \[6, 4\], expected \[any, 3\]"),
        ({"test/x": rows(6).astype(str)}, "has type <U"),
        ({"test/x": np.full((6, 3), np.nan, np.float32)}, "18 values that are NaN"),
        ({"test/labels": np.arange(5)}, "'test/labels' has 5 for 6"),
        ({"test/labels": np.array(["a"] * 6)}, "expected numbers"),
        ({"x_test": rows(6)}, "both 'x_test' and 'test/x'"),
        ({"test/x": rows(0)}, "has 0 samples"),
        ({"zero_point/x": np.int8(1)}, "without 'scale/x'"),
        ({"test/x": np.array([[None] * 3])}, "objects are refused|cannot be read"),
        ({"test/x": rows(6).astype(np.int8), "scale/x": np.float32(-1)}, "the scale above 0"),
    ],
)
def test_each_wrong_thing_is_said(tmp_path, change, message):
    path = write(tmp_path, **(GOOD | change))
    with pytest.raises(DataError, match=message) as caught:
        EvaluationData.open(path, (X,), 0)
    assert "\n" not in caught.value.message


def test_lengths_and_ranges_of_several_inputs(tmp_path):
    mask = TensorSpec("mask", "int8", (-1, -1))
    arrays = {"test/ids": rows(6, 3, np.int64), "test/mask": rows(5, 3, np.int64)}
    with pytest.raises(DataError, match="different numbers of samples"):
        EvaluationData.open(write(tmp_path, **arrays), (TOKENS, mask), 0)
    arrays["test/mask"] = np.full((6, 3), 300)
    with pytest.raises(DataError, match="more than int8 can hold"):
        EvaluationData.open(write(tmp_path, **arrays), (TOKENS, mask), 0)
    with pytest.raises(DataError, match="expected int64"):
        floats = write(tmp_path, **{"test/ids": rows(6)})
        EvaluationData.open(floats, (TOKENS,), 0)


def test_files_that_are_no_data(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        EvaluationData.open(tmp_path / "no.npz", (X,), 0)
    text = tmp_path / "text.npz"
    text.write_text("hello")
    with pytest.raises(DataError, match="not an .npz"):
        EvaluationData.open(text, (X,), 0)
    cut = write(tmp_path, **GOOD)
    content = bytearray(cut.read_bytes())
    content[100:140] = b"\0" * 40
    cut.write_bytes(content)
    with pytest.raises(DataError):
        EvaluationData.open(cut, (X,), 0)


def test_a_generator_of_dictionaries(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_data_for_test.py").write_text(
        "import numpy as np\n"
        "def batches():\n"
        "    for i in range(3):\n"
        "        yield {'calib/x': np.ones((2, 3), 'f4'), 'test/x': np.full((4, 3), i, 'f4')}\n"
        "def wrong():\n    return 3\n"
    )
    data = EvaluationData.open("my_data_for_test:batches", (X,), 0)
    assert len(data.test["x"]) == 12
    assert len(data.calibration["x"]) == 6
    with pytest.raises(DataError, match="returned a int"):
        EvaluationData.open("my_data_for_test:wrong", (X,), 0)
    with pytest.raises(UsageError, match="no function"):
        EvaluationData.open("my_data_for_test:nothing", (X,), 0)


@pytest.mark.parametrize("scale", [None, np.float64(1e300)])
def test_values_that_the_inputs_type_cannot_hold_are_refused(tmp_path, scale):
    stored = {"x_test": np.full((9, 3), 1e300)}
    if scale is not None:
        stored = {"x_test": np.full((9, 3), 7, np.int8), "scale/x": scale}
    with pytest.raises(DataError, match="too large for float32"):
        EvaluationData.open(write(tmp_path, **stored), (X,), 0)


def test_what_a_users_generator_raises_names_the_generator(tmp_path, monkeypatch):
    (tmp_path / "broken_data.py").write_text(
        "def early(): return 1 / 0\ndef late():\n    yield {}\n    raise OSError('gone')\n"
    )
    monkeypatch.chdir(tmp_path)
    for name, says in (("early", "ZeroDivisionError"), ("late", "OSError: gone")):
        with pytest.raises(UsageError, match=says) as caught:
            EvaluationData.open(f"broken_data:{name}", (X,), 0)
        assert f"broken_data:{name}" in caught.value.message
