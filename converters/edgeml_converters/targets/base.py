"""Target: writes the files that a device gets, from a model that the passes have prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec
import onnx

from edgeml.manifest import Binding
from edgeml.tensors import TensorSpec


class Product(msgspec.Struct, frozen=True):
    """What a target wrote.

    Attributes:
        files: Names of the files in the folder.
        entry: The one that the runtime opens.
        inputs: How the public inputs become the file's.
        outputs: How the file's outputs become the public ones.
        notes: What a reader of the report should know.
    """

    files: tuple[str, ...]
    entry: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    notes: tuple[str, ...] = ()


class Target(Protocol):
    """One format of files."""

    name: str

    def write(
        self,
        model: onnx.ModelProto,
        folder: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> Product:
        """Write the files.

        Args:
            model: The prepared model.
            folder: An empty folder for the files.
            inputs: The public contract.
            outputs: The public contract.

        Raises:
            ModelError: The format cannot hold this model; the message names the node.
            MissingPackageError: A package that it needs is not installed.
        """
        ...
