"""Evaluation data: what a conversion calibrates with, and what it is judged on.

One ``.npz`` file, or ``module:function``, a generator of dictionaries with the same keys:

* ``calib/<input>`` and ``test/<input>``: arrays with the samples on axis 0; ``test/labels`` where
  there are any; ``classes``, their names.
* ``scale/<input>``, ``zero_point/<input>`` for stored integers: ``(q - zero_point) * scale``.
* For a model with one input, ``x_calib``, ``x_test`` and ``y_test`` mean the same.

Integers are cast to the input's type. Without ``calib/`` the first part of test is set aside for
it. Without any data, samples of chance stand in, and only agreement can be judged.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeml.digest import sha256_array, sha256_bytes
from edgeml.errors import DataError, nearest
from edgeml.plugins import load_user_object, user_code
from edgeml.tensors import Array, TensorSpec
from edgeml_converters.rows import Rows, stored_rows

#: Of a test set without calibration data, at most this many samples are set aside.
_ASIDE = 200
#: Samples of chance, without data.
_RANDOM_CALIBRATION, _RANDOM_TEST = 32, 64


class EvaluationData(msgspec.Struct, frozen=True):
    """Data to calibrate with and to judge on; see the module.

    Attributes:
        calibration: Input name -> array of the input's type, samples on axis 0.
        test: The same, other samples, which need not be in memory.
        labels: One per test sample; None where there are none.
        classes: Names of the classes; may be empty.
        digest: Of all arrays, as the model gets them.
        notes: What a user should know of them.
        given: False when they are samples of chance.
    """

    calibration: dict[str, Array]
    test: dict[str, Rows]
    labels: Array | None
    classes: tuple[str, ...]
    digest: str
    notes: tuple[str, ...]
    given: bool

    @classmethod
    def open(
        cls, spec: str | Path | None, inputs: tuple[TensorSpec, ...], seed: int
    ) -> EvaluationData:
        """Read and check evaluation data.

        Args:
            spec: A file ``.npz``, ``module:function``, or None.
            inputs: What the model asks for.
            seed: Seed of samples of chance.

        Raises:
            DataError: The data cannot be used; the message names the key.
            UsageError: There is no such module or function.
        """
        if spec is None:
            return _random(inputs, seed)
        if isinstance(spec, str) and ":" in spec and not Path(spec).exists():
            arrays = _generated(spec)
        else:
            arrays = _load(Path(spec), inputs)
        arrays = _long_names(arrays, inputs, str(spec))
        _check_keys(arrays, inputs, str(spec))
        notes: list[str] = []
        test = _part("test", arrays, inputs, str(spec))
        labels = np.asarray(arrays["test/labels"]) if "test/labels" in arrays else None
        if any(key.startswith("calib/") for key in arrays):
            aside = _part("calib", arrays, inputs, str(spec))
            calibration = {name: np.asarray(rows) for name, rows in aside.items()}
        else:
            calibration, test, labels, note = _set_aside(test, labels, inputs, str(spec))
            notes.append(note)
        if labels is not None:
            _check_labels(labels, test, inputs, str(spec))
        else:
            notes.append("the data has no labels: only agreement with the source can be judged")
        told = np.asarray(arrays["classes"]).ravel() if "classes" in arrays else ()
        classes = tuple(str(c) for c in told)
        return cls(
            calibration,
            test,
            labels,
            classes,
            _digest(calibration, test, labels),
            tuple(notes),
            True,
        )


def _load(path: Path, inputs: tuple[TensorSpec, ...]) -> dict[str, Rows]:
    """Read all arrays of a file; objects (pickles) are refused.

    Large test samples stay in the file, where they are stored as they are.
    """
    if path.is_dir():
        raise DataError(f"'{path}' is a folder, expected a file .npz")
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.npz")] if path.parent.is_dir() else []
        raise DataError(
            f"there is no file '{path}'", nearest(path.name, near) if near else "check the path"
        )
    try:
        if not zipfile.is_zipfile(path):
            raise DataError(f"'{path}' is not an .npz file", "write it with numpy.savez")
        with np.load(path, allow_pickle=False) as archive, zipfile.ZipFile(path) as members:
            arrays: dict[str, Rows] = {}
            tests = {"x_test", *(f"test/{spec.name}" for spec in inputs)}
            for key in archive.files:
                try:
                    rows = stored_rows(path, members, key) if key in tests else None
                    array = archive[key] if rows is None else np.empty(0)
                except ValueError as error:
                    raise DataError(
                        f"'{path}': '{key}' cannot be read: {error}",
                        "objects are refused, because loading them runs code: store plain arrays",
                    ) from error
                if not isinstance(array, np.ndarray):
                    raise DataError(f"'{path}': '{key}' is not an array")
                arrays[key] = rows if rows is not None else Rows.of(array)
            return arrays
    except (OSError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise DataError(
            f"'{path}' cannot be read: {error}", "copy it again, or write it with numpy.savez"
        ) from error


def _generated(spec: str) -> dict[str, Rows]:
    """Return the arrays that a user's generator yields, put together on axis 0."""
    function = load_user_object(spec, "data")
    with user_code(spec, "data"):
        result = function()
        if not isinstance(result, Mapping | Iterable):
            raise DataError(f"'{spec}' returned a {type(result).__name__}, expected dictionaries")
        # A generator fails where it is used up, so it is used up here.
        parts: list[object] = [result] if isinstance(result, Mapping) else list(result)
    found: dict[str, list[Array]] = {}
    for part in parts:
        if not isinstance(part, Mapping):
            raise DataError(f"'{spec}' gave a {type(part).__name__}, expected a dictionary")
        for key, value in part.items():
            found.setdefault(str(key), []).append(np.asarray(value))
    if not found:
        raise DataError(f"'{spec}' gave no data")
    arrays = {}
    for key, values in found.items():
        if key == "classes" or key.startswith(("scale/", "zero_point/")):
            arrays[key] = Rows.of(values[0])
            continue
        try:
            arrays[key] = Rows.of(np.concatenate(values))
        except ValueError as error:
            raise DataError(f"'{spec}': the parts of '{key}' do not fit: {error}") from error
    return arrays


