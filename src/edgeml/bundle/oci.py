"""The OCI side of a bundle: image manifest, index and layout file, written and strictly parsed.

Media types are those of the CNCF ModelPack specification where it has one; the formats are those
of the OCI image specification 1.1. Everything is encoded with sorted keys and without wall time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from edgeml.bundle.paths import check_paths
from edgeml.digest import is_digest, sha256_bytes
from edgeml.errors import BundleError
from edgeml.manifest import BlobRef, Manifest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
DOC = "application/vnd.cncf.model.doc.v1.raw"
DATASET = "application/vnd.cncf.model.dataset.v1.raw"
MANIFEST = "application/vnd.edgeml.manifest.v1+json"
DRIFT = "application/vnd.edgeml.drift.v1"

TITLE = "org.opencontainers.image.title"
VERSION = "org.opencontainers.image.version"
REF_NAME = "org.opencontainers.image.ref.name"
#: ModelPack's own name for the path of a layer.
FILEPATH = "org.cncf.model.filepath"

#: Where our Manifest lies in an unpacked bundle.
MANIFEST_PATH = "manifest.json"

#: Bounds on what is read from a bundle that may be hostile.
MAX_INDEX = 1 << 20
MAX_OCI_MANIFEST = 4 << 20
MAX_MANIFEST = 16 << 20
MAX_LAYERS = 4096
MAX_TOTAL = 64 << 30
#: One blob under many paths makes a small file fill a disk when it is unpacked.
MAX_SHARED = 64

LAYOUT_FILE = b'{"imageLayoutVersion":"1.0.0"}'

T = TypeVar("T")


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A descriptor of the OCI specification: media type, digest and size of a blob."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}
    artifact_type: str = ""


class ImageManifest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The image manifest of the OCI specification, as far as a bundle uses it."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    schema_version: int = msgspec.field(default=0)
    media_type: str = ""
    artifact_type: str = ""
    annotations: dict[str, str] = {}


class Index(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The image index (``index.json``) of the OCI specification."""

    manifests: tuple[Descriptor, ...]
    schema_version: int = 0
    media_type: str = ""


