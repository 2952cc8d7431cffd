"""How long each operator of a model takes on a runtime, conversions around it included.

A runtime fuses, renames and splits operators. What it executes is charged to the operator of the
model that it stands for, found by the names that the runtime keeps; a node that stands for none (a
conversion of types or layouts) is charged to the next operator that uses its result, or else to
the one that made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx

from edgeml.tensors import Array
from edgeml_converters.layers.executed import Executed, executed
from edgeml_converters.layers.graph import WEIGHTED

#: What is fused behind a product.
_FUSED = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh", "Add", "Mul"})
#: How onnxruntime marks names of nodes and tensors that it makes.
_MARKS = ("_nchwc", "_token_", "_QuantizeLinear_Output", "_QuantizeLinear", "/duplicated", "_fused")


def node_micros(
    file: Path,
    source: onnx.ModelProto,
    runtime: str,
    feed: Mapping[str, Array],
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    runs: int = 30,
) -> dict[str, float]:
    """Return node of the source -> microseconds of one run of a file that was made of it.

    Args:
        file: What is timed.
        source: The model whose nodes are charged; they have names.
        runtime: ``onnxruntime`` or ``openvino``.
        feed: One sample by input name.
        threads: Of every run.
        options: Of the runtime (``Recipe.options``).
        runs: How many are timed.

    Raises:
        ModelError: The file does not load.
        DeviceError: A run failed.
    """
    return charge(executed(file, runtime, threads, options, feed, runs), source)


def charge(nodes: Iterable[Executed], source: onnx.ModelProto) -> dict[str, float]:
    """Return node of the source -> its microseconds; see the module."""
    every = list(nodes)
    names = _Names(source)
    whose = {node.name: names.find(node) for node in every}
    readers: dict[str, list[str]] = {}
    for node in every:
        for name in node.inputs:
            readers.setdefault(name, []).append(node.name)
    inputs = {node.name: list(node.inputs) for node in every}
    found: dict[str, float] = {}
    for node in every:
        owner = (
            whose[node.name]
            or _nearest(node.name, readers, whose)
            or _nearest(node.name, inputs, whose)
        )
        if owner:
            found[owner] = found.get(owner, 0.0) + node.micros
    return found


def _nearest(start: str, edges: Mapping[str, list[str]], whose: Mapping[str, str]) -> str:
    """Return the operator that is found first along the edges; empty when there is none."""
    seen, waiting = {start}, [start]
    while waiting:
        following = []
        for name in waiting:
            for other in edges.get(name, ()):
                if whose.get(other):
                    return whose[other]
                if other not in seen:
                    seen.add(other)
                    following.append(other)
        waiting = following
    return ""


class _Names:
    """Finds the operator of the source that an executed node stands for."""

    def __init__(self, source: onnx.ModelProto) -> None:
        self._kinds = {node.name: node.op_type for node in source.graph.node}
        self._makers = {name: node for node in source.graph.node for name in node.output if name}
        self._taken: set[str] = set()

    def find(self, node: Executed) -> str:
        """Return the operator's name; empty when it stands for none.

        For a node that holds several operators it is the one with the weights.
        """
        told = [name for name in map(self._known, (*node.origin, node.name)) if name]
        if not told:
            return ""
        if not node.weighted:
            return told[0]
        for name in told:
            if self._kinds[name] in WEIGHTED:
                return name
        return next(filter(None, (self._product(name) for name in told)), told[0])

    def _known(self, name: str) -> str:
        """Return the operator that a name of a node or a tensor belongs to."""
        name = name.split("~")[0]
        for short in (name, *(name.split(mark)[0] for mark in _MARKS)):
            while short:
                if short in self._kinds:
                    return short
                if short in self._makers:
                    return str(self._makers[short].name)
                short = short.rpartition("/")[0]
        return ""

    def _product(self, name: str) -> str:
        """Return the product that was fused with an operator behind it."""
        waiting, seen = [name], {name}
        by_name = {node.name: node for node in self._makers.values()}
        while waiting:
            node = by_name[waiting.pop(0)]
            if node.op_type in WEIGHTED and node.name not in self._taken:
                self._taken.add(node.name)
                return str(node.name)
            if node.op_type in _FUSED:
                before = [self._makers[i].name for i in node.input if i in self._makers]
                waiting += [one for one in before if one not in seen]
                seen.update(before)
        return ""
