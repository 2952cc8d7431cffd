"""Operators that move values and do not change them."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx

from edgeml_converters.tflite.context import Context, Value, same_order, unsupported


def transpose(context: Context, node: onnx.NodeProto) -> None:
    """Relabel the axes: nothing is written until somebody needs another order."""
    value = context.value(node, 0)
    rank = len(value.shape)
    perm = list(context.graph_attributes(node).get("perm", range(rank)[::-1]))
    moved = msgspec.structs.replace(
        value,
        shape=tuple(value.shape[axis] for axis in perm),
        layout=tuple(perm.index(axis) for axis in value.layout),
    )
    context.alias(node, moved)


def identity(context: Context, node: onnx.NodeProto) -> None:
    """Write nothing."""
    context.alias(node, context.value(node, 0))


def reshape(context: Context, node: onnx.NodeProto) -> None:
    """Write RESHAPE for Reshape, Flatten, Squeeze and Unsqueeze.

    An image that is stored channels-last and flattened for a dense layer stays as it is: the
    dense layer moves its weights instead. Else the blocks of axes that a reshape splits or joins
    keep the order in which they are stored.
    """
    value = context.value(node, 0)
    shape = context.graph.shape(node.output[0])
    straight = tuple(range(len(value.shape)))
    order = None
    layout = tuple(range(len(shape)))
    flat = len(shape) == 2 and shape[0] == 1 and value.layout != straight
    if flat and _only_dense_follows(context, node):
        numbers = np.arange(int(np.prod(value.shape))).reshape(value.shape)
        order = numbers.transpose(value.layout).ravel()
        if np.array_equal(order, numbers.ravel()):
            order = None
    else:
        wanted, layout = _kept_layout(value, shape)
        if not same_order(value.stored, tuple(value.layout.index(axis) for axis in wanted)):
            value = context.stored_as(value, wanted)
    output = context.emit(node, layout, order)
    context.reshape(value.index, output.index, output.stored, node.output[0])


def _kept_layout(value: Value, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the layouts before and after a reshape that move as little as possible.

    A reshape only splits and joins neighbouring axes. Axes that are split or joined must be stored
    side by side and in order; these blocks themselves stay in the order in which they are stored.
    So shuffled channels (split, swap, join) cost one transpose, and an image stays channels-last.

    Args:
        value: What is reshaped.
        shape: The shape that it gets, in ONNX's order of axes.
    """

    def place(axes: list[int]) -> int:
        places = [value.layout.index(a) for a in axes if value.shape[a] != 1]
        return min(places or [value.layout.index(axes[0])])

    blocks = sorted(_blocks(value.shape, shape), key=lambda block: place(block[0]))
    before = tuple(axis for block in blocks for axis in block[0])
    return before, tuple(axis for block in blocks for axis in block[1])


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Return the smallest runs of old and new axes that hold the same number of values."""
    if 0 in old or not old or not new:
        return [(list(range(len(old))), list(range(len(new))))]
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        block, left, right = ([i], [j]), old[i], new[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                block[0].append(i)
                left, i = left * old[i], i + 1
            else:
                block[1].append(j)
                right, j = right * new[j], j + 1
        blocks.append(block)
    blocks[-1][0].extend(range(i, len(old)))
    blocks[-1][1].extend(range(j, len(new)))
    return blocks


def _only_dense_follows(context: Context, node: onnx.NodeProto) -> bool:
    """Tell whether every user of a node's quantised output is a dense layer."""
    _, parameters = context.graph.after(node)
    users = [
        user
        for back in context.graph.consumers.get(parameters.name, [])
        for user in context.graph.consumers.get(back.output[0], [])
    ]
    outputs = {o.name for o in context.graph.graph.output}
    backs = context.graph.consumers.get(parameters.name, [])
    if any(back.output[0] in outputs for back in backs):
        return False
    return bool(users) and all(user.op_type in ("Gemm", "MatMul") for user in users)


def concat(context: Context, node: onnx.NodeProto) -> None:
    """Write CONCATENATION (all inputs and the output share one scale)."""
    values = [context.value(node, i) for i in range(len(node.input))]
    layout = values[0].layout
    values = [context.stored_as(value, layout) for value in values]
    axis = int(context.graph_attributes(node)["axis"]) % len(layout)
    output = context.emit(node, layout)
    context.builder.operator(
        "CONCATENATION",
        [value.index for value in values],
        [output.index],
        "ConcatenationOptions",
        axis=layout.index(axis),
    )


def pad(context: Context, node: onnx.NodeProto) -> None:
    """Write PAD with zeros."""
    value = context.value(node, 0)
    mode = context.graph_attributes(node).get("mode", b"constant").decode()
    fill = context.static(node, 2)
    amounts = context.static(node, 1)
    if mode != "constant" or (fill is not None and float(np.asarray(fill)) != 0):
        raise unsupported(node, f"mode '{mode}' or a filling other than 0")
    if amounts is None or context.static(node, 3) is not None or min(amounts) < 0:
        raise unsupported(node, "pads that are negative, or given with axes")
    rank = len(value.shape)
    sides = [(int(amounts[a]), int(amounts[a + rank])) for a in value.layout]
    context.alias(node, context.pad(value, sides, None, node.output[0]))
