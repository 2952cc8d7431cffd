"""Apply what a user asked for to a source, once, before anything is tried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeml.errors import DataError, UsageError
from edgeml_converters.data import EvaluationData
from edgeml_converters.passes.base import Pass
from edgeml_converters.passes.opset import UpgradeOpset
from edgeml_converters.passes.process import PostprocessPass, PreprocessPass
from edgeml_converters.passes.shapes import FixBatch
from edgeml_converters.processing.after import class_count
from edgeml_converters.processing.spec import (
    Postprocess,
    options_of,
    read_postprocess,
    read_preprocess,
)
from edgeml_converters.source import Source

_LEAST_OPSET = 13


def processed(source: Source, preprocess: Sequence[str], postprocess: Sequence[str]) -> Source:
    """Return the source with processing built in, which is then the public contract.

    The baseline and every recipe start from it, so all do the same; evaluation data have the form
    of its new inputs.

    Args:
        source: The model as it came.
        preprocess: TOML files or short forms, one per input.
        postprocess: The same, one per output.

    Raises:
        UsageError: One is wrong, or its labels are not as many as the classes.
        ModelError: One does not fit the model.
    """
    before = [read_preprocess(text) for text in preprocess]
    after = [read_postprocess(text) for text in postprocess]
    if not before and not after:
        return source
    inputs = [spec.input or source.inputs[0].name for spec in before]
    for name in inputs:
        if inputs.count(name) > 1:
            raise UsageError(
                f"--preprocess is given {inputs.count(name)} times for input '{name}'",
                "write all of it in one",
            )
    passes: list[Pass] = []
    if source.opset < _LEAST_OPSET:
        passes.append(UpgradeOpset())
    if any(spec.nms is not None for spec in after):
        passes.append(FixBatch())
    passes += [PreprocessPass(**options_of(spec)) for spec in before]
    changed = source.apply(passes) if passes else source
    classes: tuple[str, ...] = ()
    for spec in after:
        if spec.labels:
            classes = _labels(changed, spec, classes)
        changed = changed.apply([PostprocessPass(**options_of(spec))], classes)
    return changed


def _labels(source: Source, spec: Postprocess, so_far: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the classes, once they are as many as the classes.

    Raises:
        UsageError: They are not, or others were given before.
    """
    count = class_count(source.model, spec)
    if count is not None and count != len(spec.labels):
        raise UsageError(
            f"--postprocess: {len(spec.labels)} labels for {count} classes of the model",
            "one label per class, in the order of the classes",
        )
    if so_far and so_far != spec.labels:
        raise UsageError("--postprocess: two outputs have different labels, expected one list")
    return spec.labels


def open_data(
    data: str | Path | None, source: Source, seed: int, preprocess: Sequence[str]
) -> EvaluationData:
    """Read evaluation data, which have the form of the inputs as they are now.

    Raises:
        DataError: They cannot be used; after preprocessing the hint says which form is wanted.
    """
    try:
        return EvaluationData.open(data, source.inputs, seed)
    except DataError as error:
        if not preprocess:
            raise
        raise DataError(
            error.message,
            f"{error.hint + '; ' if error.hint else ''}with --preprocess the data are as a device "
            "gives them, before any of it",
        ) from error
