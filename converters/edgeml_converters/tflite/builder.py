"""Builds a TFLite flatbuffer: tensors, buffers, operators, one signature.

The schema's classes come from LiteRT's own package; no TensorFlow is needed. Operators get the
lowest version that carries the int8 kernel (tensorflow/compiler/mlir/lite/tools/versioning), so
that old interpreters and vendor compilers read the file.
"""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np

from edgeml.tensors import Array

#: Builtin operator -> lowest version with an int8 kernel.
VERSIONS: dict[str, int] = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEQUANTIZE": 2,
    "FULLY_CONNECTED": 4,
    "LOGISTIC": 2,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "MUL": 2,
    "PAD": 2,
    "PADV2": 2,
    "QUANTIZE": 1,
    "RELU": 2,
    "RELU6": 2,
    "RESHAPE": 1,
    "SOFTMAX": 2,
    "SPACE_TO_DEPTH": 2,
    "SUB": 3,
    "TANH": 2,
    "TRANSPOSE": 2,
}


class Builder:
    """Collects one subgraph, then packs it."""

    def __init__(self) -> None:
        """Load the schema and start with the empty buffer that the format wants first."""
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self._buffers: list[Any] = [schema.BufferT()]
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: dict[str, int] = {}

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        *,
        scale: Array | None = None,
        zero_point: Array | None = None,
        axis: int = 0,
        data: Array | None = None,
    ) -> int:
        """Add a tensor and return its index.

        Args:
            name: Its name.
            shape: Its static shape, as stored.
            dtype: ``int8``, ``int32`` or ``float32``.
            scale: One or one per channel; None when it is not quantised.
            zero_point: As many as there are scales.
            axis: The channel axis when there are several scales.
            data: Its values when it is constant.
        """
        tensor = self.schema.TensorT()
        tensor.name = name
        tensor.shape = np.asarray(shape, np.int32)
        tensor.type = getattr(self.schema.TensorType, dtype.upper())
        if scale is not None and zero_point is not None:
            quantization = self.schema.QuantizationParametersT()
            quantization.scale = np.asarray(scale, np.float32).ravel()
            quantization.zeroPoint = np.asarray(zero_point, np.int64).ravel()
            quantization.quantizedDimension = axis
            tensor.quantization = quantization
        if data is not None:
            buffer = self.schema.BufferT()
            little = np.ascontiguousarray(data, np.dtype(dtype).newbyteorder("<"))
            buffer.data = np.frombuffer(little.tobytes(), np.uint8)
            self._buffers.append(buffer)
            tensor.buffer = len(self._buffers) - 1
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def integers(self, name: str, values: Array) -> int:
        """Add a constant int32 tensor (shapes, axes, paddings) and return its index."""
        data = np.asarray(values, np.int32)
        return self.tensor(name, data.shape, "int32", data=data)

    def operator(
        self,
        builtin: str,
        inputs: list[int],
        outputs: list[int],
        options_type: str = "",
        **options: Any,
    ) -> None:
        """Add an operator; ``options`` are set on the schema's options table of that name."""
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self._code(builtin)
        operator.inputs = np.asarray(inputs, np.int32)
        operator.outputs = np.asarray(outputs, np.int32)
        if options_type:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options_type)
            table = getattr(self.schema, options_type + "T")()
            for key, value in options.items():
                setattr(table, key, value)
            operator.builtinOptions = table
        self._operators.append(operator)

    def _code(self, builtin: str) -> int:
        """Return the index of an operator code, adding it when it is new."""
        if builtin not in self._codes:
            self._codes[builtin] = len(self._codes)
        return self._codes[builtin]

    def pack(self, inputs: dict[str, int], outputs: dict[str, int]) -> bytes:
        """Return the file.

        Args:
            inputs: Public name -> tensor index.
            outputs: Public name -> tensor index.
        """
        schema = self.schema
        graph = schema.SubGraphT()
        graph.name = "main"
        graph.tensors = self._tensors
        graph.operators = self._operators
        graph.inputs = np.asarray(list(inputs.values()), np.int32)
        graph.outputs = np.asarray(list(outputs.values()), np.int32)
        signature = schema.SignatureDefT()
        signature.signatureKey = "serving_default"
        signature.inputs = [self._named(*item) for item in inputs.items()]
        signature.outputs = [self._named(*item) for item in outputs.items()]
        model = schema.ModelT()
        model.version = 3
        model.description = "edgeml"
        model.operatorCodes = [self._operator_code(builtin) for builtin in self._codes]
        model.subgraphs = [graph]
        model.buffers = self._buffers
        model.signatureDefs = [signature]
        packer = flatbuffers.Builder(1 << 16)
        packer.Finish(model.Pack(packer), file_identifier=b"TFL3")
        return bytes(packer.Output())

    def _named(self, name: str, index: int) -> Any:
        """Return an entry of the signature."""
        entry = self.schema.TensorMapT()
        entry.name = name
        entry.tensorIndex = index
        return entry

    def _operator_code(self, builtin: str) -> Any:
        """Return the operator code; codes above 126 exist only in the newer field."""
        code = self.schema.OperatorCodeT()
        number = getattr(self.schema.BuiltinOperator, builtin)
        code.builtinCode = number
        code.deprecatedBuiltinCode = min(number, 127)
        code.version = VERSIONS[builtin]
        return code
