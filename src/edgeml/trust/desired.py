"""One device's desired state, signed by the director and travelling as a DSSE envelope.

The payload inside is read tolerantly, as every message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from securesystemslib.signer import Signer

from edgeml.errors import NotTrustedError
from edgeml.messages.payloads import SCHEMA, DesiredState, decode, encode
from edgeml.trust.envelope import MAX_ENVELOPE, DirectorKeys, opened, seal

__all__ = ["MAX_ENVELOPE", "PAYLOAD_TYPE", "DirectorKeys", "sign", "verify"]

PAYLOAD_TYPE: Final = "application/vnd.edgeml.desired.v1+json"


def sign(desired: DesiredState, signer: Signer | Sequence[Signer]) -> bytes:
    """Return the envelope of a desired state.

    Args:
        desired: What to sign.
        signer: The director's key, or several where the threshold asks for them.
    """
    return seal(encode(desired), PAYLOAD_TYPE, signer)


def verify(
    envelope: bytes,
    keys: DirectorKeys,
    *,
    fleet: str,
    device: str,
    seen: int,
    now: float | None,
) -> DesiredState | None:
    """Return the desired state of an envelope that may be acted on.

    Args:
        envelope: Bytes as they came in.
        keys: The director's keys, from ``TrustClient.director_keys``.
        fleet: Our fleet.
        device: Our name.
        seen: Highest generation that this device has accepted; 0 for none.
        now: Unix seconds of a clock that is trusted; None when it is not, and then
            ``not_after`` is not judged.

    Returns:
        The state; or None when it is a true message of the generation that was accepted last
        (brokers deliver retained messages again): there is nothing to do.

    Raises:
        NotTrustedError: It is not signed by the director, not whole, not for us, older than
            what was seen, or out of date.
    """
    desired = decode(opened(envelope, PAYLOAD_TYPE, keys), DesiredState)
    if desired.schema > SCHEMA:
        raise NotTrustedError(
            f"desired state of schema {desired.schema}, this agent reads up to {SCHEMA}",
            "update the agent",
        )
    if (desired.fleet, desired.device) != (fleet, device):
        raise NotTrustedError(
            f"desired state is for '{desired.fleet}/{desired.device}', we are '{fleet}/{device}'"
        )
    if desired.generation < max(seen, 1):
        raise NotTrustedError(
            f"desired state of generation {desired.generation}, expected more than {seen}"
        )
    if desired.generation == seen:
        return None
    if now is not None and desired.not_after and now > desired.not_after:
        raise NotTrustedError(
            f"desired state of generation {desired.generation} was to be taken up"
            f" {now - desired.not_after:.0f} s ago at the latest",
            "check the clock of this device, or deploy again",
        )
    return desired
