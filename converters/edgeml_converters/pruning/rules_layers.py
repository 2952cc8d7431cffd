"""Rules of the operators with weights: they end one label and begin another."""

from __future__ import annotations

import numpy as np
import onnx

from edgeml.tensors import Array
from edgeml_converters.pruning.trace import Count, Ids, Layer, Trace, attribute, integer
from edgeml_converters.source.checks import node_name


def _weight(trace: Trace, node: onnx.NodeProto, position: int) -> Array | None:
    """Return an input that is stored in float32 and read here only."""
    if len(node.input) <= position or not node.input[position]:
        return None
    values = trace.view.own(node.input[position])
    return values if values is not None and values.dtype == np.float32 else None


def _bias(trace: Trace, node: onnx.NodeProto, size: int) -> str | None:
    """Return the name of the bias, empty when there is none; None when it cannot be cut."""
    if len(node.input) < 3 or not node.input[2]:
        return ""
    values = _weight(trace, node, 2)
    if values is None or values.shape not in ((size,), (1, size)):
        return None
    return str(node.input[2])


def _places(trace: Trace, name: str, first: int, last: int | None = None) -> float:
    """Return the product of the known axes of a tensor in a range."""
    dims = trace.view.sizes.get(name, ())
    return float(np.prod([d for d in dims[first:last] if d] or [1]))


def _incoming(trace: Trace, node: onnx.NodeProto, axis: int, size: int) -> Ids | None:
    """Return the atoms of the first input when they lie on the axis that is summed over."""
    label = trace.labels.get(node.input[0])
    if label is None:
        return None
    if label.axis != axis or len(label.ids) != size:
        trace.pin(node.input[0])
        return None
    return label.ids


def _add(
    trace: Trace, index: int, op: str, bias: str, ids_in: Ids | None, ids_out: Ids, macs: float,
    group: int = 1, block: int = 1,
) -> None:  # fmt: skip
    node = trace.view.model.graph.node[index]
    trace.layers.append(
        Layer(
            index, node_name(node), op, node.input[1], bias, node.input[0], node.output[0],
            ids_in, ids_out, group, macs, block,
        )
    )  # fmt: skip


