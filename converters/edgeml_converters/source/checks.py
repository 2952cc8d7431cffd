"""Checks of a parsed model: operators, weights, shapes. Each fault is its own one-line error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx

from edgeml.errors import MissingPackageError, ModelError, nearest
from edgeml_converters.source.external import all_graphs, all_tensors
from edgeml_converters.source.stored import values

#: Domains whose operators come with the package onnxruntime-extensions.
EXTENSIONS = frozenset({"ai.onnx.contrib", "com.microsoft.extensions"})
#: Domains that onnxruntime itself implements beside the standard one.
BUILT_IN = frozenset({"com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"})
#: Values that are looked at in one go.
_CHUNK = 1 << 22
_FLOATS = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.BFLOAT16,
    }
)
_WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LSTM", "GRU", "RNN"}
)


def node_name(node: onnx.NodeProto) -> str:
    """Return what a message calls a node: its name, or its first output."""
    return node.name or (node.output[0] if node.output else node.op_type)


def count_ops(model: onnx.ModelProto) -> dict[str, int]:
    """Return operator -> how often, graphs inside nodes included, most frequent first."""
    counts = Counter(
        f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for graph in all_graphs(model.graph)
        for node in graph.node
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operator set; 0 when the model names none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def quantisation(ops: Collection[str]) -> str:
    """Return how a model of these operators is quantised; empty when it is not."""
    names = {name.split(":")[-1] for name in ops}
    if names & {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}:
        return "dynamic"
    if any(name.startswith("QLinear") for name in names):
        return "QOperator"
    if "QuantizeLinear" in names:
        return "QDQ"
    return "weights only" if names & {"DequantizeLinear", "MatMulNBits"} else ""


def check_structure(model: onnx.ModelProto, path: Path) -> None:
    """Raise when the message holds no usable graph.

    Raises:
        ModelError: No graph, no outputs, no operator set, or one that is newer than ``onnx``.
    """
    again = "it is damaged, or not an ONNX model: export it again"
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise ModelError(f"'{path}' holds no graph", again)
    if not model.graph.output:
        raise ModelError(f"'{path}' holds a graph without outputs", again)
    if not model.opset_import:
        raise ModelError(f"'{path}' does not say which operator set it uses", again)
    newest = onnx.defs.onnx_opset_version()
    if opset_of(model) > newest:
        raise ModelError(
            f"'{path}' uses operator set {opset_of(model)}, expected at most {newest}",
            "export it with an older opset, or upgrade onnx and onnxruntime",
        )


def check_operators(model: onnx.ModelProto, path: Path) -> None:
    """Raise at the first operator that nobody here implements.

    Raises:
        MissingPackageError: It comes with onnxruntime-extensions.
        ModelError: Its name or its domain is unknown.
    """
    versions = {o.domain if o.domain != "ai.onnx" else "": o.version for o in model.opset_import}
    local = {(f.domain, f.name) for f in model.functions}
    nodes = [n for g in all_graphs(model.graph) for n in g.node]
    nodes += [n for f in model.functions for n in f.node]
    for node in nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (node.domain, node.op_type) in local or domain in BUILT_IN:
            continue
        where = f"operator '{node.op_type}' (node '{node_name(node)}') of '{path}'"
        if domain in EXTENSIONS:
            raise MissingPackageError(
                f"{where} is in domain '{domain}', which needs the package onnxruntime-extensions",
                "pip install onnxruntime-extensions brings the operator; edgeml does not load it "
                "yet: export the model without its pre- and post-processing",
            )
        if domain in versions and onnx.defs.has(node.op_type, versions[domain], domain):
            continue
        if domain in ("", "ai.onnx.ml", "ai.onnx.preview.training", "ai.onnx.preview"):
            known = {s.name for s in onnx.defs.get_all_schemas() if s.domain == domain}
            version = versions.get(domain, 0)
            raise ModelError(
                f"{where} is unknown in operator set {domain or 'ai.onnx'} {version}",
                nearest(node.op_type, known - {node.op_type})
                if node.op_type not in known
                else "it belongs to another version of the operator set: export the model again",
            )
        raise ModelError(
            f"{where} is in the custom domain '{domain}', which no runtime here implements",
            "export the model without custom operators",
        )


def check_weights(model: onnx.ModelProto, path: Path) -> list[str]:
    """Check that stored values are finite.

    A NaN is always an error, an infinity only as a weight of an operator that sums products:
    elsewhere it is a mask or an open bound.

    Returns:
        Warnings about infinities.

    Raises:
        ModelError: The first tensor at fault.
    """
    weights = {
        name
        for graph in all_graphs(model.graph)
        for node in graph.node
        if node.op_type in _WEIGHTED
        for name in node.input
    }
    warnings = []
    for tensor in all_tensors(model):
        if tensor.data_type not in _FLOATS:
            continue
        try:
            bad, size, nan = _not_finite(tensor)
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelError(
                f"'{path}': the values of '{tensor.name}' do not fit its shape "
                f"{list(tensor.dims)}: {error}",
                "the file is damaged: export it again",
            ) from error
        if not bad:
            continue
        if nan or tensor.name in weights:
            raise ModelError(
                f"'{path}': weight '{tensor.name}' holds {bad} non-finite of {size} values "
                f"({'NaN' if nan else 'infinity'})",
                "the training diverged or the file is damaged: export it from a good checkpoint",
            )
        warnings.append(f"constant '{tensor.name}' holds {bad} infinite values")
    return warnings


def _not_finite(tensor: onnx.TensorProto) -> tuple[int, int, bool]:
    """Return how many values are not finite, of how many, and whether one is NaN."""
    flat = values(tensor).reshape(-1)
    bad, nan = 0, False
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        if part.dtype.kind != "f":  # bfloat16 has no ufuncs of its own
            part = part.astype(np.float32)
        wrong = ~np.isfinite(part)
        if wrong.any():
            bad += int(wrong.sum())
            nan = nan or bool(np.isnan(part).any())
    return bad, flat.size, nan


def check_shapes(model: onnx.ModelProto) -> str:
    """Return what strict shape inference says against a model; empty when nothing."""
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        return " ".join(str(error).split())
    return ""
