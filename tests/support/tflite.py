"""Small TFLite models for tests, written by LiteRT's own schema."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema


class Writer:
    """Collects tensors and operators of one graph."""

    def __init__(self):
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.operatorCodes = []
        self.model.buffers = [schema.BufferT()]
        self.graph = schema.SubGraphT()
        self.graph.name = "main"
        self.graph.tensors = []
        self.graph.operators = []
        self.model.subgraphs = [self.graph]

    def tensor(self, name, shape, dtype="float32", data=None, scale=None, zero_point=0):
        """Add a tensor; a -1 in the shape is a variable axis."""
        tensor = schema.TensorT()
        tensor.name = name
        tensor.shape = [max(n, 1) for n in shape]
        tensor.shapeSignature = list(shape) if -1 in shape else None
        tensor.type = {"float32": schema.TensorType.FLOAT32, "int8": schema.TensorType.INT8}[dtype]
        tensor.buffer = 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = [scale]
            tensor.quantization.zeroPoint = [zero_point]
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(self, code, inputs, outputs, options_type=None, options=None):
        """Add an operator."""
        entry = schema.OperatorCodeT()
        entry.builtinCode = code
        entry.deprecatedBuiltinCode = min(code, 127)
        entry.version = 1
        self.model.operatorCodes.append(entry)
        made = schema.OperatorT()
        made.opcodeIndex = len(self.model.operatorCodes) - 1
        made.inputs = inputs
        made.outputs = outputs
        if options is not None:
            made.builtinOptionsType = options_type
            made.builtinOptions = options
        self.graph.operators.append(made)

    def signature(self, inputs, outputs):
        """Give public names: name -> tensor number."""

        def mapped(names):
            rows = []
            for name, number in names.items():
                row = schema.TensorMapT()
                row.name = name
                row.tensorIndex = number
                rows.append(row)
            return rows

        made = schema.SignatureDefT()
        made.signatureKey = "serving_default"
        made.subgraphIndex = 0
        made.inputs = mapped(inputs)
        made.outputs = mapped(outputs)
        self.model.signatureDefs = [made]

    def finish(self, inputs, outputs):
        """Return the bytes of the file."""
        self.graph.inputs = inputs
        self.graph.outputs = outputs
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def mlp_tflite(weights, batch=-1, signature=True):
    """The perceptron of ``models.mlp`` as a float TFLite file; weights: w1, b1, w2, b2."""
    w1, b1, w2, b2 = (weights[name] for name in ("w1", "b1", "w2", "b2"))
    writer = Writer()
    x = writer.tensor("in:0" if signature else "x", [batch, w1.shape[0]])
    h = writer.tensor("h", [batch, w1.shape[1]])
    y = writer.tensor("out:0" if signature else "y", [batch, w2.shape[1]])
    for weight, bias, source, target, relu in ((w1, b1, x, h, True), (w2, b2, h, y, False)):
        w = writer.tensor(f"w{target}", weight.T.shape, data=weight.T)
        b = writer.tensor(f"b{target}", bias.shape, data=bias)
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = int(relu)  # NONE or RELU
        kind = schema.BuiltinOptions.FullyConnectedOptions
        code = schema.BuiltinOperator.FULLY_CONNECTED
        writer.operator(code, [source, w, b], [target], kind, options)
    if signature:
        writer.signature({"x": x}, {"y": y})
    return writer.finish([x], [y])


def relu_int8_tflite(scale=0.1, zero_point=3, shape=(1, 2, 2, 3)):
    """Relu over stored int8, one fixed batch, channels last."""
    writer = Writer()
    x = writer.tensor("x_int8", shape, "int8", scale=scale, zero_point=zero_point)
    y = writer.tensor("y_int8", shape, "int8", scale=scale, zero_point=zero_point)
    writer.operator(schema.BuiltinOperator.RELU, [x], [y])
    return writer.finish([x], [y])
