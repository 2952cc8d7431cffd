"""ONNX models on ONNX Runtime.

Options in ``ProgramOptions.extra``: ``graph_optimization_level`` (``disable``, ``basic``,
``extended``, ``all``), ``enable_cpu_mem_arena`` and ``enable_mem_pattern`` (``0`` or ``1``),
``provider.<name>`` for an option of the provider, and any session configuration entry by its own
name, which always holds a dot (``session.…``, ``optimization.…``, ``ep.…``).

Threads do not spin between runs: with a call every 20 ms, spinning was measured to cost six to
seven times the processor time of the model itself. ONNX Runtime replaces a provider that does not
start by the CPU and only warns; here that is an error, because a placement is a claim.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeml.errors import DeviceError, ModelError, RequestError, UsageError, nearest
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

logger = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
#: Severities of its log. What fails on the CPU comes as an exception, which says it in one line;
#: why another provider did not start is only in the log.
_ERRORS, _FATAL = 3, 4

_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": "object",
}
_LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_SWITCHES = ("enable_cpu_mem_arena", "enable_mem_pattern")


def _library() -> Any:
    """Import the library, quiet and without telemetry.

    Raises:
        MissingPackageError: It is not installed, or does not load.
    """
    # The call below comes too late for the session file that the import would leave in /tmp.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise import_failed("onnxruntime", error) from error
    onnxruntime.disable_telemetry_events()
    onnxruntime.set_default_logger_severity(_ERRORS)
    return onnxruntime


def _state_errors(*names: str) -> tuple[type[Exception], ...]:
    """Return exception classes of the library by name; it gives them no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(getattr(state, name) for name in names if hasattr(state, name))


def _all_errors() -> tuple[type[Exception], ...]:
    """Return every exception that the library may raise from a load or a run."""
    names = (
        "Fail InvalidArgument NoSuchFile NoModel EngineError RuntimeException InvalidProtobuf "
        "NotImplemented InvalidGraph EPFail ModelLoadCanceled ModelRequiresCompilation NotFound "
        "DeviceReset ModelLoaded"
    )
    return (*_state_errors(*names.split()), RuntimeError, ValueError, TypeError)


def _text(error: Exception) -> str:
    """Return the library's message without its ``[ONNXRuntimeError] : 7 : NAME :`` prefix."""
    text = one_line(error)
    if text.startswith("[ONNXRuntimeError]"):
        return text.split(" : ", 3)[-1]
    return text


class OnnxRuntime:
    """The runtime ``onnxruntime``."""

    name = "onnxruntime"
    suffixes = (".onnx", ".ort")

    def check(self) -> Availability:
        """Tell whether it can be used here, by running a tiny model. Never raises."""

        def probe() -> tuple[str, ...]:
            library = _library()
            session = library.InferenceSession(
                PROBE_ONNX, _session_options(ProgramOptions()), providers=[CPU]
            )
            import numpy as np

            (result,) = session.run(["y"], {"x": np.array([-1.0, 2.0], np.float32)})
            if result.tolist() != [0.0, 2.0]:
                raise DeviceError(f"the probe gave {result.tolist()}, expected [0.0, 2.0]")
            return tuple(library.get_available_providers())

        return availability(lambda: str(_library().__version__), probe)

    def prepare(self, model: Path, options: ProgramOptions) -> OnnxProgram:
        """Load and optimise a model.

        Args:
            model: A file ``.onnx`` or ``.ort``.
            options: ``device`` is a provider, for example ``CUDAExecutionProvider``.

        Raises:
            MissingPackageError: The library is not installed.
            ModelError: The file is broken, or holds what the runtime cannot run.
            DeviceError: The provider is not there, or did not start.
            UsageError: An option is unknown.
        """
        library = _library()
        check_file(model, self.suffixes, self.name)
        provider = options.device or CPU
        offered = library.get_available_providers()
        if provider not in offered:
            raise DeviceError(
                f"onnxruntime {library.__version__} has no provider '{provider}'",
                f"offered: {', '.join(offered)}",
            )
        if provider in (TENSORRT, CUDA) and hasattr(library, "preload_dlls"):
            with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
                library.preload_dlls(msvc=False)  # CUDA libraries that pip brought
        chain = [(provider, _provider_options(provider, options))]
        # What TensorRT does not take, CUDA may: both are the device that was asked for.
        chain += [(CUDA, {})] if provider == TENSORRT and CUDA in offered else []
        chain += [(CPU, {})] if provider != CPU else []
        try:
            session = library.InferenceSession(
                str(model),
                _session_options(options),
                providers=[name for name, _ in chain],
                provider_options=[settings for _, settings in chain],
                enable_fallback=0,
            )
        except _state_errors("EPFail", "DeviceReset", "EngineError") as error:
            raise DeviceError(
                f"{provider} failed to load '{model.name}': {_text(error)}"
            ) from error
        except _all_errors() as error:
            raise ModelError(
                f"onnxruntime cannot load '{model.name}': {_text(error)}",
                "check the file with 'edgeml inspect'",
            ) from error
        _check_placement(session, provider, model.name)
        return OnnxProgram(session, provider, model.name)


