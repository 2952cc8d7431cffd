"""Signal to quantisation noise of each tensor of a quantised model, in bounded memory.

``20 log10(|x| / |x - y|)`` with x of the float model and y of the quantised one, over all samples
(as in onnxruntime's qdq_loss_debug, which keeps all tensors of all samples). Here both models are
one graph that computes the sums of squares itself: two numbers per tensor come out of a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
import onnx
import onnx.compose
import onnx.helper

from edgeml.tensors import Array
from edgeml_converters.layers.taps import feeds, tapped
from edgeml_converters.passes.shapes import real_inputs
from edgeml_converters.quantizer.prepare import infer, light
from edgeml_converters.results import SQNR_CEILING

#: What stands before the names of the exact model where both are one graph.
_EXACT = "exact~"


class TensorNoise(msgspec.Struct, frozen=True):
    """How exact one tensor is.

    Attributes:
        tensor: Its name in the float model.
        node: Name of the node that makes it there.
        op: That node's operator.
        sqnr_db: Signal to noise, with what earlier layers add; at most SQNR_CEILING.
    """

    tensor: str
    node: str
    op: str
    sqnr_db: float


class Noise:
    """Sums of squares of a signal and of the difference to its twin."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.signal = 0.0
        self.noise = 0.0

    def add(self, want: Array, got: Array) -> None:
        """Take one pair of arrays of the same shape; infinite values (masks) are left out."""
        x, y = want.astype(np.float64).ravel(), got.astype(np.float64).ravel()
        whole = np.isfinite(x) & np.isfinite(y)
        if not whole.all():
            x, y = x[whole], y[whole]
        self.signal += float(x @ x)
        self.noise += float((x - y) @ (x - y))

    @property
    def db(self) -> float:
        """Signal to noise in decibels, within plus and minus SQNR_CEILING."""
        return _db(self.signal, self.noise)


def _db(signal: float, noise: float) -> float:
    """Return a ratio of powers in decibels, within bounds also where one of them is nothing."""
    if not noise:
        return SQNR_CEILING
    if not signal:
        return -SQNR_CEILING
    return max(-SQNR_CEILING, min(SQNR_CEILING, 10 * math.log10(signal / noise)))


def sqnr(want: Iterable[Array], got: Iterable[Array]) -> float:
    """Return the SQNR in decibels of arrays that come in pairs."""
    total = Noise()
    for x, y in zip(want, got, strict=True):
        total.add(x, y)
    return total.db


def twins(source: onnx.ModelProto, quantised: onnx.ModelProto) -> dict[str, str]:
    """Return float tensors of the source -> the tensor that stands for it in a quantised model.

    A tensor keeps its name. Where it is rounded (QuantizeLinear), the rounded values
    (DequantizeLinear) stand for it; where the quantiser let the rounding make it, there is no
    tensor of that name, and none stands for it.
    """
    rounded: dict[str, str] = {}
    stored = {
        n.input[0]: n.output[0] for n in quantised.graph.node if n.op_type == "QuantizeLinear"
    }
    for node in quantised.graph.node:
        if node.op_type == "DequantizeLinear":
            rounded.setdefault(node.input[0], node.output[0])
    made = {name for node in quantised.graph.node for name in node.output}
    made |= {o.name for o in quantised.graph.output}
    found: dict[str, str] = {}
    for node in source.graph.node:
        for name in node.output:
            if name in made:
                found[name] = rounded.get(stored.get(name, ""), name)
    return found


def per_tensor(
    source: onnx.ModelProto,
    quantised: onnx.ModelProto,
    calibration: Mapping[str, Array],
    samples: int = 16,
    threads: int = 1,
) -> tuple[TensorNoise, ...]:
    """Return how exact each float tensor of a quantised model is, in the order of the source.

    Args:
        source: The float model that was quantised (after the passes before that).
        quantised: What became of it; tensors are matched by name.
        calibration: Input name -> array, samples on axis 0.
        samples: Use at most so many.
        threads: Of every run.

    Raises:
        ModelError: A model does not load, or an input has no data.
    """
    both, sums = _side_by_side(source, quantised)
    total = {name: np.zeros(2) for name in sums}
    with tapped(both, [one for pair in sums.values() for one in pair], threads) as run:
        for feed in feeds(quantised, calibration, samples):
            outputs = run(feed)
            for name, pair in sums.items():
                total[name] += [float(outputs[one]) for one in pair]
    makers = {name: node for node in source.graph.node for name in node.output}
    found = []
    for name, (signal, noise) in total.items():
        # What holds masks (infinite, or nearly) has no signal that a sum of squares could tell.
        if signal > 0 and np.isfinite([signal, noise]).all():
            node = makers[name]
            found.append(TensorNoise(name, node.name, node.op_type, _db(signal, noise)))
    return tuple(found)


