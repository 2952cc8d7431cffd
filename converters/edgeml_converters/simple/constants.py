"""Fold what follows from stored tensors alone, as far as the result is not larger.

ConstantOfShape, Expand and their like make much of little: folding those can turn a file of
kilobytes into one of gigabytes. So the size of each result is found first, by shape inference,
and what would take more bytes than what it is made of stays as it is.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeml.tensors import Array
from edgeml_converters.simple.uses import Constants, reads, remove
from edgeml_converters.source.files import outline
from edgeml_converters.source.stored import byte_size

logger = logging.getLogger(__name__)

#: A result of at most this many bytes may be larger than what it is made of.
_FREE = 1024
#: Random ones differ each time; folding the others would undo a quantisation.
_NEVER = frozenset(
    {
        "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial",
        "Bernoulli", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Constant",
    }
)  # fmt: skip


def fold_constants(model: onnx.ModelProto) -> int:
    """Replace nodes by their results; return how many nodes went.

    Args:
        model: Changed in place; its shapes are inferred here.
    """
    graph = model.graph
    try:
        # Without the weights: it would hold four copies of them.
        inferred = onnx.shape_inference.infer_shapes(outline(model)[0], data_prop=True)
    except onnx.shape_inference.InferenceError:
        return 0
    known = {value.name: value for value in (*inferred.graph.value_info, *graph.input)}
    done = _static_shapes(graph, known)
    chosen = _foldable(graph, known)
    results = _computed(model, chosen) if chosen else {}
    if results is None:
        return done
    for name, array in results.items():
        graph.initializer.append(numpy_helper.from_array(array, name))
    remove(graph, set(chosen))
    return done + len(chosen)


def _static_shapes(graph: onnx.GraphProto, known: dict[str, onnx.ValueInfoProto]) -> int:
    """Replace Shape of a tensor whose axes are all fixed by the numbers; return how many."""
    gone: set[int] = set()
    outputs = {value.name for value in graph.output}
    for index, node in enumerate(graph.node):
        if node.op_type != "Shape" or node.domain not in ("", "ai.onnx"):
            continue
        dims = _dims(known.get(node.input[0]))
        if dims is None or node.output[0] in outputs:
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        part = dims[attributes.get("start", 0) : attributes.get("end", len(dims))]
        array = np.asarray(part, np.int64)
        graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        gone.add(index)
    remove(graph, gone)
    return len(gone)


def _dims(value: onnx.ValueInfoProto | None) -> list[int] | None:
    """Return the axes of a tensor when all are fixed."""
    if value is None or not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value for d in dims] if all(d.HasField("dim_value") for d in dims) else None


def _bytes(value: onnx.ValueInfoProto | None) -> int | None:
    """Return how many bytes a tensor takes; None when its shape is not known."""
    dims = _dims(value)
    if value is None or dims is None:
        return None
    kind = value.type.tensor_type.elem_type
    return byte_size(TensorProto(data_type=kind, dims=dims)) if kind else None


def _foldable(graph: onnx.GraphProto, known: dict[str, onnx.ValueInfoProto]) -> list[int]:
    """Return the places of nodes that follow from constants and whose results are small enough."""
    constants = Constants(graph)
    sizes: dict[str, int] = {}
    outputs = {value.name for value in graph.output}
    chosen: list[int] = []
    for index, node in enumerate(graph.node):
        if node.domain not in ("", "ai.onnx") or node.op_type in _NEVER or not any(node.input):
            continue
        if any(a.HasField("g") or a.graphs for a in node.attribute) or outputs & {*node.output}:
            continue
        given = [_size(name, constants, sizes) for name in node.input if name]
        made = [_bytes(known.get(name)) for name in node.output if name]
        total = sum(size for size in given if size is not None)
        if None in given or None in made:
            continue
        if sum(size for size in made if size is not None) > max(_FREE, total):
            continue
        sizes.update(zip((n for n in node.output if n), (m or 0 for m in made), strict=True))
        chosen.append(index)
    return chosen


def _size(name: str, constants: Constants, sizes: dict[str, int]) -> int | None:
    """Return the bytes of what is stored or will be folded; None for all else."""
    if name in sizes:
        return sizes[name]
    tensor = constants.tensor(name)
    return byte_size(tensor) if tensor is not None else None


def _computed(model: onnx.ModelProto, chosen: list[int]) -> dict[str, Array] | None:
    """Return the results of nodes that others read; None when they cannot be computed here."""
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    graph = model.graph
    nodes = [graph.node[index] for index in chosen]
    made = {name for node in nodes for name in node.output if name}
    counts = reads(graph)
    for node in nodes:
        counts.subtract(name for name in node.input if name)
    wanted = [name for node in nodes for name in node.output if counts[name] > 0]
    if not wanted:
        return {}
    needed = {name for node in nodes for name in node.input} - made
    constants = Constants(graph)
    stored = []
    for name in sorted(needed):
        tensor = constants.tensor(name)
        if tensor is not None:
            copy = TensorProto()
            copy.CopyFrom(tensor)
            copy.name = name
            stored.append(copy)
    outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
    part = helper.make_model(
        helper.make_graph(nodes, "constants", [], outputs, stored),
        opset_imports=list(model.opset_import),
    )
    part.ir_version = model.ir_version
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            part.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        arrays = session.run(wanted, {})
    except (
        state.Fail, state.InvalidGraph, state.InvalidArgument, state.NotImplemented,
        state.RuntimeException, RuntimeError, ValueError,
    ) as error:  # fmt: skip
        logger.debug("constants are not folded: %s", error)
        return None
    return dict(zip(wanted, arrays, strict=True))
