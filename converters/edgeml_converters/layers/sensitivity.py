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
from edgeml_converters.layers.taps import feeds, tapped

_MARK = "~twin"


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

    ``nodes`` is node -> names of the outputs (signal, noise); ``differences`` is node -> the
    tensor (quantised minus exact).
    """

    def __init__(self, source: onnx.ModelProto, quantised: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(source)
        self.graph = self.model.graph
        self.nodes: dict[str, tuple[str, str]] = {}
        self.differences: dict[str, str] = {}
        self._exact = {name for node in source.graph.node for name in node.output}
        self._exact |= {i.name for i in source.graph.input}
        self._maker = {name: node for node in quantised.graph.node for name in node.output}
        self._stored = {i.name: i for i in quantised.graph.initializer}
        self._done: dict[str, str] = {}
        mine = {node.name: node for node in source.graph.node}
        for node in quantised.graph.node:
            twin = mine.get(node.name)
            if twin is not None and twin.op_type == node.op_type:
                self._add(twin, node)

    def _add(self, exact: onnx.NodeProto, rough: onnx.NodeProto) -> None:
        """Add the twin of one operator, when something that it reads is rounded."""
        inputs: list[str] = []
        rounded = False
        for want, name in zip(exact.input, rough.input, strict=False):
            maker = self._maker.get(name)
            if maker is not None and maker.op_type == "DequantizeLinear":
                found = self._rounded(maker)
                if found is None:
                    return
                inputs.append(found)
                rounded = True
            else:
                inputs.append(want)
        if not rounded or len(inputs) != len(exact.input):
            return
        output = f"{exact.output[0]}{_MARK}"
        copy = onnx.NodeProto()
        copy.CopyFrom(exact)
        copy.name += _MARK
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.extend([output, *(f"{name}{_MARK}" for name in exact.output[1:] if name)])
        self.graph.node.append(copy)
        self.nodes[exact.name] = self._sums(exact.output[0], output)
        self.differences[exact.name] = f"{output}~diff"

    def _rounded(self, dequantize: onnx.NodeProto) -> str | None:
        """Return the name of rounded values in the twin graph; None when there are none."""
        known = dequantize.output[0]
        if known in self._done:
            return self._done[known]
        source = dequantize.input[0]
        store = self._maker.get(source)
        steps = [dequantize]
        if source not in self._stored:
            if store is None or store.op_type != "QuantizeLinear":
                return None
            if store.input[0] not in self._exact:
                return None
            steps.insert(0, store)
        for step in steps:
            copy = onnx.NodeProto()
            copy.CopyFrom(step)
            copy.name = f"{step.name or step.output[0]}{_MARK}"
            for i, name in enumerate(step.input):
                if name in self._stored:
                    copy.input[i] = self._keep(name)
                elif name == source:
                    copy.input[i] = f"{name}{_MARK}"
            copy.output[0] = f"{step.output[0]}{_MARK}"
            self.graph.node.append(copy)
        self._done[known] = f"{known}{_MARK}"
        return self._done[known]

    def _keep(self, name: str) -> str:
        """Store a constant of the quantised model under a name of its own."""
        own = f"{name}{_MARK}"
        if own not in self._done:
            tensor = self.graph.initializer.add()
            tensor.CopyFrom(self._stored[name])
            tensor.name = own
            self._done[own] = own
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
