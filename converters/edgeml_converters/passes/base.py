"""Pass: one step from a model to a model.

A pass never changes the model that it was given, says what it did, and raises ModelError when it
cannot do it. It gets everything that it needs by its constructor (options) and by the context
(data, seed): the same three give the same bytes.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
import onnx

from edgeml.tensors import Array


class PassContext(msgspec.Struct, frozen=True):
    """What a pass may use.

    Attributes:
        calibration: Input name -> array, samples on axis 0; empty without data.
        seed: Seed of everything random.
        threads: Threads for runs of the model inside the pass.
    """

    calibration: dict[str, Array] = {}
    seed: int = 0
    threads: int = 1


class PassResult(msgspec.Struct, frozen=True):
    """What a pass did.

    Attributes:
        model: The new model, or the given one when nothing was to do.
        changed: Whether it differs.
        notes: What a reader of the lineage should know.
    """

    model: onnx.ModelProto
    changed: bool
    notes: tuple[str, ...] = ()


class Pass(Protocol):
    """One step; see the module."""

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Its options, for the lineage (JSON values only)."""
        ...

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: It cannot be applied to this model; the message names the node.
        """
        ...
