"""Pass: one step from a model to a model.

A pass never changes the model that it was given, says what it did, and raises ModelError when it
cannot do it. It gets everything that it needs by its constructor (options) and by the context
(data, seed): the same three give the same bytes.

What a pass needs and what it promises are words of this module. They are checked, for every pass
in the table: without what it needs a pass raises ModelError, and its promises hold.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
import onnx

from edgeml.errors import ModelError
from edgeml.tensors import Array

#: Need: calibration data for every input.
CALIBRATION = "calibration"
#: Need: operator set 13 or newer.
OPSET13 = "opset13"
#: Need: a float model, not one that is quantised already.
FLOAT = "float"
#: All words for needs.
NEEDS = frozenset({CALIBRATION, OPSET13, FLOAT})

#: Promise: names, types and axes of inputs and outputs stay.
SIGNATURE = "signature"
#: Promise: the outputs stay, but for float rounding.
VALUES = "values"
#: Promise: operators of no further domain come in.
STANDARD = "standard"
#: Promise: something in the result is computed or stored in 8 bits.
INT8 = "int8"
#: Promise: what is stored takes no more bytes than before.
SMALLER = "smaller"
#: Promise: applied to its own result it changes nothing.
IDEMPOTENT = "idempotent"
#: Promise: stored tensors that keep their name keep their values, bit by bit.
WEIGHTS = "weights"
#: All words for promises.
PROMISES = frozenset({WEIGHTS, SIGNATURE, VALUES, STANDARD, INT8, SMALLER, IDEMPOTENT})


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
    """One step; see the module.

    Attributes:
        name: Its name in the table of passes.
        needs: Words of ``NEEDS``.
        promises: Words of ``PROMISES``.
    """

    name: str
    needs: frozenset[str]
    promises: frozenset[str]

    @property
    def options(self) -> dict[str, Any]:
        """Its options (JSON values only); the constructor makes the same pass of them."""
        ...

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: It cannot be applied to this model; the message names the node.
        """
        ...


def check_promises(one: Pass, before: onnx.ModelProto, result: PassResult) -> None:
    """Check what a run of a pass can be held to at once: that it left the stored tensors alone.

    Raises:
        ModelError: It promised that, and did not.
    """
    if WEIGHTS not in one.promises or not result.changed:
        return
    from edgeml_converters.source.stored import tensor_digests

    had, has = tensor_digests(before), tensor_digests(result.model)
    changed = [name for name, digest in has.items() if had.get(name, digest) != digest]
    if changed:
        raise ModelError(
            f"pass {one.name} changed the stored tensor '{changed[0]}', which it must not",
            "leave this recipe out, and report it",
        )
