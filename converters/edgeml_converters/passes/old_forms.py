"""Forms of old operators that onnx's version converter refuses, or translates wrongly.

Before it: BatchNormalization with ``spatial = 0`` (operator sets 7 and 8) becomes a product and a
sum. After it: ``Upsample``, and ``Resize`` of operator set 10, sampled at ``x / scale``
(asymmetric), which it forgets to say.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeml_converters.source.external import all_graphs

#: From this operator set on, Resize says by itself where it samples.
_RESIZE = 11


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which what the converter refuses has another form of the same meaning."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for graph in all_graphs(copy.graph):
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx"):
                nodes += _not_spatial(graph, node) or [node]
            else:
                nodes.append(node)
        if len(nodes) != len(graph.node):
            kept = [_copied(node) for node in nodes]
            del graph.node[:]
            graph.node.extend(kept)
    return copy


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _not_spatial(graph: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return a normalisation of each place of its own as two nodes; nothing when it is not one."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("spatial", 1) != 0:
        return []
    stored = {tensor.name: tensor for tensor in graph.initializer}
    if len(node.output) > 1 or not all(name in stored for name in node.input[1:5]):
        return []
    scale, shift, mean, variance = (
        numpy_helper.to_array(stored[name]).astype(np.float64) for name in node.input[1:5]
    )
    factor = scale / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    name = node.name or node.output[0]
    kind = numpy_helper.to_array(stored[node.input[1]]).dtype
    for values, what in ((factor, "factor"), (shift - mean * factor, "shift")):
        tensor = numpy_helper.from_array(values.astype(kind), f"{name}/{what}")
        graph.initializer.append(tensor)
    scaled = f"{name}/scaled"
    return [
        helper.make_node("Mul", [node.input[0], f"{name}/factor"], [scaled], f"{name}/mul"),
        helper.make_node("Add", [scaled, f"{name}/shift"], [node.output[0]], f"{name}/add"),
    ]


def completed(model: onnx.ModelProto, before: int) -> None:
    """Say in the converted model what its old operators meant; changes it in place.

    Args:
        model: What the version converter made.
        before: Its operator set before.
    """
    if before >= _RESIZE:
        return
    for graph in all_graphs(model.graph):
        for node in graph.node:
            if node.op_type != "Resize":
                continue
            wanted = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            kept = [a for a in node.attribute if a.name not in wanted]
            del node.attribute[:]
            node.attribute.extend(kept)
            node.attribute.extend(helper.make_attribute(k, v) for k, v in wanted.items())
