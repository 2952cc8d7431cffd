"""The nodes in front of a model: from what a camera or a sensor gives to what it was trained with.

An image goes through these steps in channels-first order, in float32: to float, resize, crop,
colours, ``(x * scale - mean) / std``, order of axes, type. Factor, mean and deviation are one
multiplication and one addition.

Resizing is that of ONNX ``Resize`` with half-pixel coordinates and without antialiasing: OpenCV's
``INTER_LINEAR`` and ``INTER_CUBIC``, PyTorch's ``interpolate(align_corners=False)``. Pillow and
torchvision smooth when they make an image smaller, and differ.
"""

from __future__ import annotations

import numpy as np
import onnx

from edgeml.errors import ModelError
from edgeml_converters.processing.graph import (
    FLOAT,
    Dims,
    Editor,
    dims_of,
    known,
    model_input,
    type_number,
    value_info,
)
from edgeml_converters.processing.spec import Preprocess

#: Weights of red, green and blue in a grey value (ITU-R BT.601, section 2.5.1).
_GREY = (0.299, 0.587, 0.114)
#: Coefficient of the cubic of OpenCV and PyTorch.
_CUBIC = -0.75


def build(model: onnx.ModelProto, spec: Preprocess) -> onnx.ModelProto:
    """Return the model with the nodes of a specification in front of one input.

    Args:
        model: The model; not changed. Operator set 13 or newer.
        spec: What is to be done.

    Raises:
        ModelError: The specification does not fit the model.
    """
    value = model_input(model, spec.input)
    kind = value.type.tensor_type.elem_type
    if kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
        raise ModelError(
            f"input '{value.name}' is no float, so nothing can be normalised for it",
            "leave --preprocess out",
        )
    if not known(value):
        raise ModelError(
            f"input '{value.name}' has no known number of axes", "fix its shape by --shape"
        )
    dims = dims_of(value)
    editor = Editor(model)
    inner = editor.take_name(value.name, "prepared")
    if len(dims) == 4:
        outer, last = _image(editor, value.name, dims, spec)
    else:
        if spec.image:
            raise ModelError(
                f"input '{value.name}' has {len(dims)} axes, so it is no image (4 axes), and "
                "cannot be resized, cropped or turned",
                "only dtype, scale, mean and std can be given",
            )
        outer = dims
        last = _normalised(editor, _cast(editor, value.name, FLOAT), spec, dims, len(dims) - 1)
    if kind != FLOAT:
        last = _cast(editor, last, kind)
    editor.rename(editor.add("Identity", [last], "given"), inner)
    editor.put_before()
    for index, one in enumerate(editor.graph.input):
        if one.name == value.name:
            editor.graph.input[index].CopyFrom(
                value_info(value.name, type_number(spec.dtype), outer)
            )
    del editor.graph.value_info[:]
    return editor.model


def _cast(editor: Editor, name: str, kind: int) -> str:
    return editor.add("Cast", [name], "cast", to=kind)


def _image(editor: Editor, name: str, dims: Dims, spec: Preprocess) -> tuple[Dims, str]:
    """Add the steps of an image; return the axes that come in, and the last tensor."""
    layout = spec.model_layout or _layout(name, dims)
    batch, *rest = dims
    channels, height, width = rest if layout == "chw" else (rest[2], rest[0], rest[1])
    if channels not in (1, 3):
        raise ModelError(
            f"input '{name}' {list(dims)} has {channels} channels in order {layout}, expected an "
            "image with 1 or 3",
            "give model_layout=chw or model_layout=hwc",
        )
    given = 1 if spec.color == "gray" else 3
    came = _incoming(spec, height, width)
    outer: Dims = (batch, *came, given) if spec.layout == "hwc" else (batch, given, *came)
    last = name
    if spec.layout == "hwc":
        last = editor.add("Transpose", [last], "chw", perm=[0, 3, 1, 2])
    last = _cast(editor, last, FLOAT)
    size: Dims = came
    if spec.resize:
        last, size = _resized(editor, last, batch, given, size, spec)
    if spec.crop:
        last, size = _cropped(editor, last, size, spec)
    _check_size(name, size, (height, width))
    last = _coloured(editor, last, spec, given, channels)
    last = _normalised(editor, last, spec, (batch, channels, *size), 1)
    if layout == "hwc":
        last = editor.add("Transpose", [last], "hwc", perm=[0, 2, 3, 1])
    return outer, last


def _layout(name: str, dims: Dims) -> str:
    """Return the order of a model's axes by where its channels can be."""
    first, last = dims[1] in (1, 3), dims[3] in (1, 3)
    if first == last:
        raise ModelError(
            f"input '{name}' {list(dims)} does not tell which axis holds the channels",
            "give model_layout=chw or model_layout=hwc",
        )
    return "chw" if first else "hwc"


def _incoming(spec: Preprocess, height: int | str | None, width: int | str | None) -> Dims:
    """Return the size of what comes in."""
    if spec.size:
        return spec.size
    if spec.resize:
        return ("height", "width")
    if spec.crop:
        raise ModelError(
            "crop is given without the size of what comes in", "give size=HEIGHTxWIDTH"
        )
    return (height, width)


