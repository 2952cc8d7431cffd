"""View: a model laid out for pruning.

The copy that is worked on holds no Constant nodes, no stored tensor that two nodes share (unless
it is large), and no Split without its sizes: then every number that a removal changes has one
place. ``restore`` takes back what was not needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeml.errors import ModelError
from edgeml.tensors import Array
from edgeml_converters.source.checks import node_name, opset_of

Shape = tuple[int | None, ...]

#: Shared tensors of at most this many values get a copy per user; larger ones stay as they are.
_COPY_VALUES = 1 << 16
_CONSTANTS = {"value_float": np.float32, "value_int": np.int64,
              "value_floats": np.float32, "value_ints": np.int64}  # fmt: skip


@dataclass
class View:
    """A model and what is asked of it all the time.

    Attributes:
        model: A copy that may be changed.
        weights: Stored tensor -> its values.
        shapes: Tensor -> its axes, None where one varies; only tensors whose rank is known.
        users: Tensor -> (node, position among the inputs) of all that read it.
        makers: Tensor -> the node that writes it.
        captured: Tensors that graphs inside nodes read.
        copies: Copy of a shared stored tensor -> the original.
        twins: Output of the copy of a shared Concat -> output of the original.
        sizes: As ``shapes``, with the axes of one sample of data; to reckon with, no more.
    """

    model: onnx.ModelProto
    weights: dict[str, Array] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    users: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    makers: dict[str, int] = field(default_factory=dict)
    captured: set[str] = field(default_factory=set)
    copies: dict[str, str] = field(default_factory=dict)
    twins: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, Shape] = field(default_factory=dict)

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes, in order."""
        return list(self.model.graph.node)

    @property
    def outputs(self) -> set[str]:
        """Names of the graph's outputs."""
        return {o.name for o in self.model.graph.output}

    def own(self, name: str) -> Array | None:
        """Return a stored tensor that exactly one input reads; None when there is none."""
        if name not in self.weights or name in self.captured or name in self.outputs:
            return None
        return self.weights[name] if len(self.users.get(name, ())) == 1 else None

    def dims(self, name: str) -> Shape | None:
        """Return the axes of a tensor; None when not even their number is known."""
        if name in self.weights:
            return tuple(self.weights[name].shape)
        return self.shapes.get(name)


def open_view(model: onnx.ModelProto, data: Mapping[str, Array] | None = None) -> View:
    """Lay out a copy of a model.

    Args:
        model: Not changed.
        data: Input name -> samples on axis 0, to learn sizes that vary from.

    Raises:
        ModelError: It is quantised already, or its shapes contradict each other.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if "Quantize" in node.op_type or node.op_type.startswith("QLinear"):
            raise ModelError(
                f"node '{node_name(node)}' ({node.op_type}): the model is quantised already",
                "prune the float model, and quantise afterwards",
            )
    _store_constants(copy)
    captured = _captured(copy)
    twins = _copy_shape_concats(copy, captured)
    copies = _copy_shared(copy, captured)
    shapes = _shapes(copy)
    _write_split_sizes(copy, shapes)
    view = View(copy, shapes=shapes, captured=captured, copies=copies, twins=twins)
    view.sizes = _shapes(_sized(copy, data)) if data else shapes
    view.weights = {i.name: numpy_helper.to_array(i) for i in copy.graph.initializer}
    for index, node in enumerate(copy.graph.node):
        for position, name in enumerate(node.input):
            view.users.setdefault(name, []).append((index, position))
        for name in node.output:
            view.makers[name] = index
    return view


def restore(view: View, model: onnx.ModelProto) -> None:
    """Let nodes share again what still is the same; drop what nobody reads.

    Args:
        view: Whose layout the model has.
        model: What came of ``view.model``; changed in place.
    """
    tensors = {i.name: i for i in model.graph.initializer}
    back = {
        name: first
        for name, first in view.copies.items()
        if name in tensors and first in tensors and _same(tensors[name], tensors[first])
    }
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name in back:
                node.input[position] = back[name]
    _merge_twins(view, model)
    used = {name for node in model.graph.node for name in node.input} | view.captured
    used |= {o.name for o in model.graph.output}
    kept = [i for i in model.graph.initializer if i.name in used]
    given = [i for i in model.graph.input if i.name in used or i.name not in tensors]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.input[:]
    model.graph.input.extend(given)


def _same(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    return np.array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))


def _merge_twins(view: View, model: onnx.ModelProto) -> None:
    """Drop each copy of a Concat that still is the same as its original."""
    makers = {node.output[0]: node for node in model.graph.node if node.output}
    same = {
        twin: first
        for twin, first in view.twins.items()
        if list(makers[twin].input) == list(makers[first].input)
    }
    kept = [n for n in model.graph.node if not (n.output and n.output[0] in same)]
    for node in kept:
        for position, name in enumerate(node.input):
            node.input[position] = same.get(name, name)
    if same:
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in kept]
        del model.graph.node[:]
        model.graph.node.extend(nodes)


def _store_constants(model: onnx.ModelProto) -> None:
    """Turn Constant nodes into stored tensors; take stored tensors out of the inputs."""
    kept = []
    for node in model.graph.node:
        tensor = _constant(node)
        if tensor is None:
            kept.append(node)
        else:
            model.graph.initializer.append(tensor)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    stored = {i.name for i in model.graph.initializer}
    given = [i for i in model.graph.input if i.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(given)


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return what a Constant node holds; None for other nodes and for other kinds."""
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(attribute.t)
        tensor.name = node.output[0]
        return tensor
    kind = _CONSTANTS.get(attribute.name)
    if kind is None:
        return None
    return numpy_helper.from_array(
        np.array(helper.get_attribute_value(attribute), kind), node.output[0]
    )


