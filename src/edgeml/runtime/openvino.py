"""ONNX and OpenVINO IR models on OpenVINO.

Everything in ``ProgramOptions.extra`` is a property of OpenVINO, under its own name. Unless
``extra`` says otherwise, values are computed in float32 (``INFERENCE_PRECISION_HINT``): OpenVINO
would choose bfloat16 by itself where the processor has it, and then differ from the other
runtimes.

OpenVINO tells its maker of every import, from a thread and a process of its own, and no variable
turns that off. It does without when the package ``openvino_telemetry`` is not there; so this
module hides that package before anything here imports OpenVINO.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgeml.errors import DeviceError, ModelError, UsageError
from edgeml.runtime.base import Availability, ProgramOptions, Session
from edgeml.runtime.common import (
    PROBE_ONNX,
    CheckedSession,
    Closable,
    availability,
    check_file,
    import_failed,
    one_line,
    release_memory,
)
from edgeml.tensors import Array, TensorSpec

# None says "there is no such module" (reference of Python, "The module cache").
cast(dict[str, object], sys.modules).setdefault("openvino_telemetry", None)

_DTYPES = {
    "boolean": "bool",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
}
#: What follows the type in a name that OpenVINO gave.
_COUNTED = re.compile(r"_\d+")
#: Shapes that a session remembers.
_MOST_SHAPES = 4096
#: Devices that place a model on other devices, written ``NAME`` or ``NAME:DEVICE,DEVICE``.
_VIRTUAL = ("AUTO", "MULTI", "HETERO", "BATCH")


def _library() -> Any:
    """Import the library.

    Raises:
        MissingPackageError: It is not installed, or does not load.
    """
    try:
        import openvino
    except ImportError as error:
        raise import_failed("openvino", error) from error
    return openvino


@cache
def _core() -> Any:
    """Return the one Core of this process; making it looks for devices, which takes a while."""
    return _library().Core()


@cache
def _errors() -> tuple[type[Exception], ...]:
    """Return every exception that the library may raise; it gives them no common base."""
    from openvino import _pyopenvino as binding

    names = "GeneralFailure InitializationFailure NotImplementedFailure "
    names += "OpConversionFailure OpValidationFailure"
    own = tuple(getattr(binding, name) for name in names.split() if hasattr(binding, name))
    return (*own, RuntimeError, ValueError, TypeError, IndexError)


def _text(error: Exception) -> str:
    """Return what OpenVINO's message tells, without the source locations that it starts with."""
    lines = [line.strip() for line in str(error).splitlines()]
    noise = ("Exception from ", "Check '", "FrontEnd API failed", "Summary:")
    telling = [line for line in lines if line and not line.startswith(noise)]
    return one_line(RuntimeError(" ".join(telling))) if telling else one_line(error)


class OpenVinoRuntime:
    """The runtime ``openvino``."""

    name = "openvino"
    suffixes = (".onnx", ".xml")

    def check(self) -> Availability:
        """Tell whether it can be used here, by running a tiny model. Never raises."""

        def probe() -> tuple[str, ...]:
            core = _core()
            request = core.compile_model(
                core.read_model(PROBE_ONNX, b""), "CPU"
            ).create_infer_request()
            request.get_input_tensor(0).data[:] = [-1.0, 2.0]
            request.infer()
            result = request.get_output_tensor(0).data.tolist()
            if result != [0.0, 2.0]:
                raise DeviceError(f"the probe gave {result}, expected [0.0, 2.0]")
            return tuple(core.available_devices)

        return availability(lambda: str(_library().__version__).split("-")[0], probe)

    def prepare(self, model: Path, options: ProgramOptions) -> OpenVinoProgram:
        """Read and compile a model.

        Args:
            model: A file ``.onnx``, or ``.xml`` with its ``.bin`` beside it.
            options: ``device`` is ``CPU``, ``GPU.0``, ``NPU``, ``AUTO:GPU,CPU``, ...

        Raises:
            MissingPackageError: The library is not installed.
            ModelError: The file is broken, or holds what the runtime cannot run.
            DeviceError: The device is not there.
            UsageError: A property is unknown, or has a wrong value.
        """
        _library()
        check_file(model, self.suffixes, self.name)
        device = options.device or "CPU"
        _check_device(device)
        network = _read(model)
        try:
            compiled = _core().compile_model(network, device, _properties(device, options))
        except _errors() as error:
            text = str(error)
            if "Unsupported property" in text or "Wrong value" in text:
                raise UsageError(f"openvino refused an option: {_text(error)}") from error
            if device != "CPU" and "Cannot load library" in text:
                raise DeviceError(f"openvino's '{device}' failed: {_text(error)}") from error
            raise ModelError(f"openvino cannot compile '{model.name}': {_text(error)}") from error
        placement = ",".join(compiled.get_property("EXECUTION_DEVICES"))
        virtual = device.split(":")[0] in _VIRTUAL
        if not virtual and placement.split(".")[0] != device.split(".")[0]:
            raise DeviceError(f"'{model.name}' was placed on {placement}, expected {device}")
        return OpenVinoProgram(compiled, network, placement, model.name)


