"""Presence: which devices are known to be there, and who must be asked to say it again.

What the database holds of a device was true when it was heard. Whether that still holds is known
only while the broker is connected, and only of devices whose state has come in since: brokers keep
it and say it again at every connect. What a broker dropped (its queues are bounded, and a fleet
that comes back speaks all at once) is asked for.

Belongs to the controller's thread; ``state_of`` and ``lost_for`` may be called from any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgeml.fleet.inventory import Device

ONLINE: Final = "online"
OFFLINE: Final = "offline"
UNKNOWN: Final = "unknown"
#: Seconds between two requests to the same device, and most requests at one look: the answers of
#: a whole fleet at once are what got lost in the first place.
ASK_AGAIN: Final = 30.0
ASK_MOST: Final = 200
#: After a connect devices come back one by one, and the broker's own absence is no news of them.
SETTLE: Final = 30.0


class Presence:
    """Who was heard since the broker was connected last.

    Args:
        now: Unix seconds.
    """

    def __init__(self, now: float) -> None:
        """Start without a broker."""
        self._connected = False
        self._since = now
        self._online: dict[str, bool] = {}
        self._told: dict[str, bool] = {}
        self._births: dict[str, str] = {}
        self._heard: set[str] = set()
        self._missing: set[str] = set()
        self._asked: dict[str, float] = {}

    def connected(self, now: float) -> None:
        """The broker is there: from now on it says what it kept."""
        self._connected, self._since = True, now

    def lost(self, now: float) -> None:
        """The broker is gone: nothing is known until it says it again."""
        # Forgotten here and not at the next connect, whose first messages may come before it.
        if self._connected:
            self._connected, self._since = False, now
        self._online, self._told, self._births = {}, {}, {}
        self._heard, self._missing = set(), set()

    def heard(self, device: str) -> None:
        """A device said something that no broker keeps: it is there."""
        self._heard.add(device)

    def born(self, device: str, boot: str) -> None:
        """A device said who it is."""
        self._births[device] = boot

    def stated(self, device: str, online: bool, now: float) -> None:
        """A device, or its last will, said whether it is there."""
        self._online[device] = online
        if not online:
            self._heard.discard(device)
        if device not in self._told or now - self._since < SETTLE:
            self._told[device] = online

    def moved(self) -> tuple[list[str], list[str]]:
        """Return who has gone and who has come since the last call."""
        news = {d: here for d, here in self._online.items() if self._told[d] != here}
        self._told.update(news)
        return sorted(d for d in news if not news[d]), sorted(d for d in news if news[d])

    def to_ask(self, devices: Mapping[str, Device], now: float) -> list[str]:
        """Return who must say again who it is and what it holds.

        Devices that are there, but whose state, or birth or report of this boot, have not come in
        by this look and the one before.
        """
        missing = {
            name
            for name in {*self._heard, *(n for n, d in devices.items() if d.online)}
            if not self._complete(name, devices.get(name))
        }
        again, self._missing = missing & self._missing, missing
        if not self._connected:
            return []
        due = [d for d in sorted(again) if now - self._asked.get(d, 0.0) >= ASK_AGAIN][:ASK_MOST]
        self._asked = {d: at for d, at in self._asked.items() if d in missing}
        self._asked.update(dict.fromkeys(due, now))
        return due

    def _complete(self, name: str, device: Device | None) -> bool:
        return (
            device is not None
            and name in self._online
            and self._births.get(name) == device.boot
            and device.reported is not None
            and device.reported.boot == device.boot
        )

    def state_of(self, device: Device) -> str:
        """Return ``online``, ``offline`` or ``unknown``."""
        if not device.seen:
            return OFFLINE
        if not self._connected or (device.online and device.device not in self._online):
            return UNKNOWN
        return ONLINE if device.online else OFFLINE

    def lost_for(self, now: float) -> float:
        """Return for how many seconds the broker has been away; 0 while it is connected."""
        return 0.0 if self._connected else max(0.001, now - self._since)
