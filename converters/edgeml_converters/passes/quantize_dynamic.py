"""QuantizeDynamic: 8-bit weights of matrix products, ranges of activations found in each run.

Only MatMul and Gemm: a dynamic convolution (ConvInteger) is 5 to 14 times slower than float.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from edgeml.errors import ModelError
from edgeml_converters.passes.base import (
    FLOAT,
    INT8,
    OPSET13,
    SIGNATURE,
    STANDARD,
    PassContext,
    PassResult,
)
from edgeml_converters.passes.quantize import prepared, quantise
from edgeml_converters.source.checks import count_ops


class QuantizeDynamic:
    """Quantise the weights of MatMul and Gemm; needs no data."""

    name = "quantize_dynamic"
    needs: frozenset[str] = frozenset({OPSET13, FLOAT})
    promises: frozenset[str] = frozenset({SIGNATURE, STANDARD, INT8})

    def __init__(self, per_channel: bool = True, reduce_range: bool = False) -> None:
        """Choose the scheme.

        Args:
            per_channel: One weight scale per output channel.
            reduce_range: Weights of 7 bits, for x86 without VNNI.
        """
        self._per_channel, self._reduce_range = per_channel, reduce_range

    @property
    def options(self) -> dict[str, Any]:
        """All that was chosen."""
        return {"per_channel": self._per_channel, "reduce_range": self._reduce_range}

    def run(self, model: onnx.ModelProto, context: PassContext) -> PassResult:
        """Apply it.

        Raises:
            ModelError: There is nothing to quantise, or the quantiser failed.
        """
        ready = prepared(model)

        def call(source: Path, product: Path, folder: Path) -> None:
            from onnxruntime import quantization as q

            q.quantize_dynamic(
                str(source),
                str(product),
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=self._per_channel,
                reduce_range=self._reduce_range,
                weight_type=q.QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )

        quantised = quantise(ready, call)
        products = count_ops(quantised).get("MatMulInteger", 0)
        if not products:
            raise ModelError("nothing to quantise: no matrix product has stored weights")
        return PassResult(quantised, True, (f"{products} matrix products in 8 bits",))
