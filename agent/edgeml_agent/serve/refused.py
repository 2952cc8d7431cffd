"""Refused: a request that is not answered with a result, and why."""

from __future__ import annotations

from edgeml.errors import DeviceError, EdgemlError, RequestError


class Refused(DeviceError):
    """A request that this device does not answer with a result.

    Attributes:
        status: HTTP status.
        kind: Under which it is counted: ``not_found``, ``overload``, ``deadline``, ``cancelled``,
            ``nonfinite``.
        retry_after: Seconds after which trying again makes sense; 0 for unknown.
    """

    def __init__(
        self, message: str, hint: str = "", *, status: int, kind: str, retry_after: int = 0
    ) -> None:
        """Keep what the reply needs."""
        super().__init__(message, hint)
        self.status = status
        self.kind = kind
        self.retry_after = retry_after


def status_of(error: EdgemlError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, Refused):
        return error.status
    return 400 if isinstance(error, RequestError) else 500


def kind_of(error: EdgemlError) -> str:
    """Return the kind under which an error is counted: ``request`` or ``device`` by family."""
    if isinstance(error, Refused):
        return error.kind
    return "request" if isinstance(error, RequestError) else "device"
