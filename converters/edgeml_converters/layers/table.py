"""One row for each layer of a winner: in how many bits it runs, how exact and how fast it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from edgeml.tensors import Array, TensorSpec
from edgeml_converters import samples
from edgeml_converters.layers.executed import executed
from edgeml_converters.layers.graph import WEIGHTED
from edgeml_converters.layers.latency import charge
from edgeml_converters.layers.sqnr import per_tensor
from edgeml_converters.results import Layer

#: Other operators than products are listed when they take at least this share of the time.
_SHARE = 0.02
_RUNS, _SAMPLES = 12, 8


def layer_table(
    source: onnx.ModelProto,
    source_file: Path,
    file: Path,
    runtime: str,
    options: Mapping[str, str],
    inputs: tuple[TensorSpec, ...],
    calibration: Mapping[str, Array],
    threads: int = 1,
) -> tuple[Layer, ...]:
    """Return the layers of a file that was made of a source, in the order of the source.

    Listed are the products with stored weights, and what else takes a good part of the time.
    Times are medians of a profiled run, in which each operator is a little slower than without.

    Args:
        source: The model as it came; its nodes get names here when they have none.
        source_file: Its file; timed on onnxruntime in float.
        file: What it became, an ONNX file.
        runtime: ``onnxruntime`` or ``openvino``: what runs the file.
        options: Of the runtime.
        inputs: The public contract.
        calibration: Input name -> array, samples on axis 0.
        threads: Of every run.

    Raises:
        ModelError: A file does not load.
        DeviceError: A run failed.
    """
    for index, node in enumerate(source.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    feed = {spec.name: _one_run(spec, calibration[spec.name]) for spec in inputs}
    before = charge(executed(source_file, "onnxruntime", threads, {}, feed, _RUNS), source)
    nodes = executed(file, runtime, threads, options, feed, _RUNS)
    after = charge(nodes, source)
    integer = charge([node for node in nodes if node.int8], source)
    product = onnx.load(file)
    noise = {one.node: one.sqnr_db
             for one in per_tensor(source, product, calibration, _SAMPLES, threads)}  # fmt: skip
    total = sum(after.values()) or 1.0
    stored = {tensor.name for tensor in source.graph.initializer}
    rows = []
    for node in source.graph.node:
        weighted = node.op_type in WEIGHTED and any(name in stored for name in node.input[1:])
        share = after.get(node.name, 0.0) / total
        if weighted or share >= _SHARE:
            rows.append(
                Layer(
                    name=node.name,
                    op=node.op_type,
                    precision="int8" if node.name in integer else "float",
                    weighted=weighted,
                    sqnr_db=noise.get(node.name),
                    source_us=before.get(node.name),
                    latency_us=after.get(node.name),
                    share=round(share, 4),
                )
            )
    return tuple(rows)


def portable_table(
    source: onnx.ModelProto,
    made: onnx.ModelProto,
    calibration: Mapping[str, Array],
    threads: int = 1,
) -> tuple[Layer, ...]:
    """Return the products of a source in the order of the source, without times.

    For files whose runtime tells nothing of its layers: TFLite files are written from a quantised
    ONNX model, in which every product between QuantizeLinear and DequantizeLinear is one in 8 bits.

    Args:
        source: The model as it came; its nodes get names here when they have none.
        made: The quantised model that the file was written from.
        calibration: Input name -> array, samples on axis 0.
        threads: Of every run.

    Raises:
        ModelError: A model does not load.
    """
    for index, node in enumerate(source.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    noise = per_tensor(source, made, calibration, _SAMPLES, threads)
    by_node = {one.node: one.sqnr_db for one in noise}
    rounded = {o for n in made.graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    integer = {
        name
        for node in made.graph.node
        if node.op_type in WEIGHTED and all(name in rounded for name in node.input[:2])
        for name in (node.name, *node.output)
    }
    stored = {tensor.name for tensor in source.graph.initializer}
    return tuple(
        Layer(
            name=node.name,
            op=node.op_type,
            precision="int8" if integer & {node.name, *node.output} else "float",
            weighted=True,
            sqnr_db=by_node.get(node.name),
            source_us=None,
            latency_us=None,
            share=0.0,
        )
        for node in source.graph.node
        if node.op_type in WEIGHTED and any(name in stored for name in node.input[1:])
    )


def _one_run(spec: TensorSpec, rows: Array) -> Array:
    """Return what one run takes of an input."""
    return rows[: samples.per_run(spec)] if spec.shape else rows[0]
