"""The nodes behind a model: from raw outputs to what a user wants of them.

``activation`` replaces an output by ``probabilities`` (softmax) or ``scores`` (sigmoid); ``top``
by ``classes`` and ``scores``, best first; ``argmax`` by ``class``. ``nms`` replaces boxes and
scores by ``boxes`` (two corners), ``scores`` and ``classes`` of a fixed number of objects, best
first; what is missing has class -1 and score 0. It works on one image per run.
"""

from __future__ import annotations

import numpy as np
import onnx

from edgeml.errors import ModelError
from edgeml_converters.passes.shapes import real_inputs
from edgeml_converters.processing.graph import (
    FLOAT,
    INT64,
    Dims,
    Editor,
    dims_of,
    find,
    known,
    value_info,
)
from edgeml_converters.processing.spec import Nms, Postprocess

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
#: Name of the new output by activation.
_NAMES = {"softmax": "probabilities", "sigmoid": "scores"}


def build(model: onnx.ModelProto, spec: Postprocess) -> onnx.ModelProto:
    """Return the model with the nodes of a specification behind its outputs.

    Args:
        model: The model; not changed. Operator set 13 or newer.
        spec: What is to be done.

    Raises:
        ModelError: The specification does not fit the model.
    """
    editor = Editor(model)
    if spec.nms is not None:
        _nms(editor, spec, spec.nms)
    else:
        _classes(editor, spec)
    editor.put_behind()
    del editor.graph.value_info[:]
    return editor.model


def class_count(model: onnx.ModelProto, spec: Postprocess) -> int | None:
    """Return how many classes an output tells apart; None when its shape does not say.

    Raises:
        ModelError: There is no such output, or no such axis.
    """
    editor = Editor(model)
    if spec.nms is not None:
        _, scores, skip = _raw(editor, spec, spec.nms)[:3]
        return scores - skip if scores is not None else None
    value = find(editor.graph.output, spec.output, "output")
    dims = _dims(editor, value)
    size = dims[_axis(value.name, dims, spec.axis)]
    return size if isinstance(size, int) else None


def _dims(editor: Editor, value: onnx.ValueInfoProto) -> Dims:
    """Return the axes of an output, as far as they are stated or follow.

    Raises:
        ModelError: It is no float, or the number of its axes is unknown.
    """
    if value.type.tensor_type.elem_type not in _FLOATS:
        raise ModelError(f"output '{value.name}' is no float: there are no scores in it")
    if value.type.tensor_type.HasField("shape"):
        return dims_of(value)
    raise ModelError(
        f"output '{value.name}' has no known number of axes", "fix the shapes by --shape"
    )


def _axis(name: str, dims: Dims, axis: int) -> int:
    if not -len(dims) <= axis < len(dims) or axis % len(dims) == 0:
        raise ModelError(
            f"output '{name}' {list(dims)} has no classes on axis {axis}; axis 0 is the batch",
            f"give an axis from 1 to {len(dims) - 1}",
        )
    return axis % len(dims)


def _classes(editor: Editor, spec: Postprocess) -> None:
    """Add activation and choice of classes."""
    value = find(editor.graph.output, spec.output, "output")
    dims = _dims(editor, value)
    axis = _axis(value.name, dims, spec.axis)
    size = dims[axis]
    if isinstance(size, int) and size < max(spec.top, 1):
        raise ModelError(f"output '{value.name}' has {size} classes, top is {spec.top}")
    last = _float(editor, value.name, value)
    last = _activated(editor, last, spec, axis)
    left = dims[:axis] + dims[axis + 1 :]
    if spec.top:
        best = (*dims[:axis], spec.top, *dims[axis + 1 :])
        k = editor.constant([spec.top], "int64", "k")
        scores, classes = editor.many("TopK", [last, k], ("scores", "classes"), axis=axis)
        made = [(classes, "classes", INT64, best), (scores, "scores", FLOAT, best)]
    elif spec.argmax:
        found = editor.add("ArgMax", [last], "class", axis=axis, keepdims=0)
        made = [(found, "class", INT64, left)]
    elif spec.activation != "none":
        made = [(last, _NAMES[spec.activation], FLOAT, dims)]
    else:
        return
    _give(editor, [value.name], made)


