"""How much noise each quantised operator adds by itself, measured in one run of one graph.

Beside every operator of the float model stands its quantised twin, fed by the exact tensors: so
the noise of one layer is not mixed with what earlier layers add. The sums of squares are computed
inside the graph, so that nothing but two numbers per operator comes out of a run.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from edgeml.tensors import Array
from edgeml_converters.layers.graph import WEIGHTED
from edgeml_converters.layers.taps import feeds, tapped

_MARK = "~twin"
#: Operators that a quantiser leaves out, because rounding to a range without negatives does it.
_CLAMPS = frozenset({"Relu", "Clip"})


def local_noise(
    source: onnx.ModelProto,
    quantised: onnx.ModelProto,
    calibration: Mapping[str, Array],
    samples: int = 16,
    threads: int = 1,
) -> dict[str, float]:
    """Return node name -> noise over signal (powers) of its output, from its own rounding alone.

    Args:
        source: The float model; its nodes have names.
        quantised: What a quantiser made of it (QDQ), with the same names of nodes and tensors.
        calibration: Input name -> array, samples on axis 0.
        samples: Use at most so many.
        threads: Of every run.

    Raises:
        ModelError: The model does not load, or an input has no data.
    """
    built = _Twins(source, quantised)
    sums = {name: np.zeros(2) for name in built.nodes}
    wanted = [output for pair in built.nodes.values() for output in pair]
    with tapped(built.model, wanted, threads) as run:
        for feed in feeds(source, calibration, samples):
            outputs = run(feed)
            for name, pair in built.nodes.items():
                sums[name] += [float(outputs[output]) for output in pair]
    return {
        name: float(noise / signal)
        for name, (signal, noise) in sums.items()
        if signal > 0 and np.isfinite([signal, noise]).all()
    }


def channel_shift(
    source: onnx.ModelProto,
    quantised: onnx.ModelProto,
    axes: Mapping[str, int],
    calibration: Mapping[str, Array],
    samples: int = 16,
    threads: int = 1,
) -> dict[str, Array]:
    """Return node name -> mean of (quantised minus exact) output, for each channel.

    Args:
        source: The float model; its nodes have names.
        quantised: What a quantiser made of it (QDQ), with the same names of nodes and tensors.
        axes: Node -> the axis of channels of its output; others are left out.
        calibration: Input name -> array, samples on axis 0.
        samples: Use at most so many.
        threads: Of every run.

    Raises:
        ModelError: The model does not load, or an input has no data.
    """
    built = _Twins(source, quantised)
    found = {name: built.differences[name] for name in axes if name in built.nodes}
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}
    with tapped(built.model, found.values(), threads) as run:
        for feed in feeds(source, calibration, samples):
            outputs = run(feed)
            for name, tensor in found.items():
                rows = np.moveaxis(outputs[tensor], axes[name], -1)
                rows = rows.reshape(-1, rows.shape[-1])
                sums[name] = sums.get(name, 0.0) + rows.sum(axis=0, dtype=np.float64)
                counts[name] = counts.get(name, 0) + len(rows)
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


class _Twins:
    """The graph with both.

    A twin is what a quantised model computes a tensor by, from the last tensors before it that the
    source has too; those it reads from the source. ``nodes`` is node of the source -> names of the
    outputs (signal, noise); ``differences`` is node -> the tensor (quantised minus exact).
    """

    def __init__(self, source: onnx.ModelProto, quantised: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(source)
        self.graph = self.model.graph
        self.nodes: dict[str, tuple[str, str]] = {}
        self.differences: dict[str, str] = {}
        self._source = {name: node for node in source.graph.node for name in node.output if name}
        self._kinds = {node.name: node.op_type for node in source.graph.node}
        self._exact = {*self._source, *(i.name for i in source.graph.input)}
        self._maker = {name: node for node in quantised.graph.node for name in node.output}
        self._stored = {i.name: i for i in quantised.graph.initializer}
        self._copied: dict[str, frozenset[str]] = {}
        for node in quantised.graph.node:
            for name in node.output:
                if name in self._source:
                    self._add(name)

    def _add(self, tensor: str) -> None:
        """Add the twin of one tensor, when something that it is computed from is rounded."""
        if not self._rounded(tensor):
            return
        made = self._copy(tensor)
        owner = next((n for n in sorted(made) if self._kinds.get(n) in WEIGHTED), "")
        maker = self._source[tensor]
        owner = owner or maker.name
        if owner in self.nodes:
            return
        exact = tensor
        # The quantiser lets rounding clamp what Relu would: compare with what comes before it.
        while (
            maker.op_type in _CLAMPS and maker.name not in made and maker.input[0] in self._source
        ):
            exact = maker.input[0]
            maker = self._source[exact]
        self.nodes[owner] = self._sums(exact, f"{tensor}{_MARK}")
        self.differences[owner] = f"{tensor}{_MARK}~diff"

    def _rounded(self, tensor: str) -> bool:
        """Tell whether a tensor is computed from rounded ones, since the last exact ones."""
        waiting, seen = [tensor], {tensor}
        while waiting:
            node = self._maker[waiting.pop()]
            if node.op_type == "DequantizeLinear":
                return True
            for name in node.input:
                if name in self._maker and name not in self._exact and name not in seen:
                    seen.add(name)
                    waiting.append(name)
        return False

    def _copy(self, tensor: str) -> frozenset[str]:
        """Copy what computes a tensor; return the names of the nodes."""
        if tensor in self._copied:
            return self._copied[tensor]
        node = self._maker[tensor]
        names = {node.name}
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name or tensor}{_MARK}"
        for index, name in enumerate(node.input):
            if name in self._stored:
                copy.input[index] = self._keep(name)
            elif name and name not in self._exact:
                names |= self._copy(name)
                copy.input[index] = f"{name}{_MARK}"
        for index, name in enumerate(node.output):
            if name:
                copy.output[index] = f"{name}{_MARK}"
        self.graph.node.append(copy)
        for name in node.output:
            self._copied[name] = frozenset(names)
        return self._copied[tensor]

    def _keep(self, name: str) -> str:
        """Store a constant of the quantised model under a name of its own."""
        own = f"{name}{_MARK}"
        if own not in self._copied:
            tensor = self.graph.initializer.add()
            tensor.CopyFrom(self._stored[name])
            tensor.name = own
            self._copied[own] = frozenset()
        return own

    def _sums(self, exact: str, rough: str) -> tuple[str, str]:
        """Add the sums of squares of a tensor and of its difference to the twin."""
        signal, noise, diff = (f"{rough}~{word}" for word in ("signal", "noise", "diff"))
        self.graph.node.extend(
            [
                helper.make_node("Sub", [rough, exact], [diff], name=diff),
                helper.make_node("ReduceSumSquare", [exact], [signal], name=signal, keepdims=0),
                helper.make_node("ReduceSumSquare", [diff], [noise], name=noise, keepdims=0),
            ]
        )
        return signal, noise