def _captured(model: onnx.ModelProto) -> set[str]:
    """Return every name that is read inside graphs of nodes."""
    found: set[str] = set()

    def visit(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            found.update(node.input)
            for inner in _graphs(node):
                visit(inner)
        found.update(o.name for o in graph.output)

    for node in model.graph.node:
        for inner in _graphs(node):
            visit(inner)
    return found


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else list(a.graphs))]


def _copy_shared(model: onnx.ModelProto, captured: set[str]) -> dict[str, str]:
    """Give each user of a small stored tensor its own copy; return copy -> original."""
    uses = Counter(name for node in model.graph.node for name in node.input)
    taken = set(uses) | {name for node in model.graph.node for name in node.output} | captured
    tensors = {
        i.name: i
        for i in model.graph.initializer
        if uses[i.name] > 1 and i.name not in captured and np.prod(i.dims) <= _COPY_VALUES
    }
    copies: dict[str, str] = {}
    seen: set[str] = set()
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name not in tensors:
                continue
            if name in seen:
                number = 1
                while f"{name}/{number}" in taken:
                    number += 1
                fresh = onnx.TensorProto()
                fresh.CopyFrom(tensors[name])
                fresh.name = f"{name}/{number}"
                taken.add(fresh.name)
                copies[fresh.name] = name
                model.graph.initializer.append(fresh)
                node.input[position] = fresh.name
            seen.add(name)
    return copies


def _copy_shape_concats(model: onnx.ModelProto, captured: set[str]) -> dict[str, str]:
    """Give each Reshape its own copy of a Concat that puts the shapes of several together."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            fits = node.op_type == "Reshape" and position == 1
            users.setdefault(name, []).append(node if fits else onnx.NodeProto())
    kept = captured | {o.name for o in model.graph.output}
    twins: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        name = node.output[0] if node.output else ""
        readers = users.get(name, [])
        shared = node.op_type == "Concat" and len(readers) > 1 and name not in kept
        if not shared or not all(reader.op_type == "Reshape" for reader in readers):
            continue
        for number, reader in enumerate(readers[1:], 1):
            twin = onnx.NodeProto()
            twin.CopyFrom(node)
            twin.name = f"{node.name}/{number}" if node.name else ""
            twin.output[0] = reader.input[1] = f"{name}/{number}"
            twins[twin.output[0]] = name
            nodes.append(twin)
    if twins:
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del model.graph.node[:]
        model.graph.node.extend(copies)
    return twins


def _sized(model: onnx.ModelProto, data: Mapping[str, Array]) -> onnx.ModelProto:
    """Return a copy whose inputs have the axes of one sample of data where they vary."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        dims = value.type.tensor_type.shape.dim
        given = data[value.name].shape if value.name in data else ()
        if len(given) == len(dims):
            for axis, dim in enumerate(dims):
                if not dim.dim_value:
                    dim.dim_value = given[axis] if axis else 1
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    return copy


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Infer the axes of all tensors.

    Raises:
        ModelError: They contradict each other.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the shapes of the model do not fit: {error}") from error
    found: dict[str, Shape] = {}
    graph = inferred.graph
    for value in [*graph.value_info, *graph.input, *graph.output]:
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and tensor.HasField("shape"):
            found[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim
            )
    return found


def _write_split_sizes(model: onnx.ModelProto, shapes: dict[str, Shape]) -> None:
    """Write the sizes of every Split that leaves them to the runtime, where they are known."""
    if opset_of(model) < 13:
        return  # there the sizes are an attribute; nothing is pruned through such a Split
    for node in model.graph.node:
        if node.op_type != "Split" or (len(node.input) > 1 and node.input[1]):
            continue
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        parts = [shapes.get(name) for name in node.output]
        sizes = [part[axis] if part else None for part in parts]
        if any(size is None for size in sizes):
            continue
        name = f"{node.output[0]}/sizes"
        model.graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
        del node.input[1:]
        node.input.append(name)
        kept = [a for a in node.attribute if a.name != "num_outputs"]
        del node.attribute[:]
        node.attribute.extend(kept)