def save_optimised(model: Path, target: Path, kind: str) -> str:
    """Write what the library makes of a model at its *extended* level.

    Args:
        model: A file ``.onnx``.
        target: The file to write.
        kind: ``ONNX`` or ``ORT``.

    Returns:
        The library's version.

    Raises:
        MissingPackageError: The library is not installed.
        ModelError: It cannot load the model, or wrote nothing.
    """
    library = _library()
    level = {"graph_optimization_level": "extended", "session.save_model_format": kind}
    options = _session_options(ProgramOptions(extra=level))
    options.optimized_model_filepath = str(target)
    try:
        library.InferenceSession(str(model), options, providers=[CPU])
    except _all_errors() as error:
        raise ModelError(f"onnxruntime cannot optimise the model: {_text(error)}") from error
    if not target.is_file():
        raise ModelError(f"onnxruntime wrote no '{target.name}' and said nothing")
    return str(library.__version__)


def _check_placement(session: Any, provider: str, model: str) -> None:
    """Check that a provider really took the model, or at least a part of it.

    A provider that did not start is left out of the session's list. One that started may still
    have left every node to the CPU; newer versions of the library tell which nodes it took.

    Raises:
        DeviceError: It did not.
    """
    hint = "check the driver and its libraries with 'edgeml doctor'"
    if session.get_providers()[0] != provider:
        raise DeviceError(
            f"'{model}' was placed on {session.get_providers()[0]}, expected {provider}: "
            "the provider is installed but did not start here",
            hint,
        )
    if provider == CPU or not hasattr(session, "get_provider_graph_assignment_info"):
        return
    taken: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        taken[part.ep_name] = taken.get(part.ep_name, 0) + len(part.get_nodes())
    if taken and not taken.get(provider):
        raise DeviceError(
            f"'{model}' was placed on {', '.join(taken)}, expected {provider}: "
            "the provider took no node of the model",
            hint,
        )
    logger.info("%s: nodes placed on %s", model, taken)


