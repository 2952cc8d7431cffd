"""Trust: what may run (TUF), and who runs what (a signed DesiredState).

``repository`` makes and signs TUF metadata on the server, ``client`` verifies it on a device,
``desired`` signs and verifies one device's desired state. Two roles, two powers: ``targets`` says
which bundles exist, the delegated role ``director`` says which device runs which of them.
"""

from __future__ import annotations


def bundle_target(model: str, version: str) -> str:
    """Return the target path under which a bundle's OCI manifest is listed.

    The target's bytes are the OCI manifest, so its digest is the digest of the bundle.
    """
    return f"bundles/{model}/{version}"
