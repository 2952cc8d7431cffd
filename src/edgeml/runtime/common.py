"""What the runtimes share: the probe models, the checks of a file, and giving memory back."""

from __future__ import annotations

import abc
import base64
import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from edgeml.errors import EdgemlError, MissingPackageError, ModelError
from edgeml.plugins import missing
from edgeml.runtime.base import Availability
from edgeml.tensors import Array, TensorSpec, check_feed

#: ONNX, operator set 13: float32 x[2] -> Relu -> y[2]. Small enough to stand here, so that a
#: probe needs neither a file nor the `onnx` package.
PROBE_ONNX = base64.b64decode(
    "CAc6MwoMCgF4EgF5IgRSZWx1EgFnWg8KAXgSCgoICAESBAoCCAJiDwoBeRIKCggIARIECgIIAkIECgAQDQ=="
)
#: TFLite, schema 3: float32 x[1,2] -> RELU -> y[1,2].
PROBE_TFLITE = base64.b64decode(
    "CAAAAFRGTDPG////FAAAACAAAAAkAAAA9AAAAAMAAAABAAAACAAAAAQABAAEAAAAAQAAAHAAAAABAAAAFAAAAAAADgAY"
    "ABQAEAAMAAgABAAOAAAAFAAAABwAAABIAAAATAAAAFAAAAAEAAAAbWFpbgAAAAABAAAAEAAAAAAACgAMAAAACAAEAAoA"
    "AAAIAAAADAAAAAEAAAABAAAAAQAAAAAAAAABAAAAAQAAAAEAAAAAAAAAAgAAADQAAAAEAAAA4P///wgAAAAMAAAAAQAA"
    "AHkAAAACAAAAAQAAAAIAAAAMAAwACAAAAAAABAAMAAAACAAAAAwAAAABAAAAeAAAAAIAAAABAAAAAgAAAAEAAAAQAAAA"
    "DAAMAAsAAAAAAAQADAAAABMAAAAAAAAT"
)


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the text of a library's exception in one line of at most ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def check_file(model: Path, suffixes: tuple[str, ...], runtime: str) -> None:
    """Check that a model is a file that this runtime opens, before the runtime sees it.

    Raises:
        ModelError: It is not there, is not a file, is empty, or has another ending.
    """
    if not model.is_file():
        raise ModelError(f"model '{model}' is not there, or is not a file", "check the path")
    if model.suffix.lower() not in suffixes:
        raise ModelError(
            f"{runtime} cannot open '{model.name}': its ending is '{model.suffix}', "
            f"expected {' or '.join(suffixes)}"
        )
    if model.stat().st_size == 0:
        raise ModelError(f"model '{model.name}' is empty", "fetch or export it again")


def import_failed(module: str, error: ImportError) -> MissingPackageError:
    """Return the error for a library that is not installed, or that does not load here."""
    absent = isinstance(error, ModuleNotFoundError) and error.name == module
    if absent:
        return missing(module)
    hint = missing(module).hint
    return MissingPackageError(
        f"the package '{module}' is installed but does not load: {one_line(error)}", hint
    )


def availability(version: Callable[[], str], probe: Callable[[], tuple[str, ...]]) -> Availability:
    """Run a probe and tell its outcome as a value.

    Args:
        version: Returns the version of the library; it may raise MissingPackageError.
        probe: Runs a tiny model and returns the devices that are offered.
    """
    found = ""
    try:
        found = version()
        devices = probe()
    except EdgemlError as error:
        return Availability(False, found, error.message, error.hint)
    except Exception as error:
        # Whatever a library does wrong while it is probed means "not usable here", no more.
        return Availability(False, found, f"{type(error).__name__}: {one_line(error)}", "reinstall")
    return Availability(True, found, devices=devices)


def release_memory() -> None:
    """Hand memory of unloaded models back to the system.

    The C library keeps what a model freed; on a small device that looks like a leak.
    """
    gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return  # another C library (musl), which gives memory back by itself


class Closable:
    """Something that is closed once, and says whether it was."""

    def __init__(self) -> None:
        """Start open."""
        self._closed = False
        self._closing = threading.Lock()

    def close_once(self) -> bool:
        """Return True for the first caller only."""
        with self._closing:
            first = not self._closed
            self._closed = True
        return first


class CheckedSession(Closable, abc.ABC):
    """What the sessions share: ``run`` is a check of the feed, and then ``execute``."""

    def __init__(self, specs: tuple[TensorSpec, ...]) -> None:
        """Take the specifications of the inputs."""
        super().__init__()
        self._specs = specs

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once.

        Raises:
            RequestError: The feed does not fit.
            DeviceError: The runtime failed, or the session is closed.
        """
        check_feed(self._specs, feed)
        return self.execute(feed)

    @abc.abstractmethod
    def execute(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run on a feed that is known to fit; each runtime in its own way."""
