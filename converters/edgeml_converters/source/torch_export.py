"""A torch module that a user's function returns, exported to ONNX.

The function is named as ``module:function`` or ``file.py:function`` and takes no arguments. It
returns ``(module, inputs)`` or a dictionary:

* ``module``: a ``torch.nn.Module``; it is exported in evaluation mode.
* ``inputs``: an example: one tensor, or a tuple of them.
* ``input_names``, ``output_names``: as the converted model shall call them (optional).
* ``dynamic_batch``: whether axis 0 of every input may vary (optional; tried by default).
* ``opset``: of the standard operators (optional; 17).

torch's exporters differ: the classic one needs no further package and is tried first, the newer
one only where ``onnxscript`` is installed. What comes out is run beside the module, on the example
and on twice its batch, and must give the same.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeml.errors import DeviceError, ModelError, RequestError, UsageError, nearest
from edgeml.plugins import load_user_object, missing, user_code
from edgeml.runtime.base import ProgramOptions
from edgeml.runtime.onnxruntime import OnnxRuntime
from edgeml.tensors import Array

logger = logging.getLogger(__name__)

_CALLABLE = re.compile(r"[\w./\\ -]*[\w]:[A-Za-z_]\w*")
_KEYS = frozenset({"module", "inputs", "input_names", "output_names", "dynamic_batch", "opset"})
_OPSET = 17
#: Largest difference, relative to the largest value, between module and exported model.
_TOLERANCE = 1e-3
_EXAMPLE = "return (module, inputs): inputs is an example tensor, or a tuple of them"


class Exportable(msgspec.Struct, frozen=True):
    """What a user's function gave; see the module."""

    module: Any
    inputs: tuple[Any, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...] = ()
    dynamic_batch: bool = True
    opset: int = _OPSET


def is_callable(model: str | Path) -> bool:
    """Tell whether this names a function, and not a file."""
    text = str(model)
    return _CALLABLE.fullmatch(text) is not None and not Path(text).exists()


def export(reference: str) -> tuple[Path, bytes, tuple[str, ...]]:
    """Export what a function returns.

    Args:
        reference: ``module:function`` or ``file.py:function``.

    Returns:
        What to call the model, its ONNX bytes, and warnings.

    Raises:
        UsageError: There is no such function, it failed, or returned something else.
        MissingPackageError: torch is not installed.
        ModelError: torch cannot export the module, or exports something that computes otherwise.
    """
    try:
        import torch  # noqa: F401  # asked before the user's module fails for want of it
    except ImportError as error:
        raise missing("torch") from error
    function = load_user_object(reference, "model")
    with user_code(reference, "model"):
        given = function()
    what = understand(given, reference)
    was_training = bool(what.module.training)
    what.module.eval()
    try:
        with _plain_attention():
            data, said = _exported(what, reference)
    finally:
        what.module.train(was_training)
    said = (
        (*said, "the module was in training mode: exported as for inference")
        if (was_training)
        else said
    )
    return Path(reference), data, said


def understand(given: object, reference: str) -> Exportable:
    """Return what a function gave, checked.

    Raises:
        UsageError: It is something else.
    """
    import torch

    if isinstance(given, torch.nn.Module):
        raise UsageError(f"model '{reference}' returned a module without example inputs", _EXAMPLE)
    if isinstance(given, tuple) and len(given) == 2:
        given = {"module": given[0], "inputs": given[1]}
    if not isinstance(given, Mapping):
        raise UsageError(f"model '{reference}' returned a {type(given).__name__}", _EXAMPLE)
    for key in given:
        if key not in _KEYS:
            raise UsageError(
                f"model '{reference}' returned the unknown key '{key}'", nearest(str(key), _KEYS)
            )
    for key, kind in (("module", torch.nn.Module), ("inputs", (torch.Tensor, tuple, list))):
        if not isinstance(given.get(key), kind):
            got = type(given[key]).__name__ if key in given else "nothing"
            raise UsageError(f"model '{reference}': '{key}' is {got}", _EXAMPLE)
    inputs = given["inputs"]
    inputs = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    if not inputs or not all(isinstance(one, torch.Tensor) for one in inputs):
        raise UsageError(f"model '{reference}': 'inputs' must hold tensors only", _EXAMPLE)
    names = _names(given, "input_names", reference)
    if names and len(names) != len(inputs):
        raise UsageError(
            f"model '{reference}': {len(names)} input_names for {len(inputs)} inputs", _EXAMPLE
        )
    default = ("input",) if len(inputs) == 1 else tuple(f"input{i}" for i in range(len(inputs)))
    dynamic, opset = given.get("dynamic_batch", True), given.get("opset", _OPSET)
    if not isinstance(dynamic, bool) or not isinstance(opset, int) or isinstance(opset, bool):
        raise UsageError(
            f"model '{reference}': dynamic_batch is {dynamic!r} and opset {opset!r}, "
            "expected true or false, and a number"
        )
    outputs = _names(given, "output_names", reference)
    return Exportable(given["module"], inputs, names or default, outputs, dynamic, opset)


