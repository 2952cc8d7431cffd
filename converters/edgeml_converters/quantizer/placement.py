"""Placement: which tensors of a graph are stored in 8 bits.

What pays differs between runtimes, so each has its own placement, made of the same parts: rules
for operators (data, below), and a way to choose. ``onnxruntime`` and ``openvino`` are in files of
their own; this one has what they share.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import onnx

from edgeml_converters.quantizer.graph import Index, Use, attribute
from edgeml_converters.quantizer.parameters import Groups
from edgeml_converters.quantizer.weighted import Weighted

Kind = Literal["weighted", "follows", "moves", "joins"]

#: Operators that a following clamp is computed with: its output alone is stored.
CLAMPED = frozenset({"Conv", "Gemm", "MatMul", "Add"})
#: Clamps that storing with a suitable range does for free.
CLAMPS = frozenset({"Relu", "Clip"})


class Placement:
    """What is to be stored in 8 bits.

    Attributes:
        readers: Activation tensor -> the inputs that read it from 8 bits; None for all of them,
            the output of the graph included.
        weights: Node -> how its weights are stored.
        constants: Stored tensors that are second operands, and who reads them.
        groups: Tensors that share one scale.
        float_bias: Whether biases stay float.
    """

    def __init__(self, float_bias: bool) -> None:
        """Start with nothing."""
        self.readers: dict[str, set[Use] | None] = {}
        self.weights: dict[str, Weighted] = {}
        self.constants: dict[str, set[Use]] = {}
        self.groups = Groups()
        self.float_bias = float_bias

    def read(self, name: str, use: Use) -> None:
        """Let one input read a tensor from 8 bits."""
        readers = self.readers.setdefault(name, set())
        if readers is not None:
            readers.add(use)

    def store_operands(self, node: onnx.NodeProto, index: Index) -> None:
        """Store the constant operands of a node in 8 bits."""
        for position, name in enumerate(node.input):
            if name and index.is_constant(name) and index.is_float(name):
                self.constants.setdefault(name, set()).add(Use(node.name, position))

    def read_by_all(self, name: str) -> None:
        """Let every input read a tensor from 8 bits."""
        self.readers[name] = None


class Rule(msgspec.Struct, frozen=True):
    """How an operator takes 8 bits.

    Attributes:
        kind: ``weighted`` (an activation meets stored weights), ``follows`` (in 8 bits only
            between others that are), ``moves`` (output and first input share one scale),
            ``joins`` (as moves, with all inputs).
        inputs: Positions of the activations; empty for all.
        writes: Whether its output must be stored in 8 bits too: ``always``, or ``asked``
            (when all that read it want that).
        alone: For a node that writes 8 bits always: how many weights must meet in each of its
            outputs to pay for the conversions, when neither its input is stored nor anybody
            goes on in 8 bits.
    """

    kind: Kind
    inputs: tuple[int, ...] = (0,)
    writes: Literal["always", "asked"] = "always"
    alone: int = 0


def activations(node: onnx.NodeProto, rule: Rule, index: Index) -> list[Use]:
    """Return the inputs of a node that hold activations."""
    positions = rule.inputs or tuple(range(len(node.input)))
    return [
        Use(node.name, i)
        for i in positions
        if i < len(node.input) and node.input[i] and not index.is_constant(node.input[i])
    ]


def takes_float(node: onnx.NodeProto, rule: Rule, index: Index) -> bool:
    """Tell whether a node computes on float32 tensors, and on at least one activation."""
    positions = rule.inputs or tuple(range(len(node.input)))
    names = [node.input[i] for i in positions if i < len(node.input) and node.input[i]]
    return (
        not node.domain
        and bool(activations(node, rule, index))
        and all(index.is_float(name) for name in names)
        and index.is_float(node.output[0])
    )


def clamp_behind(node: onnx.NodeProto, index: Index) -> onnx.NodeProto | None:
    """Return the clamp that a node's output goes into alone, if there is one."""
    if node.op_type not in CLAMPED or len(node.output) != 1:
        return None
    reader = index.only_reader(node.output[0])
    if reader is None or reader.op_type not in CLAMPS or reader.domain:
        return None
    return reader if reader.op_type == "Relu" or _holds_zero(reader, index) else None


def _holds_zero(node: onnx.NodeProto, index: Index) -> bool:
    """Tell whether 0 lies within the stored bounds of a Clip: only then saturation equals it."""
    low, high = [
        (float(index.constant(name).reshape(-1)[0]) if index.is_constant(name) else None)
        if name
        else 0.0
        for name in [*node.input[1:3], "", ""][:2]
    ]
    return low is not None and high is not None and low <= 0 <= high


def stored_output(node: onnx.NodeProto, index: Index) -> str:
    """Return the tensor that is stored when a node writes 8 bits: its own, or its clamp's."""
    clamp = clamp_behind(node, index)
    return str((clamp or node).output[0])


def is_simple(node: onnx.NodeProto) -> bool:
    """Tell whether attributes of a node leave it one of the simple cases."""
    return not (node.op_type == "Resize" and _mode(node) != "nearest")


def _mode(node: onnx.NodeProto) -> str:
    found = attribute(node, "mode", b"nearest")
    return found.decode() if isinstance(found, bytes) else str(found)
