"""Manifest, Variant, Lineage: what a bundle says of itself.

Everything here is a frozen value that travels as JSON. Decoding is tolerant: a key that this
release does not know is skipped, and the bytes of a manifest are never rewritten by a reader, so
nothing is lost on the way through. Structs hold no wall-clock time: the same inputs give the same
bytes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from edgeml.tensors import TensorSpec

#: The version of this schema. A reader refuses a higher major number.
SCHEMA = 1


class EvidenceState(StrEnum):
    """How far a variant was really verified, from weakest to strongest."""

    CHECKED = "checked"
    COMPILED = "compiled"
    EMULATED = "emulated"
    MEASURED = "measured"


class Evidence(msgspec.Struct, frozen=True):
    """The highest state that a variant really reached, by what, and on what machine.

    Attributes:
        state: The state.
        by: Tool and version, for example ``onnxruntime 1.31.1``.
        host: One line that names the machine (processor, ISA), for measured and emulated.
    """

    state: EvidenceState
    by: str
    host: str = ""


class BlobRef(msgspec.Struct, frozen=True):
    """A blob of the bundle.

    Attributes:
        digest: ``sha256:<hex>``.
        size: Length in bytes.
        path: File name, relative to the folder that ``edgeml unpack`` makes.
    """

    digest: str
    size: int
    path: str


class Binding(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one tensor of the model's public contract becomes a tensor of the variant's file.

    To the file: permute the axes by ``perm``; then, when ``scale`` is not 0, quantise:
    ``q = clip(round(x / scale) + zero_point)`` in ``dtype``. From the file: the inverse.

    Attributes:
        name: Name in the public contract (Manifest.inputs or .outputs).
        tensor: Name in the file.
        dtype: Element type in the file.
        shape: Shape in the file; -1 where variable.
        perm: Axes of the public tensor in the order of the file; empty for the same order.
        scale: Size of one step of the stored integer; 0 when values are stored as they are.
        zero_point: The stored integer that means 0.
    """

    name: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    perm: tuple[int, ...] = ()
    scale: float = 0.0
    zero_point: int = 0


class Tolerance(msgspec.Struct, frozen=True):
    """How far a device's golden outputs may be from the recorded ones.

    Attributes:
        atol: Absolute part.
        rtol: Part relative to the largest absolute recorded value of that output.
        share: Share of the elements that must be within the limits, in [0, 1].
    """

    atol: float
    rtol: float
    share: float = 1.0


class Variant(msgspec.Struct, frozen=True, omit_defaults=True):
    """One way to run the model: a file for one runtime on one profile.

    Attributes:
        id: Unique in the manifest: ``<profile>.<runtime>.<recipe>``.
        profile: Name of the hardware profile that it was made for.
        runtime: Name of the runtime (``edgeml.plugins`` kind ``runtimes``).
        precision: For example ``fp32`` or ``int8``.
        recipe: Name of the recipe that made it.
        files: All its files.
        entry: Path of the file that the runtime opens.
        inputs: Bindings in the order of Manifest.inputs.
        outputs: Bindings in the order of Manifest.outputs.
        evidence: How far it was verified.
        tolerance: For the golden check on a device.
        golden: Blob of its own recorded golden outputs (``.npz``).
        threads: Threads that it was measured with, and should run with.
        max_batch: Largest batch of one run; 0 when any batch works.
        options: Options for the runtime, for example ``{"INFERENCE_PRECISION_HINT": "f32"}``.
        device: Device or provider that must run it, as the runtime names it (``GPU``,
            ``CUDAExecutionProvider``); empty for the runtime's CPU.
    """

    id: str
    profile: str
    runtime: str
    precision: str
    recipe: str
    files: tuple[BlobRef, ...]
    entry: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    evidence: Evidence
    tolerance: Tolerance
    golden: BlobRef | None = None
    threads: int = 1
    max_batch: int = 0
    options: dict[str, str] = {}
    device: str = ""

    @property
    def size(self) -> int:
        """Total size of the files in bytes."""
        return sum(ref.size for ref in self.files)


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One pass that was applied.

    Attributes:
        name: The pass.
        options: Its options.
        before: Digest of the model that went in.
        after: Digest of the model that came out.
        notes: What it wants a reader to know.
    """

    name: str
    options: dict[str, Any]
    before: str
    after: str
    notes: tuple[str, ...] = ()


class Lineage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a bundle comes from.

    Attributes:
        source: File name of the source model.
        source_digest: Its digest (over all its files when it has external data).
        data_digest: Digest of the evaluation data; empty when none was given.
        seed: Seed of everything random.
        tools: Name -> version of every tool that had a hand in it.
        steps: Variant id -> the passes that made it, in order.
        parents: Digests of the bundles that this one replaces or derives from.
    """

    source: str
    source_digest: str
    data_digest: str
    seed: int
    tools: dict[str, str]
    steps: dict[str, tuple[Step, ...]]
    parents: tuple[str, ...] = ()


class Score(msgspec.Struct, frozen=True, omit_defaults=True):
    """A metric's value with its uncertainty.

    Attributes:
        name: ``top1``, ``auc``, ...
        value: The value.
        n: Number of samples.
        interval: Two-sided 95 % interval.
    """

    name: str
    value: float
    n: int
    interval: tuple[float, float]


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a bundle says of itself.

    Attributes:
        name: Name of the model: lower-case letters, digits, ``-``, ``_`` and ``.``.
        version: SemVer.
        inputs: The public contract; what a request must fit.
        outputs: The public contract; what a reply looks like.
        variants: All the ways to run it; the first that fits a device is the preferred one.
        schema: Version of this schema.
        score: The source model's score on the evaluation data.
        labels: Names of the classes, if it has classes.
        golden: Golden inputs (``.npz``: one array per input, samples on axis 0).
        drift: The drift reference.
        report: Files of the report.
        measurements: The measurements behind the choice (JSON).
        lineage: Where it comes from.
    """

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: tuple[Variant, ...]
    lineage: Lineage
    schema: int = SCHEMA
    score: Score | None = None
    labels: tuple[str, ...] = ()
    golden: BlobRef | None = None
    drift: BlobRef | None = None
    report: tuple[BlobRef, ...] = ()
    measurements: BlobRef | None = None

    def variant(self, variant_id: str) -> Variant:
        """Return the variant with this id.

        Raises:
            KeyError: There is none.
        """
        for variant in self.variants:
            if variant.id == variant_id:
                return variant
        raise KeyError(variant_id)

    def blobs(self) -> tuple[BlobRef, ...]:
        """Return every blob that the manifest names, each once, in a fixed order."""
        refs: list[BlobRef] = []
        for variant in self.variants:
            refs += variant.files
            refs += [variant.golden] if variant.golden else []
        refs += [ref for ref in (self.golden, self.drift, self.measurements) if ref]
        refs += self.report
        return tuple(dict.fromkeys(refs))