def _names(given: Mapping[str, object], key: str, reference: str) -> tuple[str, ...]:
    found = given.get(key, ())
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise UsageError(f"model '{reference}': '{key}' is {found!r}, expected a list of names")
    return tuple(str(name) for name in found)


def _exported(what: Exportable, reference: str) -> tuple[bytes, tuple[str, ...]]:
    """Export with the first exporter and batch that give a model which computes the same."""
    wants = what.dynamic_batch and all(one.ndim for one in what.inputs)
    tries = [(dynamo, batch) for batch in ((True, False) if wants else (False,))
             for dynamo in (False, True) if not dynamo or find_spec("onnxscript")]  # fmt: skip
    reasons: list[str] = []
    for dynamo, batch in tries:
        try:
            data, traced = _one(what, dynamo, batch)
            _compare(what, data, batch)
        except ModelError as error:
            kind = f"{'new' if dynamo else 'classic'} exporter, batch {'varying' if batch else '1'}"
            reasons.append(f"{kind}: {error.message}")
            logger.info("%s: %s", reference, reasons[-1])
            continue
        fixed = wants and not batch
        note = f"the batch is fixed to {what.inputs[0].shape[0]}: {reasons[0]}" if fixed else ""
        return data, tuple(one for one in (note, traced) if one)
    newer = (
        "" if find_spec("onnxscript") else "pip install onnxscript for torch's newer exporter; or "
    )
    raise ModelError(
        f"torch cannot export model '{reference}': {'; '.join(reasons)}",
        f"{newer}export it to ONNX yourself with torch.onnx.export, and give the file",
    )


def _one(what: Exportable, dynamo: bool, batch: bool) -> tuple[bytes, str]:
    """Export once.

    Returns:
        The ONNX bytes, and what the exporter warned of that makes the model another one.

    Raises:
        ModelError: torch could not.
    """
    import torch

    outputs = list(what.output_names) or _output_names(what)
    options: dict[str, Any] = {
        "input_names": list(what.input_names),
        "output_names": outputs,
        "opset_version": what.opset,
        "dynamo": dynamo,
    }
    if batch and dynamo:
        options["dynamic_shapes"] = tuple({0: torch.export.Dim("batch")} for _ in what.inputs)
    elif batch:
        options["dynamic_axes"] = {n: {0: "batch"} for n in (*what.input_names, *outputs)}
    options |= {"external_data": False} if dynamo else {"do_constant_folding": True}
    told = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="edgeml-") as name, ExitStack() as stack:
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        # It prints whole graphs when it fails.
        stack.enter_context(contextlib.redirect_stdout(told))
        stack.enter_context(contextlib.redirect_stderr(told))
        stack.enter_context(_mute(Path(name) / "printed"))
        stack.enter_context(torch.no_grad())
        file = Path(name) / "model.onnx"
        try:
            torch.onnx.export(what.module, what.inputs, str(file), **options)
            data = file.read_bytes()
        except Exception as error:
            # The boundary to a tracer that runs the user's own module: it may raise anything.
            logger.debug("torch.onnx.export: %s", told.getvalue())
            text = " ".join(str(error).split())[:300]
            raise ModelError(f"{type(error).__name__}: {text}") from error
    return data, _traced(caught)


