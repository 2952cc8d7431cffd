"""Bundle: an OCI image layout, as a folder or as one tar, that holds a model in all its variants.

``Bundle.open`` accepts or raises; nothing here uses the network. Blobs lie by SHA-256, so that any
OCI registry and tool carries a bundle as it is. The digest of the OCI manifest is the identity of
the bundle everywhere.
"""

from edgeml.bundle.bundle import Bundle
from edgeml.bundle.oci import layers, manifest_layer
from edgeml.bundle.pack import blob_ref, pack, write_layout

__all__ = ["Bundle", "blob_ref", "layers", "manifest_layer", "pack", "write_layout"]
