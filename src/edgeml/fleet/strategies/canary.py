"""Canary: a few devices first, the rest when they are well."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence

#: A quarter first, then everybody.
DEFAULT_SHARES = (0.25, 1.0)


def waves(
    devices: Sequence[str], salt: str, shares: Sequence[float]
) -> tuple[tuple[str, ...], ...]:
    """Order the devices by a salted hash, and cut the order at the shares.

    The order depends only on the salt and on the names: the same rollout always has the same
    waves, raising a share only adds devices, and another rollout has other canaries. Every wave
    has at least one device, as long as there are any.
    """
    ranked = sorted(devices, key=lambda d: hashlib.sha256(f"{salt}/{d}".encode()).digest())
    cuts: list[int] = [0]
    for share in shares or DEFAULT_SHARES:
        wanted = math.ceil(round(share * len(ranked), 6))
        cuts.append(min(len(ranked), max(wanted, cuts[-1] + 1)))
    found = (tuple(ranked[a:b]) for a, b in itertools.pairwise(cuts))
    return tuple(wave for wave in found if wave)
