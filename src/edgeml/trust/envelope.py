"""What the director signs: a payload in a DSSE envelope.

The envelope is compared with its own canonical encoding before anything else: base64 and JSON
both allow several spellings of one value, and a message that was touched anywhere shall be
refused even where the meaning survived.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, Signature, Signer

from edgeml.errors import NotTrustedError

#: A longer envelope is refused unread: room for a few hundred slots and quarantined digests.
MAX_ENVELOPE: Final = 256 << 10


class DirectorKeys(NamedTuple):
    """Who may sign orders for devices: public keys, and how many of them must."""

    keys: tuple[Key, ...]
    threshold: int = 1


class _Signature(msgspec.Struct, frozen=True):
    keyid: str
    sig: bytes


class _Envelope(msgspec.Struct, frozen=True):
    payload: bytes
    payload_type: str = msgspec.field(name="payloadType")
    signatures: tuple[_Signature, ...]


def seal(payload: bytes, payload_type: str, signer: Signer | Sequence[Signer]) -> bytes:
    """Return the envelope of a payload.

    Args:
        payload: What to sign.
        payload_type: What it is.
        signer: The director's key, or several where the threshold asks for them.
    """
    envelope = Envelope(payload, payload_type, {})
    for one in [signer] if isinstance(signer, Signer) else signer:
        envelope.sign(one)
    signatures = tuple(
        _Signature(s.keyid, bytes.fromhex(s.signature)) for s in envelope.signatures.values()
    )
    return msgspec.json.encode(_Envelope(envelope.payload, envelope.payload_type, signatures))


def opened(data: bytes, payload_type: str, keys: DirectorKeys) -> bytes:
    """Return the payload when it is of this type and enough of the keys have signed it.

    Raises:
        NotTrustedError: It is not.
    """
    if len(data) > MAX_ENVELOPE:
        raise NotTrustedError(f"envelope of {len(data)} bytes, expected at most {MAX_ENVELOPE}")
    try:
        parsed = msgspec.json.decode(data, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotTrustedError(f"not a DSSE envelope: {error}") from error
    if msgspec.json.encode(parsed) != data:
        raise NotTrustedError("envelope is not in its canonical encoding")
    if parsed.payload_type != payload_type:
        raise NotTrustedError(f"envelope holds '{parsed.payload_type}', expected '{payload_type}'")
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
