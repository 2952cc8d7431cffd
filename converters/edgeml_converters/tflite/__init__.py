"""Our own int8 TFLite writer: QDQ ONNX in, TFLite out."""
