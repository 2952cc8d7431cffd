"""One table of built-ins, and entry points for others.

Whatever can be replaced or added (runtimes, targets, passes, trackers, gates) is found here by
kind and name. Built-ins sit in one typed table, so that an editable install sees a new one at
once; third parties add theirs by entry points in the group ``edgeml.<kind>``. A clash of names
is an error. Only this module and the command line may import by string.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeml.errors import EdgemlError, InternalError, MissingPackageError, UsageError, nearest

#: kind -> name -> "module:object"
BUILTINS: dict[str, dict[str, str]] = {
    "runtimes": {
        "onnxruntime": "edgeml.runtime.onnxruntime:OnnxRuntime",
        "openvino": "edgeml.runtime.openvino:OpenVinoRuntime",
        "litert": "edgeml.runtime.litert:LiteRtRuntime",
    },
    "targets": {
        "cpu": "edgeml_converters.targets.cpu:CpuTarget",
        "gpu": "edgeml_converters.targets.cpu:GpuTarget",
        "onnx-optimised": "edgeml_converters.targets.optimised:OptimisedTarget",
        "ort": "edgeml_converters.targets.optimised:OrtTarget",
        "openvino-ir": "edgeml_converters.targets.openvino:IrTarget",
        "openvino-device": "edgeml_converters.targets.openvino:DeviceTarget",
        "openvino-device-f16": "edgeml_converters.targets.openvino:HalfTarget",
        "tflite": "edgeml_converters.targets.tflite:TfliteTarget",
        "tflite-cpu": "edgeml_converters.targets.tflite:TfliteCpuTarget",
    },
    "trackers": {
        "files": "edgeml.tracking.files:FilesTracker",
        "mlflow": "edgeml.tracking.mlflow:MlflowTracker",
    },
    "passes": {
        "upgrade_opset": "edgeml_converters.passes.opset:UpgradeOpset",
        "fix_shapes": "edgeml_converters.passes.shapes:FixShapes",
        "fix_batch": "edgeml_converters.passes.shapes:FixBatch",
        "preprocess": "edgeml_converters.passes.process:PreprocessPass",
        "postprocess": "edgeml_converters.passes.process:PostprocessPass",
        "simplify": "edgeml_converters.passes.simplify:Simplify",
        "prune_channels": "edgeml_converters.passes.prune_channels:PruneChannels",
        "prune_hidden": "edgeml_converters.passes.prune_hidden:PruneHidden",
        "prune_weights": "edgeml_converters.passes.prune_weights:PruneWeights",
        "quantize_static": "edgeml_converters.passes.quantize_static:QuantizeStatic",
        "quantize_dynamic": "edgeml_converters.passes.quantize_dynamic:QuantizeDynamic",
        "correct_bias": "edgeml_converters.passes.correct_bias:CorrectBias",
        "equalize": "edgeml_converters.passes.equalize:Equalize",
        "smooth": "edgeml_converters.passes.smooth:Smooth",
        "half": "edgeml_converters.passes.half:Half",
        "quantize_mixed": "edgeml_converters.passes.quantize_mixed:QuantizeMixed",
        "quantize_weights": "edgeml_converters.passes.quantize_weights:QuantizeWeights",
        "quantize_portable": "edgeml_converters.passes.quantize_portable:QuantizePortable",
    },
}

#: The extra that brings a top-level module which may be missing.
EXTRAS: dict[str, str] = {
    "onnx": "convert",
    "onnxruntime": "agent",
    "openvino": "openvino",
    "ai_edge_litert": "litert",
    "matplotlib": "convert",
    "httptools": "agent",
    "fastapi": "fleet",
    "uvicorn": "fleet",
    "nicegui": "fleet",
    "sqlalchemy": "fleet",
    "amqtt": "fleet",
    "edgeml_converters": "convert",
    "edgeml_agent": "agent",
}


def missing(module: str, extra: str = "") -> MissingPackageError:
    """Return the error for a module that is not installed, with the line that installs it."""
    top = module.split(".")[0]
    chosen = extra or EXTRAS.get(top, "")
    line = f"pip install 'edgeml-kit[{chosen}]'" if chosen else f"pip install {top}"
    return MissingPackageError(f"the optional package '{top}' is not installed", line)


def load_object(reference: str, extra: str = "") -> Any:
    """Import ``module:object``.

    Args:
        reference: What to import.
        extra: The extra of the distribution that brings it.

    Raises:
        MissingPackageError: A package that it needs is not installed.
        InternalError: The module has no such object.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise missing(error.name or module_name, extra) from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise InternalError(f"'{module_name}' has no '{attribute}'") from error


