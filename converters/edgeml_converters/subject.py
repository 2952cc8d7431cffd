"""Subjects of a comparison: a variant of a bundle, or a model file on a runtime."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeml.bundle import Bundle
from edgeml.digest import sha256_bytes, sha256_file
from edgeml.errors import ModelError, ProfileError, UsageError, nearest
from edgeml.hardware import DeviceFacts, fits, load_profile, profile_names
from edgeml.manifest import BlobRef, Evidence, EvidenceState, Tolerance, Variant
from edgeml.runtime import ProgramOptions, get_runtime, runtime_names
from edgeml.runtime.bind import binding_identity
from edgeml.tensors import TensorSpec
from edgeml_converters.inspect import inspect_model

_BUNDLES = (".edgeml", ".tar")


@dataclass(frozen=True)
class Subject:
    """Something that can be run, checked and measured.

    Attributes:
        name: As the user wrote it, with the variant or runtime that was taken.
        folder: Holds its files.
        variant: What to open; ``threads`` are those of every run here.
        inputs: The public contract.
        outputs: The public contract.
        digest: Of the bundle, or of the model's files.
        notes: What a reader should know of it.
    """

    name: str
    folder: Path
    variant: Variant
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    digest: str
    notes: tuple[str, ...] = ()


def open_subject(spec: str, work: Path, facts: DeviceFacts, threads: int | None) -> Subject:
    """Return what a user named.

    Args:
        spec: ``BUNDLE``, ``BUNDLE#VARIANT``, ``MODEL`` or ``MODEL#RUNTIME``. Without a variant,
            the first that fits this machine: what a device would take.
        work: A folder that bundles are unpacked into; it is not there yet.
        facts: This machine.
        threads: Threads of every run; what a variant was made for, or 1, when None.

    Raises:
        UsageError: There is no such variant, no such runtime, or no runtime opens such files.
        ModelError: The model is not there, or does not load.
        BundleError: The bundle is broken.
        ProfileError: No variant fits this machine.
    """
    path, part = _split(spec)
    if path.suffix in _BUNDLES or path.is_dir():
        return _from_bundle(path, part, work, facts, threads)
    return _from_model(path, part, threads or 1)


def _split(spec: str) -> tuple[Path, str]:
    """Return the path and what stands behind ``#``; a file may have ``#`` in its name."""
    head, sign, part = spec.rpartition("#")
    if not sign or Path(spec).exists():
        return Path(spec), ""
    return Path(head), part


def _from_bundle(
    path: Path, part: str, work: Path, facts: DeviceFacts, threads: int | None
) -> Subject:
    bundle = Bundle.open(path)
    variant = _choose(bundle, part, facts)
    folder = bundle.unpack(work, variant.id)
    used = threads or variant.threads
    return Subject(
        f"{path.name}#{variant.id}",
        folder,
        msgspec.structs.replace(variant, threads=used),
        bundle.manifest.inputs,
        bundle.manifest.outputs,
        bundle.digest,
        _misfit(variant, facts),
    )


def _choose(bundle: Bundle, part: str, facts: DeviceFacts) -> Variant:
    """Return the variant that is meant.

    Raises:
        UsageError: There is no such variant, or several are meant.
        ProfileError: None was asked for, and none fits this machine.
    """
    variants = bundle.manifest.variants
    if not part:
        fitting = [v for v in variants if not _misfit(v, facts)]
        if not fitting:
            raise ProfileError(
                f"no variant of '{bundle.path.name}' fits this machine",
                f"name one: {bundle.path.name}#{variants[0].id}" if variants else "it has none",
            )
        return fitting[0]
    known = {v.id: v for v in variants}
    # The profile in front may be left out where that is clear.
    meant = [v for v in variants if part in (v.id, v.id.partition(".")[2])]
    if len(meant) > 1:
        raise UsageError(
            f"'{part}' of '{bundle.path.name}' could be {' or '.join(v.id for v in meant)}",
            "write the profile in front",
        )
    if not meant:
        raise UsageError(f"'{bundle.path.name}' has no variant '{part}'", nearest(part, known))
    return meant[0]


