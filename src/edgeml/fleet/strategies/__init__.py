"""Strategies: which device is in which wave. One file each; found by name in ``STRATEGIES``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgeml.errors import UsageError, nearest
from edgeml.fleet.strategies import all_at_once, canary

#: Waves from (devices, salt, cumulative shares in (0, 1], or nothing for the default).
Strategy = Callable[[Sequence[str], str, Sequence[float]], tuple[tuple[str, ...], ...]]

STRATEGIES: dict[str, Strategy] = {
    "canary": canary.waves,
    "all-at-once": all_at_once.waves,
}


def plan(
    strategy: str, devices: Sequence[str], salt: str, shares: Sequence[float] = ()
) -> tuple[tuple[str, ...], ...]:
    """Return the devices of each wave, none empty, each device in exactly one.

    Args:
        strategy: Name of the strategy.
        devices: Ids of all devices of the rollout.
        salt: The rollout's id, so that not always the same devices go first.
        shares: Cumulative shares; empty for the strategy's own default.

    Raises:
        UsageError: The strategy is unknown, the shares cannot be used, or there is no device.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"unknown strategy '{strategy}'", nearest(strategy, STRATEGIES))
    if not devices:
        raise UsageError("a rollout to no device", "look at 'edgeml fleet devices'")
    return STRATEGIES[strategy](sorted(set(devices)), salt, shares)


def parse_waves(text: str) -> tuple[float, ...]:
    """Return cumulative shares from text like ``25%,100%``; nothing from empty text.

    Raises:
        UsageError: A part is no percentage, they do not rise, or the last is not 100 %.
    """
    if not text.strip():
        return ()
    shares: list[float] = []
    for part in text.split(","):
        word = part.strip()
        try:
            value = float(word.removesuffix("%"))
        except ValueError:
            value = -1.0
        if not word.endswith("%") or not 0 < value <= 100:
            raise UsageError(f"wave '{word}' is no percentage", "for example --waves 25%,100%")
        shares.append(value / 100)
    if shares != sorted(set(shares)) or shares[-1] != 1.0:
        raise UsageError(f"waves '{text}' do not rise to 100%", "for example --waves 25%,100%")
    return tuple(shares)