@cache
def table(kind: str) -> dict[str, str]:
    """Return name -> ``module:object`` of one kind, built-ins and third parties together.

    Raises:
        UsageError: A third party uses the name of a built-in.
    """
    found = dict(BUILTINS.get(kind, {}))
    for entry in importlib.metadata.entry_points(group=f"edgeml.{kind}"):
        if entry.name in found:
            raise UsageError(
                f"plug-in '{entry.name}' ({entry.value}) has the name of a built-in of {kind}",
                "uninstall it, or ask its author to rename it",
            )
        found[entry.name] = entry.value
    return found


def load(kind: str, name: str) -> Any:
    """Import the object called ``name`` of one kind.

    Raises:
        UsageError: No such name; the hint gives the nearest.
        MissingPackageError: A package that it needs is not installed.
    """
    known = table(kind)
    if name not in known:
        raise UsageError(f"unknown {kind[:-1]} '{name}'", nearest(name, known))
    return load_object(known[name])


def load_user_object(reference: str, what: str) -> Any:
    """Import ``module:function`` that a user named, also from the current folder or a file.

    Args:
        reference: What to import; the module may be the path of a file ``.py``.
        what: How the message calls it, for example ``metric``.

    Raises:
        UsageError: No such module or object.
        MissingPackageError: The module is there, but a package that it imports is not.
    """
    module_name, _, attribute = reference.partition(":")
    here = str(Path.cwd())
    file = Path(module_name) if module_name.endswith(".py") else None
    if file is not None and not file.is_file():
        raise UsageError(f"{what} '{reference}': there is no file '{file}'", "check the path")
    sys.path.append(here)
    try:
        module = _import_file(file) if file else importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (file or not module_name.startswith(error.name)):
            raise missing(error.name) from error
        raise UsageError(
            f"{what} '{reference}': there is no module '{module_name}'",
            "give module:function, from this folder or an installed package",
        ) from error
    except Exception as error:
        # A user's module may raise anything while it is imported.
        raise _failed(reference, what, error) from error
    finally:
        sys.path.remove(here)
    found = getattr(module, attribute, None)
    if not callable(found):
        raise UsageError(
            f"{what} '{reference}': '{module_name}' has no function '{attribute}'",
            nearest(attribute, [n for n in vars(module) if callable(getattr(module, n))] or ["-"]),
        )
    return found


def _import_file(file: Path) -> ModuleType:
    """Import a file as a module; what lies beside it can be imported by it."""
    name = file.stem.replace("-", "_")
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"'{file}' is no Python file")
    module = importlib.util.module_from_spec(spec)
    beside = str(file.resolve().parent)
    sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(beside)
    return module


@contextmanager
def user_code(reference: str, what: str) -> Iterator[None]:
    """Turn whatever a user's own function raises into one line that names the function.

    Args:
        reference: ``module:function``.
        what: How the message calls it, for example ``metric``.

    Raises:
        UsageError: The function raised something; the traceback is shown with ``-v``.
    """
    try:
        yield
    except EdgemlError:
        raise
    except Exception as error:
        # The boundary to code that is not ours: it may raise anything.
        raise _failed(reference, what, error) from error


def _failed(reference: str, what: str, error: Exception) -> UsageError:
    text = " ".join(str(error).split())
    return UsageError(
        f"{what} '{reference}' failed: {type(error).__name__}: {text}",
        "mend it; 'edgeml -v' shows where it failed",
    )