def _float(editor: Editor, name: str, value: onnx.ValueInfoProto) -> str:
    if value.type.tensor_type.elem_type == FLOAT:
        return name
    return editor.add("Cast", [name], "float", to=FLOAT)


def _activated(editor: Editor, name: str, spec: Postprocess, axis: int) -> str:
    if spec.activation == "softmax":
        return editor.add("Softmax", [name], "softmax", axis=axis)
    if spec.activation == "sigmoid":
        return editor.add("Sigmoid", [name], "sigmoid")
    return name


def _give(editor: Editor, old: list[str], made: list[tuple[str, str, int, Dims]]) -> None:
    """Replace outputs by new ones, at the place of the first that goes.

    Args:
        editor: Of the model.
        old: Names of the outputs that go.
        made: Tensor, name that it shall have, type and axes of each that comes.
    """
    outputs = list(editor.graph.output)
    place = min(i for i, one in enumerate(outputs) if one.name in old)
    kept = [one for one in outputs if one.name not in old]
    fresh = []
    for tensor, name, kind, dims in made:
        if any(one.name == name for one in kept):
            raise ModelError(f"the model has another output '{name}' already, which stays")
        if name in old:
            editor.move(name)
        elif editor.has(name):
            raise ModelError(f"the model has an inner tensor or input '{name}' already")
        editor.rename(tensor, name)
        fresh.append(value_info(name, kind, dims))
    kept[place:place] = fresh
    copies = []
    for one in kept:
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(one)
        copies.append(copy)
    del editor.graph.output[:]
    editor.graph.output.extend(copies)


def _raw(
    editor: Editor, spec: Postprocess, nms: Nms
) -> tuple[list[onnx.ValueInfoProto], int | None, int, bool, bool]:
    """Return the outputs that are meant, and how they lie.

    Returns:
        The outputs (boxes and scores, or the one that holds both), the number of scores of a box,
        how many of them are background, whether boxes have their coordinates on axis 1, and
        whether scores have the classes there.

    Raises:
        ModelError: They are no boxes and scores.
    """
    names = [nms.boxes, nms.scores] if nms.boxes else [spec.output]
    values = [find(editor.graph.output, name, "output") for name in names]
    shapes = [_dims(editor, value) for value in values]
    for value, dims in zip(values, shapes, strict=True):
        if len(dims) != 3 or (isinstance(dims[0], int) and dims[0] != 1):
            raise ModelError(
                f"output '{value.name}' {list(dims)} has no boxes: expected [1, boxes, numbers] "
                "or [1, numbers, boxes]",
                "fix the batch to 1 by --shape, or name the outputs by boxes=NAME scores=NAME",
            )
    if len(values) == 1:
        first, second = shapes[0][1:]
        if not isinstance(first, int) or not isinstance(second, int) or min(first, second) < 5:
            raise ModelError(
                f"output '{values[0].name}' {list(shapes[0])} does not hold boxes and scores: "
                "expected four numbers of the box and one score or more for each"
            )
        turned = first < second
        return values, min(first, second) - 4, nms.skip, turned, turned
    boxes, scores = shapes
    turned = boxes[1] == 4 and boxes[2] != 4
    count = boxes[2] if turned else boxes[1]
    if not turned and boxes[2] != 4:
        raise ModelError(
            f"output '{values[0].name}' {list(boxes)} holds no boxes of four numbers",
            "swap boxes and scores?",
        )
    flat = isinstance(count, int) and scores[2] == count and scores[1] != count
    classes = scores[1] if flat else scores[2]
    return values, classes if isinstance(classes, int) else None, nms.skip, turned, flat


