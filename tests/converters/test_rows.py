"""Samples that stay in their file: the same values and the same digest as in memory."""

import zipfile

import numpy as np
import pytest

from edgeml.digest import sha256_array
from edgeml.errors import DataError
from edgeml.tensors import TensorSpec
from edgeml_converters import samples
from edgeml_converters.data import EvaluationData
from edgeml_converters.rows import Rows, stored_rows

X = TensorSpec("x", "float32", (-1, 3))


def stored(path, array):
    np.savez(path, x=array)
    with zipfile.ZipFile(path) as archive:
        return stored_rows(path, archive, "x")


@pytest.mark.parametrize("kind", ["<f4", ">f4", "u1", "<i8", "?"])
def test_rows_in_a_file_are_those_in_memory(tmp_path, kind):
    array = np.arange(60).reshape(10, 2, 3).astype(kind)
    rows = stored(tmp_path / "x.npz", array)
    assert rows.shape == array.shape
    assert rows.digest() == sha256_array(array) == Rows.of(array).digest()
    np.testing.assert_array_equal(np.asarray(rows), array)
    np.testing.assert_array_equal(rows[-1], array[-1])
    np.testing.assert_array_equal(rows[2:7:2], array[2:7:2])
    np.testing.assert_array_equal(np.concatenate(list(rows.parts())), array)
    np.testing.assert_array_equal(rows.since(4)[:], array[4:])
    np.testing.assert_array_equal(rows.first(4)[:], array[:4])
    np.testing.assert_array_equal(rows.grouped(4)[:], array[:8].reshape(2, 4, 2, 3))
    np.testing.assert_array_equal(rows.grouped(4).apart()[3:6], array[3:6])
    np.testing.assert_array_equal(rows.picked(np.array([1, 5, 6]))[1:], array[[5, 6]])


@pytest.mark.parametrize(
    "array", [np.asfortranarray(np.eye(4)), np.float32(1), np.zeros((0, 3)), np.array(["a"])]
)
def test_what_cannot_stay_in_the_file_is_read_whole(tmp_path, array):
    assert stored(tmp_path / "x.npz", array) is None


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16])
def test_stored_integers_mean_the_same_read_late_or_early(tmp_path, kind):
    values = np.arange(-64, 64).astype(kind)[:126].reshape(42, 3)
    what = {"x_test": values, "scale/x": np.float32(0.1), "zero_point/x": np.int32(3)}
    np.savez(tmp_path / "plain.npz", **what)
    np.savez_compressed(tmp_path / "small.npz", **what)
    late = EvaluationData.open(tmp_path / "plain.npz", (X,), 0)
    early = EvaluationData.open(tmp_path / "small.npz", (X,), 0)
    assert late.digest == early.digest
    want = ((values.astype(np.float64) - 3) * float(np.float32(0.1))).astype(np.float32)
    np.testing.assert_array_equal(np.concatenate([late.calibration["x"], late.test["x"]]), want)


def test_a_byte_that_changed_in_the_file_is_seen(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x_test=np.arange(3000, dtype=np.float32).reshape(-1, 3))
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="CRC"):
        EvaluationData.open(path, (X,), 0)


def test_samples_are_written_when_they_are_needed_and_come_back(tmp_path):
    array = np.arange(30, dtype=np.float32).reshape(10, 3)
    stacked = samples.stack({"x": Rows.of(array)}, (X,))
    kept = samples.Kept(tmp_path / "samples.npz", stacked, "digest")
    assert not kept.path.exists()
    assert samples.count_of(kept.write()) == 10
    feeds = list(samples.stream(kept.write()))
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), array)
    np.testing.assert_array_equal(samples.load(kept.path)["x"], array[:, np.newaxis])