def conv(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Conv: plain, depthwise (outputs follow inputs) or grouped (places in a group united)."""
    weight = _weight(trace, node, 1)
    bias = _bias(trace, node, weight.shape[0]) if weight is not None else None
    if weight is None or bias is None:
        trace.stop(node)
        return
    group = integer(node, "group", 1)
    outputs, per_group = weight.shape[:2]
    ids = _incoming(trace, node, 1, group * per_group)
    macs = float(weight.size) * _places(trace, node.output[0], 2)
    if group > 1 and per_group == 1:
        if ids is None:
            return  # the channels of the model's input: they stay, and so do these
        out = np.repeat(ids, outputs // group)
        trace.counts.append(Count(ids, node=index, attribute="group"))
        _add(trace, index, "Depthwise", bias, None, out, macs, group)
    else:
        out = trace.atoms.fresh(outputs)
        if group > 1:
            _unite_places(trace, out, group)
            if ids is not None:
                _unite_places(trace, ids, group)
        if ids is not None:
            trace.site(node.input[1], 1, ids[:per_group])
        _add(trace, index, "Conv", bias, ids, out, macs, group)
    trace.site(node.input[1], 0, out)
    if bias:
        trace.site(bias, 0, out)
    trace.carry(node.output[0], 1, out)


def _unite_places(trace: Trace, ids: Ids, group: int) -> None:
    """Unite the atoms at the same place of every group: then all groups stay equally large."""
    rows = ids.reshape(group, -1)
    for row in rows[1:]:
        trace.atoms.unite(rows[0], row)


def conv_transpose(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """ConvTranspose without groups; its weight has the inputs on axis 0."""
    weight = _weight(trace, node, 1)
    bias = _bias(trace, node, weight.shape[1]) if weight is not None else None
    if weight is None or bias is None or integer(node, "group", 1) != 1:
        trace.stop(node)
        return
    ids = _incoming(trace, node, 1, weight.shape[0])
    out = trace.atoms.fresh(weight.shape[1])
    if ids is not None:
        trace.site(node.input[1], 0, ids)
    trace.site(node.input[1], 1, out)
    if bias:
        trace.site(bias, 0, out)
    macs = float(weight.size) * _places(trace, node.input[0], 2)
    _add(trace, index, "ConvTranspose", bias, ids, out, macs)
    trace.carry(node.output[0], 1, out)


def gemm(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Gemm with a stored matrix; factors other than 1 are not followed."""
    weight = _weight(trace, node, 1)
    plain = (
        integer(node, "transA", 0) == 0
        and attribute(node, "alpha", 1.0) == 1.0
        and attribute(node, "beta", 1.0) == 1.0
    )
    flipped = integer(node, "transB", 0)
    bias = _bias(trace, node, weight.shape[1 - flipped]) if weight is not None else None
    if weight is None or bias is None or not plain:
        trace.stop(node)
        return
    ids = _incoming(trace, node, 1, weight.shape[flipped])
    out = trace.atoms.fresh(weight.shape[1 - flipped])
    if ids is not None:
        trace.site(node.input[1], flipped, ids)
    trace.site(node.input[1], 1 - flipped, out)
    if bias:
        trace.site(bias, trace.view.weights[bias].ndim - 1, out)
    block = trace.labels[node.input[0]].block if ids is not None else 1
    channels = None if ids is None else ids[::block]
    _add(trace, index, "Gemm", bias, channels, out, float(weight.size), block=block)
    trace.carry(node.output[0], 1, out)


def matmul(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """MatMul with a stored matrix, or of two tensors that were computed, batch by batch."""
    dims = trace.dims(node.input[0])
    weight = _weight(trace, node, 1)
    if node.input[1] not in trace.view.weights and node.input[0] not in trace.view.weights:
        _product(trace, index, node)
        return
    if weight is None or weight.ndim != 2 or dims is None or len(dims) < 2:
        trace.stop(node)
        return
    last = len(dims) - 1
    ids = _incoming(trace, node, last, weight.shape[0])
    out = trace.atoms.fresh(weight.shape[1])
    if ids is not None:
        trace.site(node.input[1], 0, ids)
    trace.site(node.input[1], 1, out)
    places = _places(trace, node.input[0], 1, last)
    block = trace.labels[node.input[0]].block if ids is not None else 1
    channels = None if ids is None else ids[::block]
    _add(trace, index, "MatMul", "", channels, out, float(weight.size) * places, block=block)
    trace.carry(node.output[0], last, out)


def _product(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """Product of two computed tensors: channels may lie on an axis that is neither of the two."""
    first, second = (trace.labels.get(name) for name in node.input)
    ranks = [len(trace.dims(name) or ()) for name in node.input]
    fits = (
        first is not None
        and second is not None
        and ranks[0] == ranks[1] >= 3
        and first.axis == second.axis < ranks[0] - 2
        and len(first.ids) == len(second.ids)
    )
    if not fits or first is None or second is None:
        trace.stop(node)
        return
    trace.atoms.unite(first.ids, second.ids)
    inner = trace.view.sizes.get(node.input[0], (1,))[-1] or 1
    macs = _places(trace, node.output[0], first.axis) * inner
    trace.layers.append(
        Layer(
            index, node_name(node), "Attention", "", "", node.input[0], node.output[0],
            None, first.ids, 1, macs,
        )
    )  # fmt: skip
    trace.carry(node.output[0], first.axis, first.ids)


def per_channel(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """BatchNormalization, InstanceNormalization: one number per channel in every input but one."""
    label = trace.labels.get(node.input[0])
    if label is None:
        return
    stored = [trace.view.own(name) for name in node.input[1:]]
    extra = [name for name in node.output[1:] if name]
    if label.axis != 1 or extra or any(w is None or len(w) != len(label.ids) for w in stored):
        trace.stop(node)
        return
    for name in node.input[1:]:
        trace.site(name, 0, label.ids)
    trace.carry(node.output[0], 1, label.ids)


def last_axes(trace: Trace, index: int, node: onnx.NodeProto) -> None:
    """LayerNormalization, Softmax: they mix one axis, or all from one on."""
    label, dims = trace.labels.get(node.input[0]), trace.dims(node.input[0])
    if label is None:
        return
    axis = integer(node, "axis", -1)
    if dims is None or [name for name in node.output[1:] if name]:
        trace.stop(node)
        return
    axis += len(dims) if axis < 0 else 0
    whole = node.op_type == "LayerNormalization"
    if label.axis == axis or (whole and label.axis > axis):
        trace.stop(node)
        return
    trace.carry(node.output[0], label.axis, label.ids)
