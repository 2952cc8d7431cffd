"""Losers that can be seen in the graph a runtime makes of a file, before anything is timed.

Every rule names a case that was measured to lose on all models tried (decision record 16), with
room: what could win is timed. It is a saving of time, never a judgement of speed.
"""

from __future__ import annotations

from edgeml_converters.layers.coverage import Coverage

#: Convolutions with ranges found at run time ran at 0.06 to 0.20 times the speed of float
#: (mobilenetv2, resnet50, squeezenet, inception_v2, shufflenet): with at least this share of the
#: 8-bit products no gain elsewhere makes up for it.
CONV_INTEGER_SHARE = 0.5
#: squeezenet with signed activations: 24 of 26 convolutions stay in float behind 73
#: DequantizeLinear, 0.55 times as fast. mobilenetv2 with 15 of 52 in float was 1.27 times as fast
#: still: below this share of 8-bit products, and with as many conversions, nothing ever gained.
INT8_SHARE = 0.4
DEQUANTIZE_PER_PRODUCT = 1.5
#: shufflenet: grouped convolutions in 8 bits ran 0.44 to 0.58 times as fast as float; networks
#: with fewer of them than this share are timed.
GROUPED_SHARE = 0.4


def loser(found: Coverage, size_bytes: int, source_bytes: int) -> str:
    """Return why a candidate in 8 bits cannot win; empty when it may.

    Args:
        found: Of its file on its runtime.
        size_bytes: Of its files.
        source_bytes: Of the source's.
    """
    counts = f"{found.weighted - found.int8} of {found.weighted} products in float"
    if not found.weighted:
        return ""
    if not found.int8:
        if size_bytes < source_bytes:
            return ""  # smaller: that may be all that was asked for
        grown = (
            ""
            if size_bytes == source_bytes
            else f", and it is larger than the source by "
            f"{(size_bytes - source_bytes) / 1024:,.0f} KiB"
        )
        return f"no product is computed in 8 bits{grown}"
    if found.conv_integer and found.conv_integer >= CONV_INTEGER_SHARE * found.int8:
        return f"{found.conv_integer} ConvInteger, which is slower than float"
    few = found.int8 < INT8_SHARE * found.weighted
    if few and found.dequantize >= DEQUANTIZE_PER_PRODUCT * found.weighted:
        return f"{found.dequantize} DequantizeLinear left, {counts}"
    if found.runtime == "onnxruntime" and found.grouped >= GROUPED_SHARE * found.weighted:
        return f"{found.grouped} of {found.weighted} products are grouped convolutions in 8 bits"
    return ""