def _session_options(options: ProgramOptions) -> Any:
    """Return the library's options.

    Raises:
        UsageError: An option is unknown, or has a value that it cannot have.
    """
    library = _library()
    made = library.SessionOptions()
    made.log_severity_level = _FATAL if options.device in ("", CPU) else _ERRORS
    made.intra_op_num_threads = options.threads
    made.inter_op_num_threads = 1
    entries = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
    if options.device not in ("", CPU):
        entries["session.record_ep_graph_assignment_info"] = "1"
    for key, value in options.extra.items():
        if key == "graph_optimization_level":
            if value not in _LEVELS:
                raise UsageError(f"{key} is '{value}', expected {', '.join(_LEVELS)}")
            level = getattr(library.GraphOptimizationLevel, _LEVELS[value])
            made.graph_optimization_level = level
        elif key in _SWITCHES:
            if value not in ("0", "1"):
                raise UsageError(f"{key} is '{value}', expected 0 or 1")
            setattr(made, key, value == "1")
        elif "." not in key:
            known = ["graph_optimization_level", *_SWITCHES]
            raise UsageError(f"unknown option '{key}' of onnxruntime", nearest(key, known))
        elif not key.startswith("provider."):
            entries[key] = value
    for key, value in entries.items():
        made.add_session_config_entry(key, value)
    return made


def _provider_options(provider: str, options: ProgramOptions) -> dict[str, str]:
    """Return the options that are for the provider, under the provider's own names.

    TensorRT takes minutes to build an engine: with a cache, once per device.
    """
    prefix = "provider."
    made: dict[str, str] = {}
    if provider == TENSORRT and options.cache is not None:
        options.cache.mkdir(parents=True, exist_ok=True)
        for kind in ("engine", "timing"):
            made |= {f"trt_{kind}_cache_enable": "1", f"trt_{kind}_cache_path": str(options.cache)}
    extra = options.extra.items()
    return made | {k.removeprefix(prefix): v for k, v in extra if k.startswith(prefix)}


def _spec(node: Any, what: str, model: str) -> TensorSpec:
    """Return the specification of an input or output.

    Raises:
        ModelError: It is not a tensor of a type that NumPy has.
    """
    if node.type not in _DTYPES:
        raise ModelError(
            f"{what} '{node.name}' of '{model}' is a {node.type}; only plain tensors can be used",
            "export the model with tensor outputs (for scikit-learn: zipmap=False)",
        )
    shape = tuple(n if isinstance(n, int) and n >= 0 else -1 for n in node.shape)
    return TensorSpec(node.name, _DTYPES[node.type], shape)


class OnnxProgram(Closable):
    """A loaded model. ``InferenceSession.run`` may be called by many threads at once."""

    runtime = "onnxruntime"

    def __init__(self, session: Any, placement: str, model: str) -> None:
        """Take a loaded session and the provider that really runs it."""
        super().__init__()
        self.placement: str = placement
        self.inputs: tuple[TensorSpec, ...] = tuple(
            _spec(node, "input", model) for node in session.get_inputs()
        )
        self.outputs: tuple[TensorSpec, ...] = tuple(
            _spec(node, "output", model) for node in session.get_outputs()
        )
        self._session = session

    def session(self) -> Session:
        """Open one stream.

        Raises:
            DeviceError: The program is closed.
        """
        if self._closed:
            raise DeviceError("the program is closed")
        return OnnxSession(self._session, self.inputs, self.outputs)

    def close(self) -> None:
        """Forget the model; its memory goes when the last session is closed."""
        if self.close_once():
            self._session = None
            release_memory()


class OnnxSession(CheckedSession):
    """One stream of runs on ONNX Runtime."""

    def __init__(
        self, session: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        """Take the shared session and the program's specifications."""
        super().__init__(inputs)
        self._session = session
        self._names = [spec.name for spec in outputs]
        self._invalid = _state_errors("InvalidArgument")
        self._errors = _all_errors()

    def execute(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run on a feed that is known to fit; see ``TrustingSession``."""
        if self._closed:
            raise DeviceError("the session is closed")
        try:
            results = self._session.run(self._names, dict(feed))
        except self._invalid as error:
            raise RequestError(f"onnxruntime refused the request: {_text(error)}") from error
        except self._errors as error:
            raise DeviceError(f"onnxruntime failed in a run: {_text(error)}") from error
        return dict(zip(self._names, results, strict=True))

    def close(self) -> None:
        """Let go of the model."""
        if self.close_once():
            self._session = None
