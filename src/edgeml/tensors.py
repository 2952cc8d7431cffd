"""TensorSpec: what a tensor of a model looks like, and whether an array fits it.

Types are named as NumPy names them; ``DATATYPES`` maps them to the names of the Open Inference
Protocol (required tensor data types, v2 specification).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgeml.errors import RequestError, nearest

Array = npt.NDArray[Any]

#: NumPy's name -> the protocol's name.
DATATYPES: dict[str, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
#: The protocol's name -> NumPy's name.
NUMPY_NAMES: dict[str, str] = {v: k for k, v in DATATYPES.items()}
# Comparing with a dtype costs a tenth of comparing with its name.
_DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(name) for name in DATATYPES}


class TensorSpec(msgspec.Struct, frozen=True):
    """Name, type and shape of one tensor.

    Attributes:
        name: The tensor's name in the model.
        dtype: NumPy's name of the element type, for example ``float32``.
        shape: One number per axis; -1 where the axis is variable.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def datatype(self) -> str:
        """The element type as the Open Inference Protocol names it."""
        return DATATYPES[self.dtype]

    @property
    def batched(self) -> bool:
        """Whether axis 0 is variable, that is, can carry a batch."""
        return bool(self.shape) and self.shape[0] == -1

    def zeros(self, batch: int = 1) -> Array:
        """Return zeros of this shape; every variable axis is ``batch`` on axis 0, else 1."""
        shape = [
            batch if i == 0 and n == -1 else (1 if n == -1 else n) for i, n in enumerate(self.shape)
        ]
        return np.zeros(shape, dtype=self.dtype)

    def check(self, array: Array, where: str = "input") -> None:
        """Check an array's type and shape against this specification.

        Args:
            array: The array.
            where: How the message calls it.

        Raises:
            RequestError: The type differs, or the shape does not fit.
        """
        if array.dtype != _DTYPES[self.dtype]:
            raise RequestError(
                f"{where} '{self.name}' has type {array.dtype.name}, expected {self.dtype}"
            )
        if not self._fits(array.shape):
            raise RequestError(
                f"{where} '{self.name}' has shape {list(array.shape)}, "
                f"expected {list(self.shape)} (-1 is any)"
            )

    def _fits(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a shape fits; with plain loops, for this runs before every inference."""
        if shape == self.shape:
            return True
        if len(shape) != len(self.shape):
            return False
        for want, got in zip(self.shape, shape, strict=True):  # noqa: SIM110 (all() costs double)
            if want not in (-1, got):
                return False
        return True


def check_feed(specs: tuple[TensorSpec, ...], feed: Mapping[str, Array]) -> None:
    """Check a whole feed: every input there, no other, each of the right type and shape.

    Raises:
        RequestError: The first thing that does not fit.
    """
    for spec in specs:
        array = feed.get(spec.name)
        if array is None:
            break
        spec.check(array)
    else:
        if len(feed) == len(specs):
            return
    names = [spec.name for spec in specs]
    for name in feed:
        if name not in names:
            raise RequestError(f"unknown input '{name}'", nearest(name, names))
    absent = next(name for name in names if feed.get(name) is None)
    raise RequestError(f"input '{absent}' is missing", f"expected: {', '.join(names)}")
