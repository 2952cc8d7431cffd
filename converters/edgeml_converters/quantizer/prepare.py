"""A model made ready: checked, copied, with unique names, stored constants and known shapes."""

from __future__ import annotations

import onnx
from onnx import helper

from edgeml.errors import ModelError
from edgeml_converters.passes.shapes import real_inputs
from edgeml_converters.source.checks import node_name, opset_of
from edgeml_converters.source.external import all_graphs

#: Operators of models that are quantised already.
QUANTISED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}
)
#: Stored tensors of more values than this carry no shapes, and are left out where shapes are found.
_SMALL = 1024


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with stored tensors that are no inputs, and with inner shapes.

    Raises:
        ModelError: The model is quantised already, or its operator set is too old.
    """
    for graph in all_graphs(model.graph):
        for node in graph.node:
            if node.op_type in QUANTISED or node.op_type.startswith("QLinear"):
                raise ModelError(
                    f"node '{node_name(node)}' ({node.op_type}): the model is quantised already",
                    "give the float model",
                )
    if opset_of(model) < 13:
        raise ModelError(
            f"the model has operator set {opset_of(model)}, expected 13 or more for 8 bits",
            "apply upgrade_opset first",
        )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inputs = real_inputs(copy)
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    _name_nodes(copy)
    _store_constants(copy.graph)
    found = infer(light(copy))
    del copy.graph.value_info[:]
    copy.graph.value_info.extend(found)
    return copy


def _name_nodes(model: onnx.ModelProto) -> None:
    """Name nodes that have no name, or one that another has."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)


def _store_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes that hold a tensor into stored tensors."""
    outputs = {o.name for o in graph.output}
    kept = []
    for node in graph.node:
        value = [a.t for a in node.attribute if a.name == "value"]
        if node.op_type != "Constant" or node.domain or not value or node.output[0] in outputs:
            kept.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value[0])
        tensor.name = node.output[0]
    if len(kept) != len(graph.node):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(nodes)


def light(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which large stored tensors are inputs: enough to find shapes with."""
    copy = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    graph = copy.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        size = 1
        for dim in tensor.dims:
            size *= dim
        if size <= _SMALL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return copy


def infer(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return what is known of the inner tensors and the outputs of a model.

    Raises:
        ModelError: The shapes of the model contradict each other.
    """
    try:
        found = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        said = " ".join(str(error).split())
        raise ModelError(f"the shapes of the model do not fit: {said}") from error
    return [*found.graph.value_info, *found.graph.output]
