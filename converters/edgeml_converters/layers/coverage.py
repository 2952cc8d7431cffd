"""Coverage: how much of a model a runtime really runs in 8 bits.

The size of an int8 file says nothing about its speed: what counts is how many products became
integer products in the graph that the runtime makes of it, and how much is left beside them that
only changes the number of bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from edgeml.tensors import Array
from edgeml_converters.layers.executed import Executed, executed


class Coverage(msgspec.Struct, frozen=True):
    """What is executed in 8 bits, and what beside it.

    Attributes:
        runtime: Whose graph was looked at.
        nodes: Number of nodes that are executed.
        weighted: Products with stored weights: convolutions, matrix products, recurrent cells.
        int8: How many of them multiply in 8 bits.
        float_layers: Names of those that do not.
        quantize: QuantizeLinear (or its like) that are executed by themselves.
        dequantize: DequantizeLinear (or its like) that are executed by themselves.
        conv_integer: Convolutions with ranges found at run time: slower than float (ConvInteger).
        grouped: 8-bit convolutions with groups of several channels each; slow in onnxruntime.
        depthwise: 8-bit convolutions with one channel in each group.
        micros: Time of one run in microseconds; 0 when nothing was run.
        weighted_micros: The part of it in weighted products.
        int8_micros: The part of it in weighted products in 8 bits.
        convert_micros: The part of it in ``quantize`` and ``dequantize``.
    """

    runtime: str
    nodes: int
    weighted: int
    int8: int
    float_layers: tuple[str, ...] = ()
    quantize: int = 0
    dequantize: int = 0
    conv_integer: int = 0
    grouped: int = 0
    depthwise: int = 0
    micros: float = 0.0
    weighted_micros: float = 0.0
    int8_micros: float = 0.0
    convert_micros: float = 0.0

    @property
    def share(self) -> float:
        """Share of the weighted products that multiply in 8 bits; 0 when there is none."""
        return self.int8 / self.weighted if self.weighted else 0.0

    @property
    def time_share(self) -> float | None:
        """Share of the weighted products' time that is spent in 8 bits; None when not timed."""
        return self.int8_micros / self.weighted_micros if self.weighted_micros else None


def coverage(
    file: Path,
    runtime: str,
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    feed: Mapping[str, Array] | None = None,
    runs: int = 20,
) -> Coverage:
    """Tell how much of a file a runtime runs in 8 bits on the CPU.

    Without a feed nothing is run: this costs one load of the model (a screen before measuring).

    Args:
        file: ``.onnx``; for OpenVINO ``.xml`` too.
        runtime: ``onnxruntime`` or ``openvino``.
        threads: Of every run.
        options: Of the runtime (``Recipe.options``).
        feed: One sample by input name, to learn times too.
        runs: How many runs are timed.

    Raises:
        UsageError: Another runtime.
        ModelError: The file does not load.
        DeviceError: A run failed.
    """
    return summarise(executed(file, runtime, threads, options, feed, runs), runtime)


def summarise(nodes: Iterable[Executed], runtime: str) -> Coverage:
    """Fold what is executed into its coverage."""
    every = list(nodes)
    weighted = [node for node in every if node.weighted]
    integer = [node for node in weighted if node.int8]
    grouped = [node for node in integer if node.groups > 1]
    converts = [n for n in every if n.kind in ("QuantizeLinear", "DequantizeLinear")]
    return Coverage(
        runtime,
        len(every),
        len(weighted),
        len(integer),
        tuple(node.name for node in weighted if not node.int8),
        sum(node.kind == "QuantizeLinear" for node in every),
        sum(node.kind == "DequantizeLinear" for node in every),
        sum(node.kind.startswith("ConvInteger") for node in every),
        sum(not node.depthwise for node in grouped),
        sum(node.depthwise for node in grouped),
        sum((node.micros for node in every), 0.0),
        sum((node.micros for node in weighted), 0.0),
        sum((node.micros for node in integer), 0.0),
        sum((node.micros for node in converts), 0.0),
    )
