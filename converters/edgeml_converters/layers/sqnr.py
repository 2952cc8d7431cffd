"""Signal to quantisation noise of each tensor of a quantised model, in bounded memory.

``20 log10(|x| / |x - y|)`` with x of the float model and y of the quantised one, over all samples
(as in onnxruntime's qdq_loss_debug, which keeps all tensors of all samples). Sums of squares are
added up run by run, so what is held is one run's tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
import onnx

from edgeml.tensors import Array
from edgeml_converters.layers.taps import feeds, tapped
from edgeml_converters.passes.shapes import real_inputs
from edgeml_converters.results import SQNR_CEILING

_STORE = frozenset({"QuantizeLinear", "DequantizeLinear"})


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
        if not self.noise:
            return SQNR_CEILING
        if not self.signal:
            return -SQNR_CEILING
        value = 10 * math.log10(self.signal / self.noise)
        return max(-SQNR_CEILING, min(SQNR_CEILING, value))


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
    pairs = twins(source, quantised)
    total = {name: Noise() for name in pairs}
    with tapped(source, pairs, threads) as want, tapped(quantised, pairs.values(), threads) as got:
        for feed in feeds(source, calibration, samples):
            exact, rough = want(feed), got(feed)
            for name, twin in pairs.items():
                x, y = exact[name], rough[twin]
                if x.dtype.kind == "f" and x.shape == y.shape:
                    total[name].add(x, y)
    makers = {name: node for node in source.graph.node for name in node.output}
    return tuple(
        TensorNoise(name, makers[name].name, makers[name].op_type, sums.db)
        for name, sums in total.items()
        if sums.signal
    )


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