def _long_names(
    arrays: dict[str, Rows], inputs: tuple[TensorSpec, ...], where: str
) -> dict[str, Rows]:
    """Give the short names of a model with one input their long form."""
    if len(inputs) != 1:
        return arrays
    name = inputs[0].name
    long = {"x_calib": f"calib/{name}", "x_test": f"test/{name}", "y_test": "test/labels"}
    for short, full in long.items():
        if short in arrays and full in arrays:
            raise DataError(f"'{where}' holds both '{short}' and '{full}', expected one of them")
    return {long.get(key, key): array for key, array in arrays.items()}


def _check_keys(arrays: dict[str, Rows], inputs: tuple[TensorSpec, ...], where: str) -> None:
    """Raise at the first key that means nothing here."""
    known = {"test/labels", "classes"}
    for spec in inputs:
        known |= {f"{part}/{spec.name}" for part in ("calib", "test", "scale", "zero_point")}
    short = {"x_calib", "x_test", "y_test"} if len(inputs) == 1 else set()
    for key, array in arrays.items():
        if key not in known:
            raise DataError(f"'{where}' holds the unknown key '{key}'", nearest(key, known | short))
        if array.dtype.kind == "O":
            raise DataError(f"'{where}': '{key}' holds objects, expected numbers")
    for spec in inputs:
        if f"zero_point/{spec.name}" in arrays and f"scale/{spec.name}" not in arrays:
            raise DataError(f"'{where}' holds 'zero_point/{spec.name}' without 'scale/{spec.name}'")


