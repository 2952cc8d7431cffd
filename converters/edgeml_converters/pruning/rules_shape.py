"""Rules of the operators that move channels without computing: Reshape, Concat, Split and so on."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx

from edgeml_converters.pruning.trace import Count, Ids, Trace, integer, integers, stored_integers
from edgeml_converters.pruning.view import Shape


def _positive(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def flatten(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Flatten: a channel becomes a block of features."""
    label, dims = trace.labels.get(node.input[0]), trace.dims(node.input[0])
    if label is None:
        return
    axis = integer(node, "axis", 1)
    if dims is None or label.axis != 1 or axis != 1 or any(d is None for d in dims[2:]):
        trace.stop(node)
        return
    block = prod(d or 1 for d in dims[2:])
    trace.carry(node.output[0], 1, np.repeat(label.ids, block), block)


def reshape(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Reshape: channels stay, become blocks, or are cut into blocks (heads) that go together."""
    label = trace.labels.get(node.input[0])
    if label is None:
        return
    given, wanted = trace.dims(node.input[0]), trace.dims(node.output[0])
    found = _regrouped(given, wanted, label.axis) if given and wanted else None
    if found is None:
        trace.stop(node)
        return
    axis, spread, cut = found
    place = _shape_entry(trace, node, axis, label.axis, spread == 1 and cut is None)
    if place is None:
        trace.stop(node)
        return
    ids: Ids = np.repeat(label.ids, spread)
    if cut is not None:
        blocks = label.ids.reshape(cut)
        ids = blocks[0, :, 0].copy()
        for one in range(cut[0]):
            for other in range(cut[2]):
                trace.atoms.unite(ids, blocks[one, :, other])
        trace.heads.update(ids.tolist())
    if place:
        trace.counts.append(Count(ids, place[0], place[1]))
    # The numbers of one head are no places in space: each means something else.
    heads = trace.heads & set(label.ids.tolist())
    trace.carry(node.output[0], axis, ids, 1 if heads else spread)


def _regrouped(
    given: Shape, wanted: Shape, axis: int
) -> tuple[int, int, tuple[int, int, int] | None] | None:
    """Find where the channels on an axis are after a Reshape.

    Returns:
        The axis; how often each channel is repeated there; when the channels are cut into blocks,
        positions before, on and after that axis, inside the channels. None when the channels are
        mixed with what lies before them.
    """
    if any(d is None for d in given[axis:]):
        return None
    channels = given[axis] or 1
    inner = prod(d or 1 for d in given[axis + 1 :])
    total = channels * inner
    rest = 1
    for place in range(len(wanted) - 1, -1, -1):
        size = wanted[place]
        if size is None or total % (rest * size):
            return None
        rest *= size
        if rest != total or (size == 1 and channels > 1):
            continue
        if size % channels == 0:
            return place, size // channels, None
        if channels % size:
            return None
        return _cut(wanted, place, channels)
    return None


def _cut(wanted: Shape, place: int, channels: int) -> tuple[int, int, tuple[int, int, int]] | None:
    """Choose which axis of the cut holds the channels from now on.

    It is the first, except for the three of queries, keys and values, which stay together.
    """
    sizes: list[int] = []
    for size in wanted[place:]:
        if prod(sizes) == channels:
            break
        sizes.append(size or 1)
    if prod(sizes) != channels:
        return None
    chosen = 1 if sizes[0] == 3 and len(sizes) > 1 else 0
    before, after = prod(sizes[:chosen]), prod(sizes[chosen + 1 :])
    return place + chosen, 1, (before, sizes[chosen], after)


def _shape_entry(
    trace: Trace, node: onnx.NodeProto, axis: int, old_axis: int, same: bool
) -> tuple[str, int] | tuple[()] | None:
    """Find the stored number that gives an axis of a Reshape its size.

    Returns:
        (tensor, index); empty when the number need not change; None when it cannot be found.
    """
    name = node.input[1]
    if name in trace.view.weights:
        if trace.view.own(name) is None:
            return None
        place = (name, axis)
    else:
        found = _piece(trace, name, axis)
        if found is None:
            return None
        place = found
    value = int(np.atleast_1d(trace.view.weights[place[0]])[place[1]])
    if value == -1:
        return ()
    if value == 0 and not integer(node, "allowzero", 0):
        return () if same and axis == old_axis else None
    return place


def _piece(trace: Trace, name: str, axis: int) -> tuple[str, int] | None:
    """Find the stored piece of a shape that a Concat puts together."""
    maker = trace.view.makers.get(name)
    if maker is None:
        return None
    node = trace.view.model.graph.node[maker]
    if node.op_type != "Concat" or len(trace.view.users.get(name, ())) != 1:
        return None
    start = 0
    for part in node.input:
        dims = trace.dims(part)
        if not dims or dims[0] is None:
            return None
        if start <= axis < start + dims[0]:
            return (part, axis - start) if trace.view.own(part) is not None else None
        start += dims[0]
    return None


def transpose(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Transpose: the axis moves."""
    label, dims = trace.labels.get(node.input[0]), trace.dims(node.input[0])
    if label is None:
        return
    if dims is None:
        trace.stop(node)
        return
    order = integers(node, "perm") or list(range(len(dims)))[::-1]
    trace.carry(node.output[0], order.index(label.axis), label.ids)


def squeeze(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Squeeze: axes of size 1 go."""
    label, dims = trace.labels.get(node.input[0]), trace.dims(node.input[0])
    if label is None:
        return
    axes = stored_integers(trace, node, 1)
    if dims is None or axes is None:
        trace.stop(node)
        return
    gone = {_positive(a, len(dims)) for a in axes}
    if label.axis in gone:
        trace.stop(node)
        return
    trace.carry(node.output[0], label.axis - sum(a < label.axis for a in gone), label.ids)


def unsqueeze(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Unsqueeze: axes of size 1 come in."""
    label, dims = trace.labels.get(node.input[0]), trace.dims(node.input[0])
    if label is None:
        return
    axes = stored_integers(trace, node, 1)
    if dims is None or axes is None:
        trace.stop(node)
        return
    rank = len(dims) + len(axes)
    fresh = {_positive(a, rank) for a in axes}
    old = [a for a in range(rank) if a not in fresh]
    trace.carry(node.output[0], old[label.axis], label.ids)


def concat(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Concat: along the channels they follow one another; along another axis they are united."""
    labels = [trace.labels.get(name) for name in node.input]
    known = [label for label in labels if label is not None]
    dims = [trace.dims(name) for name in node.input]
    if not known:
        return
    axis = known[0].axis
    if any(label.axis != axis for label in known) or any(d is None for d in dims):
        trace.stop(node)
        return
    along = _positive(integer(node, "axis", 0), len(dims[0] or ()))
    sizes = [(d or ())[axis] for d in dims]
    if any(size is None for size in sizes) or (along != axis and len(known) < len(labels)):
        trace.stop(node)
        return
    parts = [
        label.ids if label is not None else np.zeros(size or 0, np.int64)
        for label, size in zip(labels, sizes, strict=True)
    ]
    if along == axis:
        trace.carry(node.output[0], axis, np.concatenate(parts))
        return
    for part in parts[1:]:
        trace.atoms.unite(parts[0], part)
    trace.carry(node.output[0], axis, parts[0])


def split(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Split: along the channels each part gets its own; along another axis all get them."""
    label, dims = trace.labels.get(node.input[0]), trace.dims(node.input[0])
    if label is None:
        return
    sizes = stored_integers(trace, node, 1)
    if dims is None or sizes is None or trace.view.own(node.input[1]) is None:
        trace.stop(node)
        return
    along = _positive(integer(node, "axis", 0), len(dims))
    ends = np.cumsum([0, *sizes])
    for number, name in enumerate(node.output):
        ids = label.ids
        if along == label.axis:
            ids = ids[ends[number] : ends[number + 1]]
            trace.counts.append(Count(ids, node.input[1], number))
        trace.carry(name, label.axis, ids)


def slice_(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Slice: along the channels one range is kept, from a stored start to a stored end."""
    label, dims = trace.labels.get(node.input[0]), trace.dims(node.input[0])
    if label is None:
        return
    starts, ends, axes, steps = (stored_integers(trace, node, i) for i in (1, 2, 3, 4))
    if dims is None or starts is None or ends is None:
        trace.stop(node)
        return
    where = [_positive(a, len(dims)) for a in (axes or range(len(starts)))]
    if (axes is None and len(node.input) > 3 and node.input[3]) or label.axis not in where:
        if label.axis not in where and axes is not None:
            trace.carry(node.output[0], label.axis, label.ids)
        else:
            trace.stop(node)
        return
    place, size = where.index(label.axis), len(label.ids)
    own = all(trace.view.own(node.input[i]) is not None for i in (1, 2))
    if not own or (len(node.input) > 4 and node.input[4] and (steps or [0] * size)[place] != 1):
        trace.stop(node)
        return
    low = min(max(_positive(starts[place], size), 0), size)
    high = min(max(_positive(ends[place], size), 0), size)
    if low > 0 or starts[place] < 0:
        trace.counts.append(Count(label.ids[:low], node.input[1], place))
    trace.counts.append(Count(label.ids[:high], node.input[2], place))
    trace.carry(node.output[0], label.axis, label.ids[low:high])


def gather(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Gather with stored indices along another axis than the channels'."""
    label, dims = trace.labels.get(node.input[0]), trace.dims(node.input[0])
    if label is None:
        trace.pin(node.input[1])
        return
    indices = trace.view.weights.get(node.input[1])
    if dims is None or indices is None:
        trace.stop(node)
        return
    along = _positive(integer(node, "axis", 0), len(dims))
    if along == label.axis:
        trace.stop(node)
        return
    shift = indices.ndim - 1 if along < label.axis else 0
    trace.carry(node.output[0], label.axis + shift, label.ids)


def pad(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Pad: nothing may be added to the channels."""
    label, dims = trace.labels.get(node.input[0]), trace.dims(node.input[0])
    if label is None:
        return
    amounts = stored_integers(trace, node, 1)
    some_axes = len(node.input) > 3 and node.input[3]
    if dims is None or amounts is None or some_axes or len(amounts) != 2 * len(dims):
        trace.stop(node)
        return
    if amounts[label.axis] or amounts[label.axis + len(dims)]:
        trace.stop(node)
        return
    trace.carry(node.output[0], label.axis, label.ids)


def resize(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Resize by stored factors that leave the channels alone."""
    label = trace.labels.get(node.input[0])
    if label is None:
        return
    name = node.input[2] if len(node.input) > 2 else ""
    scales = trace.view.weights.get(name)
    if scales is None or scales.size <= label.axis or scales[label.axis] != 1.0:
        trace.stop(node)
        return
    trace.carry(node.output[0], label.axis, label.ids)


def shape(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Shape: harmless as long as only other axes than the channels' are read from it."""
    label = trace.labels.get(node.input[0])
    if label is None:
        return
    rank = len(trace.dims(node.input[0]) or ())
    first = _positive(integer(node, "start", 0), rank)
    last = min(_positive(integer(node, "end", rank), rank), rank)
    if not first <= label.axis < last:
        return
    asked = label.axis - first
    readers = trace.view.users.get(node.output[0], ())
    kept = node.output[0] in trace.view.outputs | trace.view.captured
    if kept or any(_reads(trace, trace.view.model.graph.node[i], asked, last - first)
                   for i, _ in readers):  # fmt: skip
        trace.stop(node)


def _reads(trace: Trace, node: onnx.NodeProto, entry: int, rank: int) -> bool:
    """Tell whether a node may read one entry of a shape."""
    if node.op_type == "Gather":
        indices = stored_integers(trace, node, 1)
        return indices is None or entry in [_positive(i, rank) for i in indices]
    if node.op_type == "Slice":
        starts, ends = stored_integers(trace, node, 1), stored_integers(trace, node, 2)
        steps = stored_integers(trace, node, 4)
        if starts is None or ends is None or (steps is not None and steps != [1]):
            return True
        return _positive(starts[0], rank) <= entry < _positive(ends[0], rank)
    return True