def _nms(editor: Editor, spec: Postprocess, nms: Nms) -> None:
    """Add the suppression, with a fixed number of results."""
    for value in real_inputs(editor.model):
        batch = dims_of(value)[:1] if known(value) else ()
        if batch and batch[0] != 1:
            raise ModelError(
                f"input '{value.name}' takes a batch of {batch[0] or 'any size'}, non-maximum "
                "suppression works on one image",
                "apply fix_batch first",
            )
    values, count, skip, boxes_turned, scores_turned = _raw(editor, spec, nms)
    if count is not None and count <= skip:
        raise ModelError(f"skip is {skip}, but there are only {count} scores of a box")
    floats = [_float(editor, value.name, value) for value in values]
    if len(floats) == 1:
        boxes, scores = _split(editor, floats[0], 1 if boxes_turned else 2)
    else:
        boxes, scores = floats
    if boxes_turned:
        boxes = editor.add("Transpose", [boxes], "boxes", perm=[0, 2, 1])
    if not scores_turned:
        scores = editor.add("Transpose", [scores], "scores", perm=[0, 2, 1])
    scores = _activated(editor, scores, spec, 1)
    if skip:
        scores = _slice(editor, scores, skip, np.iinfo(np.int64).max, 1)
    if nms.format == "center":
        boxes = _corners(editor, boxes)
    _give(editor, [value.name for value in values], _chosen(editor, boxes, scores, nms))


def _slice(editor: Editor, name: str, start: int, stop: int, axis: int) -> str:
    ends = [editor.constant([n], "int64", "end") for n in (start, stop, axis)]
    return editor.add("Slice", [name, *ends], "part")


def _split(editor: Editor, name: str, axis: int) -> tuple[str, str]:
    """Return the four numbers of the boxes and the scores of one tensor."""
    most = int(np.iinfo(np.int64).max)
    return _slice(editor, name, 0, 4, axis), _slice(editor, name, 4, most, axis)


def _corners(editor: Editor, boxes: str) -> str:
    """Return boxes [1, n, 4] of middle and size as two corners."""
    middle, size = _slice(editor, boxes, 0, 2, 2), _slice(editor, boxes, 2, 4, 2)
    half = editor.add("Mul", [size, editor.constant(0.5, "float32", "half")], "half")
    ends = [editor.add(op, [middle, half], "corner") for op in ("Sub", "Add")]
    return editor.add("Concat", ends, "corners", axis=2)


def _chosen(editor: Editor, boxes: str, scores: str, nms: Nms) -> list[tuple[str, str, int, Dims]]:
    """Add NonMaxSuppression of boxes [1, n, 4] and scores [1, classes, n], filled to ``max``."""
    number = nms.max
    most = editor.constant([number], "int64", "max")
    iou = editor.constant([nms.iou], "float32", "iou")
    least = editor.constant([nms.score], "float32", "least")
    chosen = editor.add("NonMaxSuppression", [boxes, scores, most, iou, least], "chosen")
    classes = _slice(editor, chosen, 1, 2, 1)
    index = _slice(editor, chosen, 2, 3, 1)
    found = editor.add("GatherND", [scores, chosen], "found")
    zero = editor.constant([0], "int64", "zero")
    flat = editor.add("Squeeze", [boxes, zero], "flat")
    picked = editor.add("GatherND", [flat, index], "picked")
    # Behind what was found come as many empty places, so there are always enough to choose from.
    none = editor.constant(np.full(number, -np.inf), "float32", "none")
    found = editor.add("Concat", [found, none], "found", axis=0)
    blank = editor.constant(np.zeros((number, 4)), "float32", "blank")
    picked = editor.add("Concat", [picked, blank], "picked", axis=0)
    unknown = editor.constant(np.full((number, 1), -1), "int64", "unknown")
    classes = editor.add("Concat", [classes, unknown], "classes", axis=0)
    best, order = editor.many("TopK", [found, most], ("best", "order"), axis=0)
    floor = editor.constant(0.0, "float32", "floor")
    empty = editor.constant(-np.inf, "float32", "empty")
    best = editor.add(
        "Where", [editor.add("Equal", [best, empty], "is_empty"), floor, best], "best"
    )
    picked = editor.add("Gather", [picked, order], "picked", axis=0)
    classes = editor.add("Gather", [classes, order], "classes", axis=0)
    one = editor.constant([1], "int64", "one")
    classes = editor.add("Squeeze", [classes, one], "classes")
    made = (("boxes", picked, FLOAT, (4,)), ("scores", best, FLOAT, ()),
            ("classes", classes, INT64, ()))  # fmt: skip
    return [
        (editor.add("Unsqueeze", [tensor, zero], name), name, kind, (1, number, *rest))
        for name, tensor, kind, rest in made
    ]
