"""Shapes that a model states of itself and that are wrong: found, dropped, and said.

Exporters and tools leave notes of inner shapes (``value_info``) behind that later edits made
untrue. Runtimes ignore them; quantisers believe them and fail with "Inferred shape and existing
shape differ".
"""

from __future__ import annotations

import onnx

from edgeml_converters.source.external import all_graphs
from edgeml_converters.source.files import outline
from edgeml_converters.source.stored import is_large

_Dims = list[int | None]


def drop_stale(model: onnx.ModelProto) -> list[str]:
    """Remove notes that contradict what follows from the inputs, and notes about nothing.

    A wrong shape of an output is replaced by the one that follows.

    Args:
        model: Changed in place.

    Returns:
        Warnings.
    """
    inferred = _inferred(model)
    if inferred is None:
        return []
    known = {v.name: v for v in [*inferred.graph.value_info, *inferred.graph.output]}
    made = {name for node in model.graph.node for name in node.output}
    wrong: list[str] = []
    for index in range(len(model.graph.value_info) - 1, -1, -1):
        value = model.graph.value_info[index]
        found = known.get(value.name)
        said = contradiction(value, found) if found is not None else ""
        if said:
            wrong.append(said)
        if said or value.name not in made:
            del model.graph.value_info[index]
    warnings = []
    if wrong:
        first = wrong[-1]
        warnings.append(
            f"{len(wrong)} stored shapes of inner tensors are wrong, and were dropped: {first}"
        )
    return warnings + _outputs(model, known)


def _outputs(model: onnx.ModelProto, known: dict[str, onnx.ValueInfoProto]) -> list[str]:
    """Mend the shapes of outputs; return warnings."""
    warnings = []
    for value in model.graph.output:
        found = known.get(value.name)
        if found is None:
            continue
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.CopyFrom(found.type)  # the checker of onnx wants one
        said = contradiction(value, found)
        if said:
            warnings.append(f"the stored shape of an output is wrong, and was replaced: {said}")
            value.type.CopyFrom(found.type)
    return warnings


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return the model with the shapes that follow from its inputs; None when that fails."""
    if is_large(model):
        bare, _ = outline(model)
    else:
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
    for graph in all_graphs(bare.graph):
        del graph.value_info[:]
    for value in bare.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return None  # other checks say what is wrong with it


def contradiction(stated: onnx.ValueInfoProto, found: onnx.ValueInfoProto) -> str:
    """Return how two statements about one tensor contradict each other; empty when they do not."""
    if not (stated.type.HasField("tensor_type") and found.type.HasField("tensor_type")):
        return ""
    first, second = stated.type.tensor_type, found.type.tensor_type
    if first.elem_type and second.elem_type and first.elem_type != second.elem_type:
        names = [onnx.TensorProto.DataType.Name(t.elem_type).lower() for t in (first, second)]
        return f"'{stated.name}' says {names[0]}, is {names[1]}"
    if not (first.HasField("shape") and second.HasField("shape")):
        return ""
    says, is_ = _dims(first), _dims(second)
    clash = len(says) != len(is_) or any(
        a is not None and b is not None and a != b for a, b in zip(says, is_, strict=True)
    )
    return f"'{stated.name}' says {_text(says)}, is {_text(is_)}" if clash else ""


def _dims(tensor: onnx.TypeProto.Tensor) -> _Dims:
    return [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]


def _text(dims: _Dims) -> str:
    return f"[{', '.join('?' if n is None else str(n) for n in dims)}]"
