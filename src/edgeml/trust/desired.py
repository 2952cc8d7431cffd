"""One device's desired state, signed by the director and travelling as a DSSE envelope.

The envelope is compared with its own canonical encoding before anything else: base64 and JSON
both allow several spellings of one value, and a message that was touched anywhere shall be
refused even where the meaning survived. The payload inside is read tolerantly, as every message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, Signature, Signer

from edgeml.errors import NotTrustedError
from edgeml.messages.payloads import SCHEMA, DesiredState, decode, encode

PAYLOAD_TYPE: Final = "application/vnd.edgeml.desired.v1+json"
#: A longer envelope is refused unread: room for a few hundred slots and quarantined digests.
MAX_ENVELOPE: Final = 256 << 10


class DirectorKeys(NamedTuple):
    """Who may sign desired states: public keys, and how many of them must."""

    keys: tuple[Key, ...]
    threshold: int = 1


class _Signature(msgspec.Struct, frozen=True):
    keyid: str
    sig: bytes


class _Envelope(msgspec.Struct, frozen=True):
    payload: bytes
    payload_type: str = msgspec.field(name="payloadType")
    signatures: tuple[_Signature, ...]


def sign(desired: DesiredState, signer: Signer | Sequence[Signer]) -> bytes:
    """Return the envelope of a desired state.

    Args:
        desired: What to sign.
        signer: The director's key, or several where the threshold asks for them.
    """
    envelope = Envelope(encode(desired), PAYLOAD_TYPE, {})
    for one in [signer] if isinstance(signer, Signer) else signer:
        envelope.sign(one)
    signatures = tuple(
        _Signature(s.keyid, bytes.fromhex(s.signature)) for s in envelope.signatures.values()
    )
    return msgspec.json.encode(_Envelope(envelope.payload, envelope.payload_type, signatures))


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
    desired = decode(_verified_payload(envelope, keys), DesiredState)
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


def _verified_payload(data: bytes, keys: DirectorKeys) -> bytes:
    """Return the payload when enough of the keys have signed it."""
    if len(data) > MAX_ENVELOPE:
        raise NotTrustedError(f"envelope of {len(data)} bytes, expected at most {MAX_ENVELOPE}")
    try:
        parsed = msgspec.json.decode(data, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotTrustedError(f"not a DSSE envelope: {error}") from error
    if msgspec.json.encode(parsed) != data:
        raise NotTrustedError("envelope is not in its canonical encoding")
    if parsed.payload_type != PAYLOAD_TYPE:
        raise NotTrustedError(f"envelope holds '{parsed.payload_type}', expected '{PAYLOAD_TYPE}'")
    if len(keys.keys) < max(keys.threshold, 1):
        raise NotTrustedError(f"{len(keys.keys)} director keys, expected {keys.threshold} or more")
    signatures = {s.keyid: Signature(s.keyid, s.sig.hex()) for s in parsed.signatures}
    try:
        Envelope(parsed.payload, parsed.payload_type, signatures).verify(
            list(keys.keys), max(keys.threshold, 1)
        )
    except VerificationError as error:
        raise NotTrustedError(f"envelope is not signed by the director: {error}") from error
    return parsed.payload
