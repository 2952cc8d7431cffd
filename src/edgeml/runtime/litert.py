"""TFLite models on LiteRT, or on the older tflite-runtime behind the same adapter.

An import proves nothing here: tflite-runtime imports under NumPy 2 and then cannot build an
interpreter. So a library counts only when a tiny model ran on it. The specifications show the
types in the file (``int8`` where the file holds int8); ``edgeml.runtime.bind`` makes the public
contract of a bundle out of it. There are no options: ``ProgramOptions.extra`` must be empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeml.errors import (
    DeviceError,
    MissingPackageError,
    ModelError,
    RequestError,
    UsageError,
)
from edgeml.plugins import missing
from edgeml.runtime.base import Availability, ProgramOptions, Session
from edgeml.runtime.common import (
    PROBE_TFLITE,
    CheckedSession,
    Closable,
    availability,
    check_file,
    import_failed,
    one_line,
    release_memory,
)
from edgeml.runtime.quiet import without_lines
from edgeml.tensors import DATATYPES, Array, TensorSpec

#: It says this at every load, whatever the level of its log.
_CHATTER = b"INFO: Created TensorFlow Lite"
_ERRORS = (RuntimeError, ValueError, TypeError, SystemError)


class _Library(NamedTuple):
    """A library that has an Interpreter."""

    name: str
    version: str
    interpreter: Any


def _candidates() -> list[_Library]:
    """Return the libraries that can be imported, best first.

    Raises:
        MissingPackageError: None can.
    """
    found: list[_Library] = []
    broken: MissingPackageError | None = None
    try:
        import ai_edge_litert
        from ai_edge_litert.interpreter import Interpreter

        found.append(_Library("ai-edge-litert", ai_edge_litert.__version__, Interpreter))
    except ImportError as error:
        broken = import_failed("ai_edge_litert", error)
    try:
        import tflite_runtime
        from tflite_runtime.interpreter import Interpreter as Legacy

        found.append(_Library("tflite-runtime", tflite_runtime.__version__, Legacy))
    except ImportError as error:
        if error.name != "tflite_runtime":
            broken = import_failed("tflite_runtime", error)
    if not found:
        raise broken or missing("ai_edge_litert")
    return found


def _try(interpreter: Any) -> None:
    """Run the probe model.

    Raises:
        DeviceError: It gives a wrong result.
    """
    with without_lines(_CHATTER):
        made = interpreter(model_content=PROBE_TFLITE, num_threads=1)
        made.allocate_tensors()
    made.set_tensor(made.get_input_details()[0]["index"], np.array([[-1.0, 2.0]], np.float32))
    made.invoke()
    result = made.get_tensor(made.get_output_details()[0]["index"]).tolist()
    if result != [[0.0, 2.0]]:
        raise DeviceError(f"the probe gave {result}, expected [[0.0, 2.0]]")


@cache
def _library() -> _Library:
    """Return the first library on which the probe runs.

    Raises:
        MissingPackageError: None is installed.
        DeviceError: One is installed, and none works.
    """
    reasons: list[str] = []
    for library in _candidates():
        try:
            _try(library.interpreter)
        except (*_ERRORS, DeviceError) as error:
            reasons.append(f"{library.name}: {one_line(error)}")
            continue
        return library
    raise DeviceError(
        f"no TFLite interpreter works here ({'; '.join(reasons)})",
        "tflite-runtime needs numpy<2; elsewhere: pip install 'edgeml-kit[litert]'",
    )


class LiteRtRuntime:
    """The runtime ``litert``."""

    name = "litert"
    suffixes = (".tflite",)

    def check(self) -> Availability:
        """Tell whether it can be used here, by running a tiny model. Never raises."""
        return availability(lambda: _library().version, lambda: ("CPU",))

    def prepare(self, model: Path, options: ProgramOptions) -> LiteRtProgram:
        """Load a model.

        Args:
            model: A file ``.tflite``.
            options: ``device`` is ``CPU`` or empty.

        Raises:
            MissingPackageError: The library is not installed.
            ModelError: The file is broken, or holds what the runtime cannot run.
            DeviceError: The device is not there.
            UsageError: An option was given.
        """
        library = _library()
        check_file(model, self.suffixes, self.name)
        if options.device not in ("", "CPU"):
            raise DeviceError(f"litert has no device '{options.device}' here", "offered: CPU")
        if options.extra:
            raise UsageError(f"unknown option '{next(iter(options.extra))}' of litert: it has none")
        content = model.read_bytes()
        return LiteRtProgram(library, content, options.threads, model.name)


def _open(library: _Library, content: bytes, threads: int, model: str) -> Any:
    """Build an interpreter with its memory planned.

    Raises:
        ModelError: The content is broken, or holds an unknown operation.
    """
    try:
        with without_lines(_CHATTER):
            made = library.interpreter(model_content=content, num_threads=threads)
            made.allocate_tensors()
    except _ERRORS as error:
        raise ModelError(
            f"{library.name} cannot load '{model}': {one_line(error)}",
            "check the file with 'edgeml inspect'",
        ) from error
    return made


def _names(interpreter: Any, which: str) -> dict[int, str]:
    """Return tensor index -> public name, from the only signature when there is one."""
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        return {}
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    details = runner.get_input_details() if which == "input" else runner.get_output_details()
    return {int(detail["index"]): str(name) for name, detail in details.items()}


class _Slot(NamedTuple):
    """One input or output of the file: its tensor number, and what it looks like."""

    number: int
    spec: TensorSpec


def _slots(interpreter: Any, which: str, model: str) -> tuple[_Slot, ...]:
    """Return the inputs or outputs in the order of the file.

    Raises:
        ModelError: One has a type that cannot be used.
    """
    names = _names(interpreter, which)
    listed = (
        interpreter.get_input_details() if which == "input" else interpreter.get_output_details()
    )
    slots: list[_Slot] = []
    for detail in listed:
        name = names.get(int(detail["index"]), str(detail["name"]))
        kind = np.dtype(detail["dtype"])
        dtype = "object" if kind.kind in "SO" else kind.name
        if dtype not in DATATYPES:
            raise ModelError(f"{which} '{name}' of '{model}' has type {dtype}: cannot be used")
        signature = detail.get("shape_signature", detail["shape"])
        source = signature if len(signature) else detail["shape"]
        spec = TensorSpec(name, dtype, tuple(int(n) for n in source))
        slots.append(_Slot(int(detail["index"]), spec))
    return tuple(slots)


class LiteRtProgram(Closable):
    """A model's bytes; every session builds its own interpreter, for none may be shared."""

    runtime = "litert"
    placement = "CPU"

    def __init__(self, library: _Library, content: bytes, threads: int, model: str) -> None:
        """Load the model once, to know that it loads and what it looks like.

        Raises:
            ModelError: It does not load.
        """
        super().__init__()
        self._library = library
        self._content = content
        self._threads = threads
        self._model = model
        first = _open(library, content, threads, model)
        self._inputs = _slots(first, "input", model)
        self._outputs = _slots(first, "output", model)
        self.inputs: tuple[TensorSpec, ...] = tuple(slot.spec for slot in self._inputs)
        self.outputs: tuple[TensorSpec, ...] = tuple(slot.spec for slot in self._outputs)

    def session(self) -> Session:
        """Open one stream.

        Raises:
            DeviceError: The program is closed.
        """
        if self._closed:
            raise DeviceError("the program is closed")
        made = _open(self._library, self._content, self._threads, self._model)
        return LiteRtSession(made, self._inputs, self._outputs)

    def close(self) -> None:
        """Forget the bytes; sessions that are open keep their own."""
        if self.close_once():
            self._content = b""
            release_memory()


