"""What a runtime really executes, as plain values: its own graph, and the time of each node.

onnxruntime writes the graph that it made of a model, and a profile. OpenVINO tells its nodes, their
kernels and their time when asked. Everything here is for reports and searches; a device that
serves a model never calls it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgeml.errors import DeviceError, ModelError
from edgeml.runtime import onnxruntime as ort
from edgeml.runtime import openvino as ov
from edgeml.runtime.base import ProgramOptions
from edgeml.runtime.common import check_file, one_line
from edgeml.tensors import Array

#: Runs that are not counted: kernels are made and memory is touched for the first time in them.
WARM_UP = 3
#: Weights of at least this many bytes stand beside the graph that onnxruntime writes.
_LARGE = "1024"
_KERNEL = "_kernel_time"


class OpenVinoNode(msgspec.Struct, frozen=True):
    """One node of OpenVINO's executed graph.

    Attributes:
        name: Its name; unique.
        kind: For example ``Convolution`` or ``FullyConnected``.
        kernel: The implementation, for example ``brgconv_avx512_I8``.
        origin: Names of the model's operations that it holds.
        inputs: Names of the nodes that it reads; constants are among them.
        output: Element types of its outputs, for example ``("u8",)``.
        micros: Mean time of one run in microseconds, in whole ones; 0 when it was not run.
    """

    name: str
    kind: str
    kernel: str
    origin: tuple[str, ...]
    inputs: tuple[str, ...]
    output: tuple[str, ...]
    micros: float = 0.0


def optimise_onnx(model: Path, out: Path, options: ProgramOptions) -> None:
    """Write the graph that onnxruntime makes of a model, for this machine only.

    Args:
        model: The model.
        out: Where the graph goes; large weights go beside it as ``<out>.data``.
        options: As for ``OnnxRuntime.prepare``.

    Raises:
        ModelError: The model does not load.
    """
    library = ort._library()
    check_file(model, (".onnx",), "onnxruntime")
    settings = ort._session_options(options)
    settings.optimized_model_filepath = str(out)
    prefix = "session.optimized_model_external_initializers_"
    settings.add_session_config_entry(f"{prefix}file_name", f"{out.name}.data")
    settings.add_session_config_entry(f"{prefix}min_size_in_bytes", _LARGE)
    _open(library, model, settings)


def _open(library: Any, model: Path, settings: Any) -> Any:
    """Open a session on the CPU."""
    try:
        return library.InferenceSession(str(model), settings, providers=[ort.CPU])
    except ort._all_errors() as error:
        raise ModelError(f"onnxruntime cannot load '{model.name}': {ort._text(error)}") from error


class _Event(msgspec.Struct):
    """One line of onnxruntime's profile."""

    cat: str
    name: str
    dur: float


def profile_onnx(
    model: Path, feed: Mapping[str, Array], options: ProgramOptions, runs: int
) -> dict[str, tuple[float, ...]]:
    """Return the time of each node in each run, in microseconds, in the order of execution.

    Args:
        model: The model; its nodes should have names.
        feed: What is run.
        options: As for ``OnnxRuntime.prepare``.
        runs: How many are counted.

    Raises:
        ModelError: The model does not load.
        DeviceError: A run failed.
    """
    library = ort._library()
    settings = ort._session_options(options)
    settings.enable_profiling = True
    settings.profile_file_prefix = str(model.parent / f"{model.stem}-profile")
    session = _open(library, model, settings)
    try:
        for _ in range(WARM_UP + runs):
            session.run(None, dict(feed))
    except ort._all_errors() as error:
        raise DeviceError(f"onnxruntime failed in a run: {ort._text(error)}") from error
    finally:
        profile = Path(session.end_profiling())
    found: dict[str, list[float]] = {}
    try:
        with profile.open("rb") as lines:
            for line in lines:
                if line.startswith(b"{"):
                    event = msgspec.json.decode(line.rstrip().rstrip(b","), type=_Event)
                    if event.cat == "Node" and event.name.endswith(_KERNEL):
                        found.setdefault(event.name.removesuffix(_KERNEL), []).append(event.dur)
    except msgspec.DecodeError as error:
        raise DeviceError(f"onnxruntime's profile cannot be read: {one_line(error)}") from error
    finally:
        profile.unlink(missing_ok=True)
    # A node inside a loop runs several times in a run: its times in one run are added up.
    return {name: _per_run(times, WARM_UP + runs)[WARM_UP:] for name, times in found.items()}


def _per_run(times: list[float], runs: int) -> tuple[float, ...]:
    """Fold the times of one node to one per run; the mean where they do not divide."""
    each, rest = divmod(len(times), runs)
    if rest or not each:
        return (sum(times) / runs,) * runs
    return tuple(sum(times[i * each : (i + 1) * each]) for i in range(runs))


def explain_openvino(
    model: Path, options: ProgramOptions, feed: Mapping[str, Array] | None = None, runs: int = 0
) -> tuple[OpenVinoNode, ...]:
    """Return the nodes of the graph that OpenVINO executes on the CPU, constants left out.

    Its counters are means over all runs in whole microseconds; the warm-up is taken out of them.

    Args:
        model: ``.onnx`` or ``.xml``.
        options: As for ``OpenVinoRuntime.prepare``.
        feed: What is run, by name; nothing is run without it.
        runs: How many are counted.

    Raises:
        ModelError: The model does not load.
        DeviceError: A run failed.
    """
    ov._library()
    check_file(model, ov.OpenVinoRuntime.suffixes, "openvino")
    network = ov._read(model)
    properties = {**ov._properties("CPU", options), "PERF_COUNT": "YES"}
    try:
        compiled = ov._core().compile_model(network, "CPU", properties)
        micros = _openvino_times(compiled, network, feed, runs) if feed and runs else {}
        nodes = compiled.get_runtime_model().get_ordered_ops()
        return tuple(_node(op, micros) for op in nodes if _told(op, "layerType") != "Const")
    except ov._errors() as error:
        raise ModelError(f"openvino cannot run '{model.name}': {ov._text(error)}") from error


def _openvino_times(
    compiled: Any, network: Any, feed: Mapping[str, Array], runs: int
) -> dict[str, float]:
    """Return node -> mean time of a run in microseconds, without the warm-up."""
    request = compiled.create_infer_request()
    for index, port in enumerate(network.inputs):
        array = feed[ov._spec(port, "input", "model").name]
        tensor = request.get_input_tensor(index)
        tensor.shape = array.shape
        tensor.data[...] = array
    totals: list[dict[str, float]] = []
    for count in (WARM_UP, runs):
        for _ in range(count):
            request.start_async()
            request.wait()
        done = WARM_UP if not totals else WARM_UP + runs
        totals.append(
            {p.node_name: p.real_time.total_seconds() * 1e6 * done for p in request.profiling_info}
        )
    return {name: max(total - totals[0].get(name, 0.0), 0.0) / runs
            for name, total in totals[1].items()}  # fmt: skip


def _told(op: Any, key: str) -> str:
    """Return what a node of the executed graph tells about itself."""
    info = op.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""


def _node(op: Any, micros: Mapping[str, float]) -> OpenVinoNode:
    name = op.friendly_name
    inputs = [op.input_value(i).get_node().friendly_name for i in range(op.get_input_size())]
    origin = [part for part in _told(op, "originalLayersNames").split(",") if part]
    return OpenVinoNode(
        name,
        _told(op, "layerType"),
        _told(op, "primitiveType"),
        tuple(origin),
        tuple(inputs),
        tuple(_told(op, "outputPrecisions").split(",")),
        micros.get(name, 0.0),
    )