def _check_device(device: str) -> None:
    """Check that every device that a name mentions is there.

    Raises:
        DeviceError: One is not.
    """
    head, _, rest = device.partition(":")
    wanted = [name for name in rest.split(",") if name] if head in _VIRTUAL else [device]
    offered = _core().available_devices
    for name in wanted:
        if not any(have == name or have.startswith(f"{name}.") for have in offered):
            raise DeviceError(
                f"openvino has no device '{name}' here", f"offered: {', '.join(offered)}"
            )


def _properties(device: str, options: ProgramOptions) -> dict[str, str]:
    """Return the properties to compile with."""
    properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if device == "CPU":
        properties["INFERENCE_NUM_THREADS"] = str(options.threads)
        properties["NUM_STREAMS"] = "1"
        # Pinned, two processes with one thread each chose the same core: 3,400 runs in 2 s each
        # instead of 7,700. A device runs one process per model.
        properties["ENABLE_CPU_PINNING"] = "NO"
    if options.cache is not None:
        options.cache.mkdir(parents=True, exist_ok=True)
        properties["CACHE_DIR"] = str(options.cache)
    properties.update(options.extra)
    return properties


def _read(model: Path) -> Any:
    """Read a model by the frontend of its ending.

    ``Core.read_model`` would try every frontend on a broken file and let each log its failure.

    Raises:
        ModelError: It cannot be read.
    """
    try:
        if model.suffix.lower() == ".onnx":
            from openvino.frontend import FrontEndManager

            frontend = FrontEndManager().load_by_framework("onnx")
            network = _library().Model(frontend.convert(frontend.load(str(model))))
        else:
            with model.open("rb") as file:
                start = file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t")
            if not start.startswith((b"<?xml", b"<net")):
                raise ModelError(f"'{model.name}' is not an OpenVINO model: it is not XML")
            network = _core().read_model(str(model))
    except _errors() as error:
        raise ModelError(
            f"openvino cannot read '{model.name}': {_text(error)}",
            "check the file with 'edgeml inspect'",
        ) from error
    if not network.outputs:
        raise ModelError(f"'{model.name}' has no outputs: it is empty or cut off")
    return network


def save_ir(model: Path, target: Path, *, half: bool = False) -> str:
    """Write an ONNX model as OpenVINO's intermediate representation, read as ``prepare`` reads it.

    Args:
        model: A file ``.onnx``.
        target: A file ``.xml``; its ``.bin`` goes beside it.
        half: Store float32 weights in float16.

    Returns:
        The library's version.

    Raises:
        MissingPackageError: The library is not installed.
        ModelError: The model cannot be read or written.
    """
    library = _library()
    network = _read(model)
    for number, node in enumerate(network.get_ordered_ops()):
        # OpenVINO counts through a whole process what it names by itself: the same model would
        # give other bytes the second time.
        if _COUNTED.fullmatch(node.friendly_name.removeprefix(node.get_type_name())):
            node.friendly_name = f"{node.get_type_name()}_{number}"
    try:
        library.save_model(network, str(target), compress_to_fp16=half)
    except _errors() as error:
        raise ModelError(f"openvino cannot write '{target.name}': {_text(error)}") from error
    return str(library.__version__).split("-")[0]