def _check_size(name: str, got: Dims, want: Dims) -> None:
    for a, b in zip(got, want, strict=True):
        if isinstance(a, int) and isinstance(b, int) and a != b:
            raise ModelError(
                f"input '{name}' takes images of {want[0]}x{want[1]}, preprocessing gives "
                f"{got[0]}x{got[1]}",
                f"give resize={want[0]}x{want[1]}",
            )


def _resized(
    editor: Editor, name: str, batch: int | str | None, channels: int, size: Dims, spec: Preprocess
) -> tuple[str, Dims]:
    """Add the resizing; return the tensor and its size."""
    high, wide = spec.resize if len(spec.resize) == 2 else spec.resize * 2
    target = (high, wide)
    if spec.fit != "stretch":
        h, w = spec.size
        ratio = high / min(h, w) if spec.fit == "shorter" else min(high / h, wide / w)
        target = (max(1, round(h * ratio)), max(1, round(w * ratio)))
    if size != target:
        name = _resize(editor, name, batch, channels, target, spec.interpolation)
    if spec.fit != "letterbox" or target == (high, wide):
        return name, target
    top, left = (high - target[0]) // 2, (wide - target[1]) // 2
    ends = [0, 0, top, left, 0, 0, high - target[0] - top, wide - target[1] - left]
    pads = editor.constant(ends, "int64", "pads")
    fill = editor.constant(np.float32(spec.pad), "float32", "fill")
    return editor.add("Pad", [name, pads, fill], "letterbox"), (high, wide)


def _resize(
    editor: Editor, name: str, batch: int | str | None, channels: int,
    target: tuple[int, int], mode: str,
) -> str:  # fmt: skip
    """Add one Resize to a size, for any batch."""
    if isinstance(batch, int):
        sizes = editor.constant([batch, channels, *target], "int64", "sizes")
    else:
        shape = editor.add("Shape", [name], "shape")
        zero, one = (editor.constant([n], "int64", "axis") for n in (0, 1))
        head = editor.add("Slice", [shape, zero, one, zero], "batch")
        tail = editor.constant([channels, *target], "int64", "sizes")
        sizes = editor.add("Concat", [head, tail], "sizes", axis=0)
    more: dict[str, object] = {"cubic_coeff_a": _CUBIC} if mode == "cubic" else {}
    if mode == "nearest":
        more["nearest_mode"] = "round_prefer_floor"
    return editor.add(
        "Resize", [name, "", "", sizes], "resized", mode=mode,
        coordinate_transformation_mode="half_pixel", **more,
    )  # fmt: skip


def _cropped(editor: Editor, name: str, size: Dims, spec: Preprocess) -> tuple[str, Dims]:
    """Add the crop of the middle."""
    high, wide = spec.crop if len(spec.crop) == 2 else spec.crop * 2
    h, w = size
    if not isinstance(h, int) or not isinstance(w, int) or h < high or w < wide:
        raise ModelError(
            f"an image of {h}x{w} cannot be cropped to {high}x{wide}", "give a larger resize"
        )
    top, left = (h - high) // 2, (w - wide) // 2
    starts = editor.constant([top, left], "int64", "starts")
    ends = editor.constant([top + high, left + wide], "int64", "ends")
    axes = editor.constant([2, 3], "int64", "axes")
    return editor.add("Slice", [name, starts, ends, axes], "cropped"), (high, wide)


def _coloured(editor: Editor, name: str, spec: Preprocess, given: int, wanted: int) -> str:
    """Add what turns the colours that come in into those of the model."""
    model = spec.model_color or ("gray" if wanted == 1 else "rgb")
    if (model == "gray") != (wanted == 1):
        raise ModelError(f"the model takes {wanted} channels, model_color is '{model}'")
    if given == wanted == 1 or spec.color == model:
        return name
    if given == 1:
        repeats = editor.constant([1, 3, 1, 1], "int64", "repeats")
        return editor.add("Tile", [name, repeats], "colours")
    if wanted == 1:
        weights = _GREY if spec.color == "rgb" else _GREY[::-1]
        kernel = editor.constant(np.reshape(weights, (1, 3, 1, 1)), "float32", "grey")
        return editor.add("Conv", [name, kernel], "grey", kernel_shape=[1, 1])
    order = editor.constant([2, 1, 0], "int64", "order")
    return editor.add("Gather", [name, order], "colours", axis=1)


def _normalised(editor: Editor, name: str, spec: Preprocess, dims: Dims, axis: int) -> str:
    """Add ``(x * scale - mean) / std`` as one factor and one addition."""
    count = dims[axis] if dims else 1
    for key in ("mean", "std"):
        numbers = getattr(spec, key)
        if len(numbers) not in (0, 1, count):
            raise ModelError(
                f"{key} holds {len(numbers)} numbers, but the model has {count} channels",
                f"give one number, or one for each: {key}=0.5",
            )
    std = np.asarray(spec.std or (1.0,), np.float64)
    mean = np.asarray(spec.mean or (0.0,), np.float64)
    shape = [1] * max(len(dims), 1)

    def store(values: np.ndarray, wish: str) -> str:
        if values.size > 1:
            shape[axis] = values.size
        return editor.constant(values.reshape(shape if dims else ()), "float32", wish)

    factor, offset = spec.scale / std, -mean / std
    if (factor != 1).any():
        name = editor.add("Mul", [name, store(factor, "factor")], "scaled")
    shape = [1] * max(len(dims), 1)
    if offset.any():
        name = editor.add("Add", [name, store(offset, "offset")], "normalised")
    return name
