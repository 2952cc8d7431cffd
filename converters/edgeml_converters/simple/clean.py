"""Remove what does nothing: identities, dropout, dead nodes, stored tensors twice."""

from __future__ import annotations

import onnx

from edgeml_converters.simple.uses import Constants, reads, remove, rewire
from edgeml_converters.source.external import all_graphs
from edgeml_converters.source.stored import byte_size, is_external, tensor_digest

#: Equal tensors from this size on are stored once. Smaller ones save nothing, and what changes
#: one of them later (a bias, a scale) must not change another layer's.
_SHARE = 4096


def drop_noops(graph: onnx.GraphProto) -> int:
    """Remove Identity, and Dropout as it is at inference; return how many."""
    constants = Constants(graph)
    counts = reads(graph)
    outputs = {value.name for value in graph.output}
    fixed = {value.name for value in (*graph.input, *graph.initializer)} | outputs
    makers = {name: node for node in graph.node for name in node.output}
    inner = {n for g in all_graphs(graph) if g is not graph for node in g.node for n in node.input}
    new: dict[str, str] = {}
    gone: set[int] = set()
    for index, node in enumerate(graph.node):
        if not _does_nothing(node, constants, counts):
            continue
        source, result = node.input[0], node.output[0]
        while source in new:
            source = new[source]
        if result not in outputs:
            new[result] = source
        elif source not in fixed and source in makers and source not in inner:
            # The output keeps its name: what makes the tensor makes it under that name.
            maker = makers[source]
            maker.output[list(maker.output).index(source)] = result
            makers[result] = maker
            new[source] = result
        else:
            continue
        gone.add(index)
    remove(graph, gone)
    if new:
        rewire(graph, new)
    return len(gone)


def _does_nothing(node: onnx.NodeProto, constants: Constants, counts: dict[str, int]) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout" or any(counts.get(name) for name in node.output[1:]):
        return False
    if len(node.input) < 3 or not node.input[2]:
        return True
    training = constants.array(node.input[2])
    return training is not None and not training.any()


def drop_dead(graph: onnx.GraphProto) -> int:
    """Remove nodes and stored tensors that nobody reads; return how many."""
    dead = 0
    while True:
        counts = reads(graph)
        gone = {
            index
            for index, node in enumerate(graph.node)
            if node.output and not any(counts.get(name) for name in node.output)
        }
        remove(graph, gone)
        dead += len(gone)
        if not gone:
            break
    fed = {value.name for value in graph.input}
    for index in range(len(graph.initializer) - 1, -1, -1):
        name = graph.initializer[index].name
        if not counts.get(name) and name not in fed:
            del graph.initializer[index]
            dead += 1
    return dead


def share_equal(graph: onnx.GraphProto) -> int:
    """Store large equal tensors once; return how many went."""
    fixed = {value.name for value in (*graph.input, *graph.output)}
    seen: dict[tuple[int, tuple[int, ...], str], str] = {}
    alike: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for index, tensor in enumerate(graph.initializer):
        large = (byte_size(tensor) or 0) >= _SHARE
        if large and tensor.name not in fixed and not is_external(tensor):
            alike.setdefault((tensor.data_type, tuple(tensor.dims)), []).append(index)
    new: dict[str, str] = {}
    gone: list[int] = []
    for (kind, dims), indices in alike.items():
        for index in indices if len(indices) > 1 else ():
            tensor = graph.initializer[index]
            first = seen.setdefault((kind, dims, tensor_digest(tensor)), tensor.name)
            if first != tensor.name:
                new[tensor.name] = first
                gone.append(index)
    for index in sorted(gone, reverse=True):
        del graph.initializer[index]
    if new:
        rewire(graph, new)
    return len(gone)
