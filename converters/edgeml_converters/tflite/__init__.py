"""Our own int8 TFLite writer: QDQ ONNX in, TFLite out."""

from edgeml_converters.tflite.writer import TfliteFile, write

__all__ = ["TfliteFile", "write"]