def _part(
    part: str, arrays: dict[str, Rows], inputs: tuple[TensorSpec, ...], where: str
) -> dict[str, Rows]:
    """Return the arrays of one part, checked and in the inputs' types."""
    made = {}
    runs: dict[str, int] = {}
    for spec in inputs:
        key = f"{part}/{spec.name}"
        if key not in arrays:
            raise DataError(
                f"'{where}' has no '{key}'",
                f"it holds: {', '.join(sorted(arrays)) or 'nothing'}",
            )
        made[spec.name] = _convert(key, arrays, spec, where)
        runs[key] = len(made[spec.name]) // _batch(spec)
        if not runs[key]:
            raise DataError(
                f"'{where}': '{key}' has {len(made[spec.name])} samples, "
                f"expected at least {_batch(spec)}"
            )
    if len(set(runs.values())) > 1:
        raise DataError(f"'{where}': the inputs have different numbers of samples: {runs}")
    return made


def _batch(spec: TensorSpec) -> int:
    """Return how many rows one run takes."""
    return spec.shape[0] if spec.shape and spec.shape[0] > 0 else 1


def _convert(key: str, arrays: dict[str, Rows], spec: TensorSpec, where: str) -> Rows:
    """Return one array in the type of its input."""
    array = arrays[key]
    got, want = list(array.shape), ["any", *("any" if n == -1 else n for n in spec.shape[1:])]
    fits = len(got) == len(want) and all(
        w in ("any", g) for g, w in zip(got[1:], want[1:], strict=True)
    )
    if not fits:
        raise DataError(
            f"'{where}': '{key}' has shape {got}, expected [{', '.join(map(str, want))}]",
            "samples are on axis 0",
        )
    kind, target = array.dtype.kind, np.dtype(spec.dtype)
    if kind not in "iufb" or (kind == "f" and target.kind != "f"):
        raise DataError(f"'{where}': '{key}' has type {array.dtype}, expected {spec.dtype}")
    bad = sum(int((~np.isfinite(part)).sum()) for part in array.parts()) if kind == "f" else 0
    if bad:
        raise DataError(
            f"'{where}': '{key}' holds {bad} values that are NaN or infinite",
            "remove these samples",
        )
    if kind in "iu" and f"scale/{spec.name}" in arrays:
        return _real(key, arrays, spec, where)
    if target.kind in "iu" and array.size:
        limits = np.iinfo(target)
        low, high = _extremes(array)
        if low < limits.min or high > limits.max:
            raise DataError(
                f"'{where}': '{key}' goes from {low} to {high}, more than {spec.dtype} can hold"
            )
    if array.dtype == target:
        return array
    return _finite(key, array.mapped(lambda part: _cast(part, target), target), where)


def _cast(values: Array, target: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):
        return values.astype(target)


def _extremes(array: Rows) -> tuple[int, int]:
    """Return the smallest and the largest of integers."""
    found = [(int(part.min()), int(part.max())) for part in array.parts()]
    return min(low for low, _ in found), max(high for _, high in found)


def _finite(key: str, array: Rows, where: str) -> Rows:
    """Return an array; raise when its type cannot hold the values that were given."""
    if array.dtype.kind == "f" and not all(np.isfinite(part).all() for part in array.parts()):
        raise DataError(
            f"'{where}': '{key}' holds values that are too large for {array.dtype}",
            "scale the samples as the model was trained with",
        )
    return array


def _real(key: str, arrays: dict[str, Rows], spec: TensorSpec, where: str) -> Rows:
    """Return the values that stored integers mean."""
    scale = np.asarray(arrays[f"scale/{spec.name}"], np.float64)
    zero = np.asarray(arrays.get(f"zero_point/{spec.name}", 0.0), np.float64)
    if np.dtype(spec.dtype).kind != "f":
        raise DataError(f"'{where}': 'scale/{spec.name}' is given, but the input is {spec.dtype}")
    if scale.size != 1 or zero.size != 1 or not np.isfinite(scale).all() or scale.item() <= 0:
        raise DataError(
            f"'{where}': 'scale/{spec.name}' and its zero point must be one number each, "
            f"the scale above 0; got {scale.tolist()} and {zero.tolist()}"
        )
    stored, target = arrays[key], np.dtype(spec.dtype)

    def mean(values: Array) -> Array:
        return _cast((values.astype(np.float64) - zero.item()) * scale.item(), target)

    # What is in between is in between: the largest and the smallest stand for all.
    ends = np.array(_extremes(stored) if stored.size else (), stored.dtype)
    _finite(key, Rows.of(mean(ends)), where)
    if stored.dtype.itemsize > 1:
        return stored.mapped(mean, target)
    table = mean(np.arange(256, dtype=np.uint8).view(stored.dtype))
    return stored.mapped(lambda values: np.take(table, values.view(np.uint8)), target)


