"""Whether a Manifest holds together, before anybody relies on it."""

from __future__ import annotations

import re

from edgeml.bundle.oci import MANIFEST_PATH
from edgeml.bundle.paths import check_paths
from edgeml.digest import is_digest
from edgeml.errors import BundleError
from edgeml.manifest import SCHEMA, Binding, Manifest, Variant
from edgeml.tensors import DATATYPES, TensorSpec

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
# The grammar of https://semver.org, version 2.0.0.
_PART = r"(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)"
_SEMVER = re.compile(
    r"(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)"
    rf"(?:-{_PART}(?:\.{_PART})*)?(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?",
    re.ASCII,
)


def check_manifest(manifest: Manifest) -> None:
    """Check names, versions, paths and references of a Manifest.

    Raises:
        BundleError: The first thing that does not hold.
    """
    if not 1 <= manifest.schema <= SCHEMA:
        raise BundleError(
            f"manifest has schema {manifest.schema}, this release reads up to {SCHEMA}",
            "upgrade edgeml-kit",
        )
    if not _NAME.fullmatch(manifest.name):
        raise BundleError(
            f"name '{manifest.name[:80]}' is not allowed",
            "up to 100 lower-case letters, digits, '-', '_' and '.', a letter or digit first",
        )
    if len(manifest.version) > 100 or not _SEMVER.fullmatch(manifest.version):
        raise BundleError(
            f"version '{manifest.version[:80]}' is not SemVer", "write MAJOR.MINOR.PATCH: 1.0.0"
        )
    for ref in manifest.blobs():
        if not is_digest(ref.digest) or ref.size < 0:
            raise BundleError(f"blob '{ref.path[:80]}' has digest '{ref.digest}' size {ref.size}")
    check_paths((MANIFEST_PATH, *(ref.path for ref in manifest.blobs())))
    ids = [variant.id for variant in manifest.variants]
    if len(set(ids)) != len(ids):
        raise BundleError(f"two variants have one id, in: {', '.join(ids)[:200]}")
    for spec in (*manifest.inputs, *manifest.outputs):
        if spec.dtype not in DATATYPES or any(n < -1 for n in spec.shape):
            raise BundleError(f"tensor '{spec.name[:80]}' has type '{spec.dtype}' {spec.shape}")
    for variant in manifest.variants:
        _check_variant(manifest, variant)


def _check_variant(manifest: Manifest, variant: Variant) -> None:
    if variant.entry not in {ref.path for ref in variant.files}:
        raise BundleError(f"variant '{variant.id}' opens '{variant.entry}', not one of its files")
    _check_bindings(variant, variant.inputs, manifest.inputs)
    _check_bindings(variant, variant.outputs, manifest.outputs)
    if variant.threads < 1 or variant.max_batch < 0:
        raise BundleError(
            f"variant '{variant.id}' has {variant.threads} threads, batch {variant.max_batch}"
        )


def _check_bindings(
    variant: Variant, bindings: tuple[Binding, ...], specs: tuple[TensorSpec, ...]
) -> None:
    got, expected = [b.name for b in bindings], [s.name for s in specs]
    if got != expected:
        raise BundleError(
            f"variant '{variant.id}' binds {got}, expected {expected} in the same order"
        )
    for binding in bindings:
        axes = range(len(binding.shape))
        if binding.perm and sorted(binding.perm) != list(axes):
            raise BundleError(
                f"variant '{variant.id}' permutes '{binding.name}' by {list(binding.perm)}, "
                f"expected a permutation of {len(axes)} axes"
            )
        if binding.dtype not in DATATYPES:
            raise BundleError(f"variant '{variant.id}' has a tensor of type '{binding.dtype}'")
