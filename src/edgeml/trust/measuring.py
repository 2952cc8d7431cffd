"""An order to measure candidates on one device, signed by the director.

It makes a device load files that serve nobody, so it is believed as little as a desired state: the
director must have signed it, for this device, with a number above everything seen.
"""

from __future__ import annotations

from typing import Final

from securesystemslib.signer import Signer

from edgeml.errors import NotTrustedError
from edgeml.messages.measuring import MeasureOrder
from edgeml.messages.payloads import SCHEMA, decode, encode
from edgeml.trust.envelope import DirectorKeys, opened, seal

PAYLOAD_TYPE: Final = "application/vnd.edgeml.measure.v1+json"


def sign(order: MeasureOrder, signer: Signer) -> bytes:
    """Return the envelope of an order."""
    return seal(encode(order), PAYLOAD_TYPE, signer)


def verify(
    envelope: bytes,
    keys: DirectorKeys,
    *,
    fleet: str,
    device: str,
    seen: int,
    now: float | None,
) -> MeasureOrder | None:
    """Return the order of an envelope that may be acted on.

    Args:
        envelope: Bytes as they came in.
        keys: The director's keys.
        fleet: Our fleet.
        device: Our name.
        seen: Highest number that this device has accepted; 0 for none.
        now: Unix seconds of a clock that is trusted; None when it is not, and then
            ``not_after`` is not judged.

    Returns:
        The order; or None when it is the one that was accepted last.

    Raises:
        NotTrustedError: It is not signed by the director, not whole, not for us, older than
            what was seen, or out of date.
    """
    order = decode(opened(envelope, PAYLOAD_TYPE, keys), MeasureOrder)
    if order.schema > SCHEMA:
        raise NotTrustedError(
            f"order of schema {order.schema}, this agent reads up to {SCHEMA}", "update the agent"
        )
    if (order.fleet, order.device) != (fleet, device):
        raise NotTrustedError(
            f"order is for '{order.fleet}/{order.device}', we are '{fleet}/{device}'"
        )
    if order.number < max(seen, 1):
        raise NotTrustedError(f"order of number {order.number}, expected more than {seen}")
    if order.number == seen:
        return None
    if now is not None and order.not_after and now > order.not_after:
        raise NotTrustedError(
            f"order {order.number} was to be begun {now - order.not_after:.0f} s ago at the latest",
            "check the clock of this device, or measure again",
        )
    return order
