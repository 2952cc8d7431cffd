"""A bundle of candidates, for devices to measure. It has no version that could serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgeml.bundle import Bundle, blob_ref, pack
from edgeml.digest import sha256_bytes
from edgeml.hardware import HardwareProfile
from edgeml.manifest import BlobRef, Lineage, Manifest, Variant
from edgeml.runtime.golden import save_arrays
from edgeml.tensors import Array, TensorSpec
from edgeml_converters import golden, samples
from edgeml_converters.candidates import Bench, Trial

#: A bundle needs a name and a version; these say what it is to whoever meets it.
NAME = "candidates"


def pack_candidates(
    trials: Sequence[Trial], bench: Bench, profile: HardwareProfile, threads: int, out: Path
) -> Bundle:
    """Write the bundle: each trial as a variant, with what it gave for the first sample here.

    Args:
        trials: The baseline first.
        bench: What all trials share.
        profile: Whose devices measure.
        threads: Of every run.
        out: Where it goes.

    Raises:
        BundleError: It cannot be written.
    """
    feed = next(samples.stream(bench.samples.write()))
    files: dict[str, Path | bytes] = {}

    def add(path: str, data: Path | bytes) -> BlobRef:
        files[path] = data
        return blob_ref(path, data)

    inputs = add("golden/inputs.npz", save_arrays(feed))
    base = trials[0].glimpsed()
    variants = tuple(_variant(t, base, feed, bench, profile, threads, add) for t in trials)
    identity = sha256_bytes(msgspec.json.encode([ref.digest for v in variants for ref in v.files]))
    manifest = Manifest(
        name=NAME,
        version=f"0.0.0-{identity.rpartition(':')[2][:12]}x",
        inputs=bench.inputs,
        outputs=bench.outputs,
        variants=variants,
        lineage=Lineage("candidates", sha256_bytes(b""), "", bench.seed, {}, {}),
        golden=inputs,
    )
    return pack(manifest, files, out)


def _variant(
    trial: Trial,
    base: dict[str, Array],
    feed: dict[str, Array],
    bench: Bench,
    profile: HardwareProfile,
    threads: int,
    add: Callable[[str, Path | bytes], BlobRef],
) -> Variant:
    """Return a trial as a variant of the bundle."""
    draft, folder = trial.draft(threads), trial.folder
    assert folder is not None  # or the draft had raised
    outputs = trial.glimpsed()
    first = first_run(outputs, bench.outputs, samples.batch_of(feed))
    recorded = add(f"golden/{trial.id}.npz", save_arrays(first)) if first else None
    refs = tuple(add(f"variants/{trial.id}/{r.path}", folder / r.path) for r in draft.files)
    return msgspec.structs.replace(
        draft,
        profile=profile.name,
        files=refs,
        entry=f"variants/{trial.id}/{draft.entry}",
        tolerance=golden.tolerance(trial.recipe.precision, outputs, base),
        golden=recorded,
    )


def first_run(
    joined: dict[str, Array], outputs: tuple[TensorSpec, ...], batch: int
) -> dict[str, Array]:
    """Return what the first of many runs gave, from the outputs of all (``samples.join``).

    Empty when an output's shape changed from run to run: then they cannot be told apart.
    """
    first: dict[str, Array] = {}
    for spec in outputs:
        array = joined[spec.name]
        if array.ndim == len(spec.shape) and spec.shape:
            first[spec.name] = array[:batch]
        elif array.ndim == len(spec.shape) + 1:
            first[spec.name] = array[0]
        else:
            return {}
    return first