@contextmanager
def _mute(file: Path) -> Iterator[None]:
    """Send what compiled code prints to a file: standard output is for results."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    try:
        with file.open("wb") as sink:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        for number, old in enumerate(kept, 1):
            os.dup2(old, number)
            os.close(old)


def _traced(caught: Sequence[warnings.WarningMessage]) -> str:
    """Return what is to be said when the tracer turned values of the example into constants."""
    found = [w for w in caught if w.category.__name__ == "TracerWarning"]
    if not found:
        return ""
    first = " ".join(str(found[0].message).split()).split(". ")[0]
    return (
        f"the module may decide by values ({len(found)} warnings of the tracer), and what was "
        f"exported always does as for the example: {first[:160]}"
    )


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Let attention layers of torch run as their parts: the fused form cannot be exported."""
    import torch

    backend = getattr(torch.backends, "mha", None)
    if backend is None:
        yield
        return
    before = backend.get_fastpath_enabled()
    backend.set_fastpath_enabled(False)
    try:
        yield
    finally:
        backend.set_fastpath_enabled(before)


def _output_names(what: Exportable) -> list[str]:
    """Return names for the outputs, as many as the module gives."""
    count = len(_run_module(what, what.inputs))
    return ["output"] if count == 1 else [f"output{i}" for i in range(count)]


def _run_module(what: Exportable, inputs: tuple[Any, ...]) -> list[Array]:
    """Run the module; nested results are laid flat as the exporter does.

    Raises:
        ModelError: It fails.
    """
    import torch

    try:
        with torch.no_grad():
            result = what.module(*inputs)
    except Exception as error:
        # A user's own module may raise anything.
        text = " ".join(str(error).split())[:300]
        raise ModelError(f"the module fails: {type(error).__name__}: {text}") from error
    flat: list[Array] = []

    def collect(value: object) -> None:
        if isinstance(value, torch.Tensor):
            flat.append(value.numpy(force=True))
        elif isinstance(value, Mapping):
            for one in value.values():
                collect(one)
        elif isinstance(value, list | tuple):
            for one in value:
                collect(one)

    collect(result)
    return flat


def _compare(what: Exportable, data: bytes, batch: bool) -> None:
    """Check that the exported model computes what the module does.

    Raises:
        ModelError: It does not, or does not run.
    """
    import torch

    feeds = [what.inputs]
    if batch:
        feeds.append(tuple(torch.cat([one, one]) for one in what.inputs))
    with tempfile.TemporaryDirectory(prefix="edgeml-") as name:
        file = Path(name) / "model.onnx"
        file.write_bytes(data)
        program = OnnxRuntime().prepare(file, ProgramOptions())
        try:
            session = program.session()
            # A module may ignore an input; the exporter then leaves it out.
            asked = {spec.name for spec in program.inputs}
            for feed in feeds:
                named = dict(zip(what.input_names, feed, strict=True))
                arrays = {n: t.numpy(force=True) for n, t in named.items() if n in asked}
                got = list(session.run(arrays).values())
                _same(_run_module(what, feed), got)
            session.close()
        except (RequestError, DeviceError) as error:
            raise ModelError(f"what was exported does not run: {error.message}") from error
        finally:
            program.close()


def _same(want: list[Array], got: list[Array]) -> None:
    """Raise when outputs differ."""
    if [one.shape for one in want] != [one.shape for one in got]:
        shapes = [list(one.shape) for one in want], [list(one.shape) for one in got]
        raise ModelError(f"the module gives shapes {shapes[0]}, what was exported {shapes[1]}")
    for a, b in zip(want, got, strict=True):
        x, y = a.astype(np.float64), b.astype(np.float64)
        scale = float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) or 1.0
        gap = float(np.abs(np.where(x == y, 0.0, x - y)).max(initial=0.0)) / scale
        if not gap <= _TOLERANCE:
            raise ModelError(f"what was exported differs from the module by {gap:.2g} (relative)")