def decode_json(data: bytes, kind: type[T], what: str) -> T:
    """Decode JSON from a stranger.

    Raises:
        BundleError: It is not JSON, nested too deeply, or not of this kind.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{what} is not valid: {error}", "make or fetch the bundle again") from (
            error
        )
    except RecursionError as error:
        raise BundleError(f"{what} is nested too deeply") from error


def encode_json(value: object) -> bytes:
    """Encode with sorted keys and no white space, so that equal values give equal bytes."""
    return msgspec.json.encode(value, order="sorted")


def parse_manifest(data: bytes) -> ImageManifest:
    """Parse an OCI image manifest, and hold it to the bounds of a bundle.

    Raises:
        BundleError: It is not the manifest of a bundle.
    """
    if len(data) > MAX_OCI_MANIFEST:
        raise BundleError(
            f"OCI manifest has {len(data)} bytes, expected {MAX_OCI_MANIFEST} at most"
        )
    parsed = decode_json(data, ImageManifest, "OCI manifest")
    if parsed.schema_version != 2 or parsed.media_type not in ("", OCI_MANIFEST):
        raise BundleError(
            f"OCI manifest is '{parsed.media_type}' version {parsed.schema_version}, "
            f"expected '{OCI_MANIFEST}' version 2"
        )
    if len(parsed.layers) > MAX_LAYERS:
        raise BundleError(f"OCI manifest has {len(parsed.layers)} layers, expected {MAX_LAYERS}")
    for descriptor in (parsed.config, *parsed.layers):
        check_descriptor(descriptor)
    shared = Counter(layer.digest for layer in parsed.layers)
    if shared and max(shared.values()) > MAX_SHARED:
        raise BundleError(f"OCI manifest has one blob under more than {MAX_SHARED} paths")
    total = sum(layer.size for layer in parsed.layers)
    if total > MAX_TOTAL:
        raise BundleError(f"OCI manifest declares {total} bytes, expected {MAX_TOTAL} at most")
    return parsed


def check_descriptor(descriptor: Descriptor) -> None:
    """Check that a descriptor has a well-formed digest and a size that is possible.

    Raises:
        BundleError: It has not.
    """
    if not is_digest(descriptor.digest):
        raise BundleError(
            f"descriptor has digest '{descriptor.digest[:80]}', expected sha256:<hex>"
        )
    if not 0 <= descriptor.size <= MAX_TOTAL:
        raise BundleError(f"{descriptor.digest} declares {descriptor.size} bytes")


def layers(oci_manifest: bytes) -> tuple[BlobRef, ...]:
    """Return the layers of an OCI manifest, each with its path in the bundle.

    Raises:
        BundleError: It is not the manifest of a bundle, or a path is unsafe or used twice.
    """
    return layer_refs(parse_manifest(oci_manifest))


def layer_refs(parsed: ImageManifest) -> tuple[BlobRef, ...]:
    """Return the layers of a parsed manifest; see ``layers``."""
    refs = tuple(
        BlobRef(layer.digest, layer.size, layer.annotations.get(TITLE, ""))
        for layer in parsed.layers
    )
    check_paths(ref.path for ref in refs)
    return refs


def manifest_layer(oci_manifest: bytes) -> BlobRef:
    """Return the layer that is our Manifest.

    Raises:
        BundleError: There is none, more than one, or it is too large.
    """
    return find_manifest(parse_manifest(oci_manifest))


def find_manifest(parsed: ImageManifest) -> BlobRef:
    """Return the layer that is our Manifest; see ``manifest_layer``."""
    refs = layer_refs(parsed)
    found = [
        ref for ref, layer in zip(refs, parsed.layers, strict=True) if layer.media_type == MANIFEST
    ]
    if len(found) != 1:
        raise BundleError(
            f"OCI manifest has {len(found)} layers of type {MANIFEST}, expected 1",
            "is this a bundle of edgeml?",
        )
    if found[0].size > MAX_MANIFEST:
        raise BundleError(f"manifest has {found[0].size} bytes, expected {MAX_MANIFEST} at most")
    return found[0]


def media_types(manifest: Manifest) -> dict[str, str]:
    """Return path -> media type of every blob that a manifest names."""
    kinds = {ref.path: DOC for ref in manifest.report}
    if manifest.measurements:
        kinds[manifest.measurements.path] = DOC
    if manifest.drift:
        kinds[manifest.drift.path] = DRIFT
    if manifest.golden:
        kinds[manifest.golden.path] = DATASET
    for variant in manifest.variants:
        if variant.golden:
            kinds[variant.golden.path] = DATASET
        kinds.update((ref.path, WEIGHT) for ref in variant.files)
    return kinds


def build(manifest: Manifest, encoded: bytes) -> tuple[bytes, bytes]:
    """Return the OCI manifest and the config blob for a Manifest.

    Args:
        manifest: The Manifest.
        encoded: Its bytes, which become the first layer.
    """
    kinds = media_types(manifest)
    refs = sorted(manifest.blobs(), key=lambda ref: ref.path)
    first = BlobRef(sha256_bytes(encoded), len(encoded), MANIFEST_PATH)
    found = [_layer(first, MANIFEST), *(_layer(ref, kinds[ref.path]) for ref in refs)]
    config = encode_json(
        {
            "descriptor": {"name": manifest.name, "version": manifest.version},
            "config": {"format": "edgeml"},
            "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in found]},
        }
    )
    image = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT,
        "config": {"mediaType": CONFIG, "digest": sha256_bytes(config), "size": len(config)},
        "layers": found,
        "annotations": {TITLE: manifest.name, VERSION: manifest.version},
    }
    return encode_json(image), config


def _layer(ref: BlobRef, media_type: str) -> dict[str, object]:
    return {
        "mediaType": media_type,
        "digest": ref.digest,
        "size": ref.size,
        "annotations": {TITLE: ref.path, FILEPATH: ref.path},
    }


def index(oci_manifest: bytes, annotations: Mapping[str, str]) -> bytes:
    """Return ``index.json`` for an OCI manifest with these annotations."""
    descriptor: dict[str, object] = {
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT,
        "digest": sha256_bytes(oci_manifest),
        "size": len(oci_manifest),
    }
    if VERSION in annotations:
        descriptor["annotations"] = {REF_NAME: annotations[VERSION]}
    return encode_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor]})


def parse_index(data: bytes) -> Descriptor:
    """Return the one manifest that ``index.json`` names.

    Raises:
        BundleError: It names none, several, or something else.
    """
    parsed = decode_json(data, Index, "index.json")
    if len(parsed.manifests) != 1 or parsed.schema_version != 2:
        raise BundleError(
            f"index.json (version {parsed.schema_version}) names {len(parsed.manifests)} "
            "manifests, expected 1 (version 2)"
        )
    found = parsed.manifests[0]
    check_descriptor(found)
    if found.media_type != OCI_MANIFEST:
        raise BundleError(f"index.json names a '{found.media_type}', expected '{OCI_MANIFEST}'")
    if found.size > MAX_OCI_MANIFEST:
        raise BundleError(
            f"OCI manifest has {found.size} bytes, expected {MAX_OCI_MANIFEST} at most"
        )
    return found
