"""Entries: the models of the contest with their data, and the products that compete."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from edgeml.errors import EdgemlError
from edgeml.manifest import Evidence, EvidenceState, Manifest, Tolerance, Variant
from edgeml.runtime import get_runtime
from edgeml.runtime.base import Program, ProgramOptions
from edgeml.runtime.bind import BoundProgram, binding_identity, open_variant
from edgeml_converters import samples
from edgeml_converters.data import EvaluationData
from edgeml_converters.source import Source


@dataclass(frozen=True)
class Product:
    """What somebody made of a model.

    Attributes:
        way: Who made it.
        runtime: What runs it.
        path: The file that the runtime opens; for ours the folder of the unpacked bundle.
        options: Of the runtime.
        seconds: How long making it took.
        peak_bytes: Memory of the largest process that took part.
        variant: Of our bundle, with its manifest; None for a peer's.
        recipe: Of ours.
    """

    way: str
    runtime: str
    path: Path
    options: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int = 0
    variant: tuple[Variant, Manifest] | None = None
    recipe: str = ""

    def open(self, threads: int) -> Program:
        """Compile it as a device would."""
        if self.variant is not None:
            variant, manifest = self.variant
            return open_variant(self.path, variant, manifest.inputs, manifest.outputs)
        options = ProgramOptions(threads=threads, extra=dict(self.options))
        program = get_runtime(self.runtime).prepare(self.path, options)
        return BoundProgram(program, _as_it_is(program), program.inputs, program.outputs)

    @property
    def size_bytes(self) -> int:
        """Bytes of its files."""
        if self.variant is not None:
            return sum(blob.size for blob in self.variant[0].files)
        files = [self.path, *self.path.parent.glob(f"{self.path.name}.data")]
        if self.path.suffix == ".xml":
            files.append(self.path.with_suffix(".bin"))
        return sum(file.stat().st_size for file in files)


def _as_it_is(program: Program) -> Variant:
    """Return a variant that changes nothing: a peer's runs pass the same door as ours."""
    return Variant(
        id="peer",
        profile="",
        runtime=program.runtime,
        precision="",
        recipe="",
        files=(),
        entry="",
        inputs=tuple(binding_identity(spec) for spec in program.inputs),
        outputs=tuple(binding_identity(spec) for spec in program.outputs),
        evidence=Evidence(EvidenceState.MEASURED, program.runtime),
        tolerance=Tolerance(0.0, 0.0),
    )


@dataclass(frozen=True)
class Entry:
    """A model of the contest.

    Attributes:
        name: Of the model.
        model: The file that we convert.
        data: Its evaluation data.
        plain: The file that the peers get: the same with one sample in a run.
        calibration: Calibration data as they get it.
        samples: The test samples, one run after the other.
        labels: One per sample; None without.
        batch: Samples in one run.
    """

    name: str
    model: Path
    data: Path | None
    plain: Path
    calibration: Path
    samples: samples.Stacked
    labels: np.ndarray | None
    batch: int


def enter(name: str, model: Path, data: Path | None, folder: Path) -> Entry:
    """Prepare a model for everybody.

    Args:
        name: Of the model.
        model: ONNX file.
        data: Evaluation data; None makes samples of chance.
        folder: For the files that the peers get.
    """
    source = Source.open(model)
    found = EvaluationData.open(data, source.inputs, 0)
    test = samples.stack(found.test, source.inputs)
    fixed = {key: array.shape[1:] for key, array in test.items() if _varies(source, key)}
    if fixed:
        try:
            source = Source.open(model, fixed)
        except EdgemlError as error:  # a graph that insists on its own shapes goes as it is
            print(f"{name}: the peers get the model as it is: {error}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    plain, calibration = folder / "plain.onnx", folder / "calibration.npz"
    onnx.save(source.model, plain)
    rows = found.calibration if found.given else found.test
    samples.save(calibration, samples.stack(rows, source.inputs))
    batch = samples.batch_of(next(samples.feeds(test)))
    return Entry(name, model, data, plain, calibration, test, found.labels, batch)


def _varies(source: Source, name: str) -> bool:
    """Tell whether an input's batch may vary, and nothing else does."""
    shape = next(spec.shape for spec in source.inputs if spec.name == name)
    return len(shape) > 0 and shape[0] == -1