def _set_aside(
    test: dict[str, Rows], labels: Array | None, inputs: tuple[TensorSpec, ...], where: str
) -> tuple[dict[str, Array], dict[str, Rows], Array | None, str]:
    """Take the first part of test as calibration data."""
    first = inputs[0]
    runs = len(test[first.name]) // _batch(first)
    count = min(_ASIDE, max(1, runs // 5))
    if runs < 2:
        raise DataError(
            f"'{where}' has one test sample and no calibration data", "add calib/ arrays"
        )
    if labels is not None:
        _check_labels(labels, test, inputs, where)
        labels = labels[count * _batch(first) :]
    calibration = {s.name: test[s.name][: count * _batch(s)] for s in inputs}
    rest = {s.name: test[s.name].since(count * _batch(s)) for s in inputs}
    note = (
        f"no calibration data: the first {count} of {runs} test samples are set aside for it, "
        "and not judged on"
    )
    return calibration, rest, labels, note


def _check_labels(
    labels: Array, test: dict[str, Rows], inputs: tuple[TensorSpec, ...], where: str
) -> None:
    """Raise when labels do not fit the test samples."""
    rows = len(test[inputs[0].name])
    if labels.ndim == 0 or len(labels) != rows:
        got = len(labels) if labels.ndim else "one number"
        raise DataError(f"'{where}': 'test/labels' has {got} for {rows} test samples")
    if labels.dtype.kind not in "iufb":
        raise DataError(f"'{where}': 'test/labels' has type {labels.dtype}, expected numbers")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise DataError(f"'{where}': 'test/labels' holds values that are NaN or infinite")


def _random(inputs: tuple[TensorSpec, ...], seed: int) -> EvaluationData:
    """Return samples of chance: floats standard normal, bytes 0 to 255, the rest 0 or 1."""
    rng = np.random.default_rng(seed)

    def draw(runs: int) -> dict[str, Array]:
        made: dict[str, Array] = {}
        for spec in inputs:
            inner = tuple(1 if n == -1 else n for n in spec.shape[1:])
            shape = (runs * _batch(spec), *inner)
            floats = np.dtype(spec.dtype).kind == "f"
            # Bytes are images as a rule; larger integers are indices as a rule, so stay small.
            most = 256 if spec.dtype == "uint8" else 2
            values = rng.standard_normal(shape) if floats else rng.integers(0, most, shape)
            made[spec.name] = values.astype(spec.dtype)
        return made

    calibration = draw(_RANDOM_CALIBRATION)
    test = {name: Rows.of(array) for name, array in draw(_RANDOM_TEST).items()}
    note = (
        "NO DATA: ranges come from random samples and accuracy was not measured, only agreement "
        "with the source on random samples; give real data by --data"
    )
    digest = _digest(calibration, test, None)
    return EvaluationData(calibration, test, None, (), digest, (note,), False)


def _digest(calibration: dict[str, Array], test: dict[str, Rows], labels: Array | None) -> str:
    """Return the digest of all arrays."""
    named = {f"calib/{n}": sha256_array(a) for n, a in calibration.items()}
    named |= {f"test/{n}": rows.digest() for n, rows in test.items()}
    if labels is not None:
        named["test/labels"] = sha256_array(labels)
    lines = [f"{digest}  {key}\n" for key, digest in sorted(named.items())]
    return sha256_bytes("".join(lines).encode())
