"""Runtime -> Program -> Session: usable here? / compiled once, shared / one stream.

The converter measures with this code, and the device serves with it: what was measured is what
ships. A runtime's library is imported inside the function that uses it, never at the top.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from edgeml.tensors import Array, TensorSpec


class Availability(msgspec.Struct, frozen=True):
    """Whether a runtime can be used on this machine.

    Attributes:
        usable: Whether a tiny model really ran (an import alone proves nothing).
        version: Version of the library; empty when it is not there.
        reason: Why not; empty when usable.
        hint: What to do about it.
        devices: Devices or providers that it offers, as it names them.
    """

    usable: bool
    version: str = ""
    reason: str = ""
    hint: str = ""
    devices: tuple[str, ...] = ()


class ProgramOptions(msgspec.Struct, frozen=True):
    """How to compile a model.

    Attributes:
        threads: Threads inside one run; at least 1.
        device: Device or provider, as the runtime names it; empty for its CPU.
        extra: Options of the runtime itself (Variant.options).
        cache: Folder for compiled forms; None for none.
    """

    threads: int = 1
    device: str = ""
    extra: Mapping[str, str] = {}
    cache: Path | None = None


class Session(Protocol):
    """One stream of runs. Not safe for two threads at once."""

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once.

        Args:
            feed: One array per input, as Program.inputs says.

        Returns:
            One array per output, in the order of Program.outputs; the arrays belong to the
            caller (a later run does not change them).

        Raises:
            RequestError: The feed does not fit.
            DeviceError: The runtime failed.
        """
        ...

    def close(self) -> None:
        """Give back what it holds. Safe to call twice."""
        ...


@runtime_checkable
class TrustingSession(Session, Protocol):
    """A session that can leave out the check of its feed, for a caller that has checked it."""

    def execute(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run like ``run``, on a feed that is known to fit.

        Raises:
            RequestError: The runtime refused it all the same.
            DeviceError: The runtime failed.
        """
        ...


class Program(Protocol):
    """A model that is compiled for one device. Safe to share between threads."""

    runtime: str
    placement: str  # the device or provider that really runs it, asked of the runtime
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def session(self) -> Session:
        """Open one stream."""
        ...

    def close(self) -> None:
        """Give back what it holds. Safe to call twice."""
        ...


class Runtime(Protocol):
    """A library that runs models."""

    name: str
    suffixes: tuple[str, ...]  # file endings that it opens, for example (".onnx", ".ort")

    def check(self) -> Availability:
        """Tell whether it can be used here. Never raises."""
        ...

    def prepare(self, model: Path, options: ProgramOptions) -> Program:
        """Compile a model.

        Raises:
            MissingPackageError: The library is not installed.
            ModelError: The file is broken, or holds what the runtime cannot run.
            DeviceError: The device that was asked for is not there.
        """
        ...