def _misfit(variant: Variant, facts: DeviceFacts) -> tuple[str, ...]:
    """Return why a variant is not for this machine; a profile that is not known says nothing."""
    if variant.profile not in profile_names():
        return ()
    reason = fits(load_profile(variant.profile), facts)
    return (f"{variant.id} was made for another machine: {reason}",) if reason else ()


def _from_model(path: Path, part: str, threads: int) -> Subject:
    if not path.is_file():
        there = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = nearest(path.name, there) if there else "check the path"
        raise ModelError(f"'{path}' is not there, or is not a file", hint)
    runtime = _runtime(path, part)
    scheme = str(inspect_model(path)["scheme"]) if path.suffix in (".onnx", ".tflite") else ""
    opened = get_runtime(runtime).prepare(path, ProgramOptions(threads=threads))
    with closing(opened) as program:
        inputs, outputs = program.inputs, program.outputs
    files = tuple(
        BlobRef(sha256_file(file), file.stat().st_size, file.relative_to(path.parent).as_posix())
        for file in model_files(path)
    )
    variant = Variant(
        id=runtime,
        profile="",
        runtime=runtime,
        precision=scheme or ("float" if path.suffix in (".onnx", ".tflite") else "as it is"),
        recipe="",
        files=files,
        entry=path.name,
        inputs=tuple(map(binding_identity, inputs)),
        outputs=tuple(map(binding_identity, outputs)),
        evidence=Evidence(EvidenceState.CHECKED, ""),
        tolerance=Tolerance(0.0, 0.0),
        threads=threads,
    )
    lines = "".join(f"{ref.digest}  {ref.path}\n" for ref in files)
    digest = files[0].digest if len(files) == 1 else sha256_bytes(lines.encode())
    return Subject(f"{path.name}#{runtime}", path.parent, variant, inputs, outputs, digest)


def _runtime(path: Path, part: str) -> str:
    """Return the name of the runtime that opens a model: the one asked for, else the first.

    Raises:
        UsageError: No runtime opens such files, or there is no such runtime.
    """
    suffixes = {name: get_runtime(name).suffixes for name in runtime_names()}
    if part and part not in suffixes:
        raise UsageError(f"unknown runtime '{part}' for '{path.name}'", nearest(part, suffixes))
    able = [name for name, known in suffixes.items() if path.suffix.lower() in known]
    if not able:
        expected = ", ".join(sorted({s for known in suffixes.values() for s in known}))
        raise UsageError(
            f"no runtime opens '{path.name}'", f"give a file {expected}, or a bundle .edgeml"
        )
    if part and part not in able:
        raise UsageError(f"{part} does not open '{path.name}'", f"known: {', '.join(able)}")
    return part or able[0]


def model_files(path: Path) -> tuple[Path, ...]:
    """Return a model's files: itself, and what holds its weights beside it.

    Raises:
        ModelError: It is no model, or names a file that is not there.
    """
    found = [path]
    if path.suffix.lower() == ".xml" and path.with_suffix(".bin").is_file():
        found.append(path.with_suffix(".bin"))
    if path.suffix.lower() == ".onnx":
        import onnx
        from google.protobuf.message import DecodeError

        from edgeml_converters.source.external import all_tensors

        try:
            model = onnx.load(path, load_external_data=False)
        except DecodeError as error:
            raise ModelError(f"'{path}' cannot be decoded as an ONNX model") from error
        places = {
            entry.value
            for tensor in all_tensors(model)
            for entry in tensor.external_data
            if entry.key == "location"
        }
        found += [path.parent / place for place in sorted(places)]
    for file in found:
        if not file.is_file():
            raise ModelError(f"'{path}' needs '{file}', which is not there", "copy it beside")
    return tuple(found)
