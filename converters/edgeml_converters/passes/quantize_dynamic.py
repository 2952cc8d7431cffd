"""QuantizeDynamic: 8-bit weights of matrix products, ranges of activations found in each run.

Only MatMul and Gemm: a dynamic convolution (ConvInteger) is 5 to 14 times slower than float.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx

from edgeml.errors import ModelError, nearest
from edgeml_converters.model import signature
from edgeml_converters.passes.base import (
    FLOAT,
    INT8,
    OPSET13,
    SIGNATURE,
    STANDARD,
    PassContext,
    PassResult,
)
from edgeml_converters.quantizer.dynamic import write_dynamic
from edgeml_converters.quantizer.prepare import prepared


class QuantizeDynamic:
    """Quantise the weights of MatMul and Gemm; needs no data."""

    name = "quantize_dynamic"
    needs: frozenset[str] = frozenset({FLOAT, OPSET13})
    promises: frozenset[str] = frozenset({INT8, SIGNATURE, STANDARD})

    def __init__(
        self, per_channel: bool = True, reduce_range: bool = False, exclude: Iterable[str] = ()
    ) -> None:
        """Choose the scheme.

        Args:
            per_channel: One weight scale per output channel.
            reduce_range: Weights of 7 bits, for x86 without VNNI.
            exclude: Names of nodes that stay float.
        """
        self._per_channel, self._reduce_range = per_channel, reduce_range
        self._exclude = tuple(exclude)

    @property
    def options(self) -> dict[str, Any]:
        """All that was chosen."""
        return {
            "per_channel": self._per_channel,
            "reduce_range": self._reduce_range,
            "exclude": list(self._exclude),
        }

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: There is nothing to quantise, an unknown node to exclude, or the model is
                quantised already.
        """
        ready = prepared(model)
        names = {node.name for node in ready.graph.node}
        for name in self._exclude:
            if name not in names:
                raise ModelError(f"the model has no node '{name}' to exclude", nearest(name, names))
        quantised, products = write_dynamic(
            ready,
            per_channel=self._per_channel,
            reduce_range=self._reduce_range,
            exclude=self._exclude,
        )
        if not products:
            raise ModelError("nothing to quantise: no matrix product has stored weights")
        if signature(quantised) != signature(model):
            raise ModelError("quantising changed the inputs or outputs of the model", "report this")
        return PassResult(quantised, True, (f"{products} matrix products in 8 bits",))
