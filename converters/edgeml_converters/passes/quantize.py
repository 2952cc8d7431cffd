"""What both passes on onnxruntime's quantiser share: a quiet call, and a checked result."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx

from edgeml.errors import ModelError
from edgeml_converters.model import model_bytes, signature
from edgeml_converters.passes.shapes import real_inputs
from edgeml_converters.source.checks import count_ops, node_name, opset_of

_log = logging.getLogger(__name__)

#: Operators that onnxruntime's quantiser leaves behind when it did something.
QUANTISED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"}
)


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with stored tensors that are no inputs, and with inner shapes.

    Raises:
        ModelError: The model is quantised already, or its operator set is too old.
    """
    for node in model.graph.node:
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
    _flat_biases(copy)
    try:
        return onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the shapes of the model do not fit: {error}") from error


def _name_nodes(model: onnx.ModelProto) -> None:
    """Name nodes that have no name, or one that another has: the quantiser goes by names."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)


def _flat_biases(model: onnx.ModelProto) -> None:
    """Make a bias of shape [1, n] of a Gemm flat: the quantiser fails on it."""
    biases = {n.input[2] for n in model.graph.node if n.op_type == "Gemm" and len(n.input) > 2}
    users = [name for n in model.graph.node for name in n.input]
    for tensor in model.graph.initializer:
        flat = len(tensor.dims) == 2 and tensor.dims[0] == 1
        if tensor.name in biases and users.count(tensor.name) == 1 and flat:
            del tensor.dims[0]


def quantise(model: onnx.ModelProto, call: Callable[[Path, Path, Path], None]) -> onnx.ModelProto:
    """Run the quantiser in a private folder, quietly, and check what came out.

    Args:
        model: The prepared model.
        call: Gets the input file, the output file and the folder.

    Raises:
        ModelError: It failed, did nothing, or made an unusable model.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    said = io.StringIO()
    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory(prefix="edgeml-") as name:
        folder = Path(name)
        source, product = folder / "source.onnx", folder / "product.onnx"
        source.write_bytes(model_bytes(model))
        root.setLevel(logging.ERROR)  # the quantiser logs advice to the root logger
        try:
            with contextlib.redirect_stdout(said), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(source, product, folder)
            quantised = onnx.load(product)
        except (
            ValueError, KeyError, AttributeError, TypeError, IndexError, AssertionError,
            RuntimeError, OSError, state.Fail, state.InvalidGraph, state.InvalidArgument,
            state.NotImplemented, state.RuntimeException,
        ) as error:  # fmt: skip
            raise ModelError(
                f"onnxruntime's quantiser failed: {type(error).__name__}: {error}",
                "this recipe does not fit the model; others are not concerned",
            ) from error
        finally:
            root.setLevel(level)
    if said.getvalue():
        _log.debug("quantiser: %s", said.getvalue().strip())
    return _checked(model, quantised)


def _checked(model: onnx.ModelProto, quantised: onnx.ModelProto) -> onnx.ModelProto:
    """Return the product when it is a quantised model with the same signature."""
    counts = count_ops(quantised)
    if not any(n.split(":")[-1] in QUANTISED for n in counts):
        raise ModelError(
            "nothing to quantise: the model has no operator that this recipe makes 8-bit",
            "keep it in float, or choose another recipe",
        )
    if signature(quantised) != signature(model):
        raise ModelError("quantising changed the inputs or outputs of the model")
    del quantised.graph.value_info[:]
    try:
        onnx.checker.check_model(quantised)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"the quantised model is invalid: {error}") from error
    return quantised