class LiteRtSession(CheckedSession):
    """One interpreter."""

    def __init__(
        self, interpreter: Any, inputs: tuple[_Slot, ...], outputs: tuple[_Slot, ...]
    ) -> None:
        """Take an interpreter whose tensors are allocated."""
        super().__init__(tuple(slot.spec for slot in inputs))
        self._interpreter = interpreter
        # Plain tuples: attributes of structs cost a tenth of a small model's run.
        self._wanted = tuple((slot.number, slot.spec.name) for slot in inputs)
        self._given = tuple((slot.number, slot.spec.name) for slot in outputs)
        self._shapes = {
            int(detail["index"]): tuple(int(n) for n in detail["shape"])
            for detail in interpreter.get_input_details()
        }

    def execute(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run on a feed that is known to fit; see ``TrustingSession``."""
        if self._closed:
            raise DeviceError("the session is closed")
        self._reshape(feed)
        try:
            for number, name in self._wanted:
                self._interpreter.set_tensor(number, feed[name])
            self._interpreter.invoke()
            return {name: self._interpreter.get_tensor(number) for number, name in self._given}
        except _ERRORS as error:
            raise DeviceError(f"litert failed in a run: {one_line(error)}") from error

    def _reshape(self, feed: Mapping[str, Array]) -> None:
        """Plan memory for the shapes of this feed.

        Raises:
            RequestError: The model cannot take them.
        """
        for number, name in self._wanted:
            if self._shapes[number] != feed[name].shape:
                break
        else:
            return
        changed = [
            (number, feed[name].shape)
            for number, name in self._wanted
            if self._shapes[number] != feed[name].shape
        ]
        try:
            for index, shape in changed:
                self._interpreter.resize_tensor_input(index, list(shape))
                self._shapes[index] = shape
            self._interpreter.allocate_tensors()
        except _ERRORS as error:
            self._shapes = dict.fromkeys(self._shapes, ())  # unknown now: plan again next time
            raise RequestError(f"the model cannot take these shapes: {one_line(error)}") from error

    def close(self) -> None:
        """Let go of the interpreter."""
        if self.close_once():
            self._interpreter = None
