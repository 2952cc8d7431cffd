"""Every error that a user can meet, and the exit code that it ends with.

::

    EdgemlError                 70  base; met only as one of its families
    ├── GateError                1  a gate said no
    ├── UsageError               2  the command line or the configuration is wrong
    │   ├── InputError           2  a file or a value that was given cannot be used
    │   │   ├── ModelError       2  a model
    │   │   ├── DataError        2  evaluation data
    │   │   ├── BundleError      2  a bundle
    │   │   └── RequestError     2  a request to a served model (shape, type, range)
    │   └── ProfileError         2  a hardware profile
    ├── MissingPackageError      3  an optional package or toolchain is not here
    ├── NotTrustedError          4  a signature, digest or generation does not hold
    ├── UnreachableError         5  a broker, a fleet or an agent does not answer
    ├── DeviceError             70  a device could not do what was asked (disk, memory, state)
    └── InternalError           70  our own bug

The message says what, got, expected and where, in one line; the hint is the next thing to do.
Two families mean two reactions on a device: never retry NotTrustedError, always retry
UnreachableError.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class EdgemlError(Exception):
    """Base of all errors of this project.

    Args:
        message: One line: what went wrong, what was got, what was expected, where.
        hint: One line: what to do next. May be empty.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, hint: str = "") -> None:
        """Keep the message and the hint, each folded to one line."""
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split())
        super().__init__(self.message)

    def as_dict(self) -> dict[str, object]:
        """Return the error as the one object that ``--json`` prints."""
        return {
            "error": {
                "type": type(self).__name__,
                "message": self.message,
                "hint": self.hint,
                "exit_code": self.exit_code,
            }
        }


class GateError(EdgemlError):
    """A gate said no."""

    exit_code = 1


class UsageError(EdgemlError):
    """The command line or the configuration is wrong."""

    exit_code = 2


class InputError(UsageError):
    """A file or value that was given cannot be used."""


class ModelError(InputError):
    """A model cannot be used."""


class DataError(InputError):
    """Evaluation data cannot be used."""


class BundleError(InputError):
    """A bundle cannot be used."""


class RequestError(InputError):
    """A request to a served model is not what its specification says."""


class ProfileError(UsageError):
    """A hardware profile is unknown, or wrong."""


class MissingPackageError(EdgemlError):
    """An optional package or toolchain is not installed."""

    exit_code = 3


class NotTrustedError(EdgemlError):
    """Something is not signed, not intact, or older than what was already seen."""

    exit_code = 4


class UnreachableError(EdgemlError):
    """A broker, a fleet or an agent does not answer; trying later may help."""

    exit_code = 5


class DeviceError(EdgemlError):
    """A device could not do what was asked of it (disk, memory, state)."""


class InternalError(EdgemlError):
    """Our own bug."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the known word nearest to ``word``.

    Args:
        word: What was given.
        known: What would have been right.

    Returns:
        ``did you mean 'x'?``, or the list of known words when nothing is near.
    """
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(words)}"
