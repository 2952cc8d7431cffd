"""What convolutions and pools share: windows over an image, and their padding."""

from __future__ import annotations

import msgspec
import onnx

from edgeml_converters.tflite.context import CHANNELS_LAST, Context, Value, unsupported


class Window(msgspec.Struct, frozen=True):
    """A 2-D window: (height, width) each; pads as (top, left, bottom, right)."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]


def same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return what TFLite's SAME pads before and after one axis."""
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def window(context: Context, node: onnx.NodeProto, value: Value, kernel: list[int]) -> Window:
    """Return a node's window, with ``auto_pad`` worked out.

    Raises:
        ModelError: It is not two-dimensional.
    """
    if len(value.shape) != 4 or len(kernel) != 2:
        raise unsupported(node, f"{len(value.shape)} axes, expected 4 (N, C, H, W)")
    found = context.graph_attributes(node)
    strides = tuple(found.get("strides", [1, 1]))
    dilations = tuple(found.get("dilations", [1, 1]))
    auto = found.get("auto_pad", b"NOTSET").decode()
    pads = tuple(found.get("pads", [0, 0, 0, 0]))
    if auto == "VALID":
        pads = (0, 0, 0, 0)
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        sides = [
            same_pads(value.shape[2 + i], (kernel[i] - 1) * dilations[i] + 1, strides[i])
            for i in range(2)
        ]
        if auto == "SAME_LOWER":
            sides = [(after, before) for before, after in sides]
        pads = (sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    return Window((kernel[0], kernel[1]), strides, dilations, pads)


def is_same(value: Value, shape: Window) -> bool:
    """Tell whether TFLite's SAME pads exactly as much, on the same sides."""
    sides = [
        same_pads(
            value.shape[2 + i],
            (shape.kernel[i] - 1) * shape.dilations[i] + 1,
            shape.strides[i],
        )
        for i in range(2)
    ]
    return shape.pads == (sides[0][0], sides[1][0], sides[0][1], sides[1][1])


def padded(
    context: Context, node: onnx.NodeProto, value: Value, shape: Window, fill: int | None = None
) -> tuple[Value, int]:
    """Return the input, channels last and padded where needed, and TFLite's kind of padding.

    TFLite's SAME is not ONNX's symmetric padding when a stride meets an even size: then an
    explicit PAD goes before a VALID window.
    """
    value = context.stored_as(value, CHANNELS_LAST)
    kinds = context.builder.schema.Padding
    top, left, bottom, right = shape.pads
    if not any(shape.pads):
        return value, kinds.VALID
    if is_same(value, shape):
        return value, kinds.SAME
    pads = [(0, 0), (top, bottom), (left, right), (0, 0)]
    return context.pad(value, pads, fill, f"{node.output[0]}_pad"), kinds.VALID
