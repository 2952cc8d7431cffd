"""Rules of the operators that compute one value from the values at the same position."""

from __future__ import annotations

import onnx

from edgeml_converters.pruning.trace import Label, Trace, integer, integers, stored_integers


def unary(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """One tensor in, the same shape out; further inputs are single numbers."""
    label = trace.labels.get(node.input[0])
    for name in node.input[1:]:
        dims = trace.dims(name) if name else ()
        if name and (dims is None or any(d != 1 for d in dims)):
            trace.stop(node)
            return
    if len([name for name in node.output if name]) > 1:
        trace.stop(node)
    elif label is not None:
        trace.carry(node.output[0], label.axis, label.ids, label.block)


def pool(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Pooling: each channel by itself."""
    label = trace.labels.get(node.input[0])
    if label is None:
        return
    if label.axis != 1 or len([name for name in node.output if name]) > 1:
        trace.stop(node)
        return
    trace.carry(node.output[0], 1, label.ids)


def reduce(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """A reduction over other axes than the channels'."""
    label, dims = trace.labels.get(node.input[0]), trace.dims(node.input[0])
    if label is None:
        return
    axes = integers(node, "axes") or stored_integers(trace, node, 1)
    if dims is None or not axes:
        trace.stop(node)
        return
    gone = {a + len(dims) if a < 0 else a for a in axes}
    if label.axis in gone:
        trace.stop(node)
        return
    shift = 0 if integer(node, "keepdims", 1) else sum(a < label.axis for a in gone)
    trace.carry(node.output[0], label.axis - shift, label.ids)


def broadcast(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Several tensors, broadcast: channels that meet are united, stored tensors follow them."""
    labels = {name: trace.labels[name] for name in node.input if name in trace.labels}
    if not labels:
        return
    shapes = {name: trace.dims(name) for name in node.input}
    if any(dims is None for dims in shapes.values()):
        trace.stop(node)
        return
    ranks = {name: len(dims or ()) for name, dims in shapes.items()}
    rank = max(ranks.values())
    axes = {label.axis + rank - ranks[name] for name, label in labels.items()}
    lead = next(iter(labels.values()))
    if len(axes) > 1 or any(len(label.ids) != len(lead.ids) for label in labels.values()):
        trace.stop(node)
        return
    axis = axes.pop()
    if not _others_fit(trace, node, labels, axis - rank, len(lead.ids)):
        trace.stop(node)
        return
    for name in node.input:
        if name in labels:
            trace.atoms.unite(lead.ids, labels[name].ids)
        elif ranks[name] >= rank - axis and (shapes[name] or ())[axis - rank] != 1:
            trace.site(name, ranks[name] + axis - rank, lead.ids)
    trace.carry(node.output[0], axis, lead.ids)


def _others_fit(
    trace: Trace, node: onnx.NodeProto, labels: dict[str, Label], axis: int, size: int
) -> bool:
    """Tell whether what has no channels may meet them: one value for all, or stored for each."""
    for name in node.input:
        dims = trace.dims(name) or ()
        if name in labels or len(dims) < -axis or dims[axis] == 1:
            continue
        if trace.view.own(name) is None or dims[axis] != size or size == 1:
            return False
    return True