def _side_by_side(
    source: onnx.ModelProto, quantised: onnx.ModelProto
) -> tuple[onnx.ModelProto, dict[str, tuple[str, str]]]:
    """Return both models as one graph, and tensor -> names of its outputs (signal, noise)."""
    both = onnx.ModelProto()
    both.CopyFrom(quantised)
    plain = onnx.GraphProto()
    plain.CopyFrom(source.graph)
    del plain.input[:]  # without stored tensors that are inputs too, as old models have them
    plain.input.extend(real_inputs(source))
    other = onnx.compose.add_prefix_graph(plain, _EXACT, rename_inputs=False)
    both.graph.node.extend(other.node)
    both.graph.initializer.extend(other.initializer)
    both.graph.sparse_initializer.extend(other.sparse_initializer)
    domains = {o.domain for o in both.opset_import}
    both.opset_import.extend(o for o in source.opset_import if o.domain not in domains)
    del both.graph.value_info[:]
    known, theirs = _floats(source), _floats(quantised)
    sums: dict[str, tuple[str, str]] = {}
    for name, twin in twins(source, quantised).items():
        if name not in known or not _fit(known[name], theirs.get(name)):
            continue
        exact, diff = f"{_EXACT}{name}", f"{_EXACT}{name}~diff"
        sums[name] = f"{exact}~signal", f"{exact}~noise"
        both.graph.node.append(onnx.helper.make_node("Sub", [twin, exact], [diff], name=diff))
        for result, of in zip(sums[name], (exact, diff), strict=True):
            both.graph.node.append(
                onnx.helper.make_node("ReduceSumSquare", [of], [result], name=result, keepdims=0)
            )
    return both, sums


def _floats(model: onnx.ModelProto) -> dict[str, tuple[int, ...] | None]:
    """Return the tensors that are float32, with their axes as far as known (0 where not)."""
    found: dict[str, tuple[int, ...] | None] = {}
    for value in infer(light(model)):
        tensor = value.type.tensor_type
        if tensor.elem_type == onnx.TensorProto.FLOAT:
            axes = tuple(d.dim_value for d in tensor.shape.dim)
            found[value.name] = axes if tensor.HasField("shape") else None
    return found


def _fit(a: tuple[int, ...] | None, b: tuple[int, ...] | None) -> bool:
    """Tell whether two shapes may be the same; pruning, for one, leaves names and cuts channels."""
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(x == y or not x or not y for x, y in zip(a, b, strict=True))


def whole_model(
    source: onnx.ModelProto,
    product: onnx.ModelProto,
    calibration: Mapping[str, Array],
    samples: int = 16,
    threads: int = 1,
) -> float:
    """Return the SQNR in decibels of the worst float output of a product.

    Args:
        source: The float model.
        product: What became of it, with the same outputs.
        calibration: Input name -> array, samples on axis 0.
        samples: Use at most so many.
        threads: Of every run.

    Raises:
        ModelError: A model does not load, or an input has no data.
    """
    names = [o.name for o in source.graph.output]
    total = {name: Noise() for name in names}
    inputs = [i.name for i in real_inputs(product)]
    with tapped(source, names, threads) as want, tapped(product, names, threads) as got:
        for feed in feeds(product, calibration, samples):
            exact = want(feed)
            rough = got({name: feed[name] for name in inputs})
            for name in names:
                if exact[name].dtype.kind == "f" and exact[name].shape == rough[name].shape:
                    total[name].add(exact[name], rough[name])
    return min((sums.db for sums in total.values() if sums.signal), default=SQNR_CEILING)
