"""The quantiser: float model, calibration data and a placement -> 8-bit QDQ model.

``prepare`` makes a model ready, ``placement`` says which tensors are stored in 8 bits for a
runtime, ``calibrate`` finds their ranges, and ``insert`` writes QuantizeLinear and
DequantizeLinear nodes. Each part can be used on its own.
"""