def _spec(port: Any, what: str, model: str) -> TensorSpec:
    """Return the specification of a port of the model as it was read.

    A port may carry many names, because operations were removed; the one that the file gave it is
    also part of its node's name.

    Raises:
        ModelError: It has a type that NumPy has not.
    """
    own = port.node.friendly_name.removesuffix("/sink_port_0")
    names = sorted(port.names)
    name = own if own in names or not names else names[0]
    kind = port.element_type.get_type_name()
    if kind not in _DTYPES:
        raise ModelError(f"{what} '{name}' of '{model}' has type {kind}, which cannot be used")
    partial = port.partial_shape
    if partial.rank.is_dynamic:
        if what == "input":
            raise ModelError(f"input '{name}' of '{model}' has an unknown number of axes")
        return TensorSpec(name, _DTYPES[kind], ())
    shape = tuple(n.get_length() if n.is_static else -1 for n in partial)
    return TensorSpec(name, _DTYPES[kind], shape)


class OpenVinoProgram(Closable):
    """A compiled model."""

    runtime = "openvino"

    def __init__(self, compiled: Any, network: Any, placement: str, model: str) -> None:
        """Take the compiled model, the model as it was read, and where it was placed."""
        super().__init__()
        self.placement: str = placement
        self.inputs: tuple[TensorSpec, ...] = tuple(
            _spec(port, "input", model) for port in network.inputs
        )
        self.outputs: tuple[TensorSpec, ...] = tuple(
            _spec(port, "output", model) for port in network.outputs
        )
        self._compiled = compiled

    def session(self) -> Session:
        """Open one stream.

        Raises:
            DeviceError: The program is closed.
        """
        if self._closed:
            raise DeviceError("the program is closed")
        request = self._compiled.create_infer_request()
        return OpenVinoSession(request, self.inputs, self.outputs)

    def close(self) -> None:
        """Forget the model; its memory goes when the last session is closed."""
        if self.close_once():
            self._compiled = None
            release_memory()


class OpenVinoSession(CheckedSession):
    """One stream of runs: one request, whose tensors are used again and again.

    Calling a compiled model directly goes through conversions that cost more than a small model.
    """

    def __init__(
        self, request: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        """Take a fresh request and the program's specifications."""
        super().__init__(inputs)
        self._request = request
        self._outputs = [spec.name for spec in outputs]
        self._views: dict[str, Array] = {}
        self._proven: set[tuple[tuple[int, ...], ...]] = set()

    def execute(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run on a feed that is known to fit; see ``TrustingSession``."""
        if self._closed:
            raise DeviceError("the session is closed")
        try:
            for index, spec in enumerate(self._specs):
                self._fill(index, spec.name, feed[spec.name])
            self._infer(tuple(feed[spec.name].shape for spec in self._specs))
            return {
                name: np.array(self._request.get_output_tensor(index).data)
                for index, name in enumerate(self._outputs)
            }
        except _errors() as error:
            raise DeviceError(f"openvino failed in a run: {_text(error)}") from error

    def _infer(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Run the filled request.

        With one thread, OpenVINO's synchronous call loses the error of an operation that cannot
        take a shape, and goes on with memory that is not its own (2026.4.1; a Reshape is enough).
        The asynchronous call raises it, but is several times slower for a small model: so it is
        used for shapes that did not run yet.
        """
        if shapes in self._proven:
            self._request.infer()
            return
        self._request.start_async()
        self._request.wait()
        if len(self._proven) >= _MOST_SHAPES:
            self._proven.clear()
        self._proven.add(shapes)

    def _fill(self, index: int, name: str, array: Array) -> None:
        """Copy an array into the request's own tensor, which is given a new shape if it must."""
        view = self._views.get(name)
        if view is None or view.shape != array.shape:
            tensor = self._request.get_input_tensor(index)
            tensor.shape = array.shape
            view = self._views[name] = tensor.data
        view[...] = array

    def close(self) -> None:
        """Let go of the request."""
        if self.close_once():
            self._views.clear()
            self._request = None
