"""All at once: one wave, for the first version of a model or for a bench of devices."""

from __future__ import annotations

from collections.abc import Sequence

from edgeml.errors import UsageError


def waves(
    devices: Sequence[str], salt: str, shares: Sequence[float]
) -> tuple[tuple[str, ...], ...]:
    """Return one wave with every device.

    Raises:
        UsageError: Shares were given.
    """
    del salt
    if shares and tuple(shares) != (1.0,):
        raise UsageError("--waves with the strategy all-at-once", "use --strategy canary")
    return (tuple(devices),)
