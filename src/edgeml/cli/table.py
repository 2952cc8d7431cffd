"""Which command is where: name -> (``module:object``, one line of help, extra)."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One command.

    Attributes:
        target: ``module:object`` of a click command or group.
        help: The line that ``--help`` shows; equal to the command's own short help (a test).
        extra: The extra of the distribution that it needs; empty when the core is enough.
    """

    target: str
    help: str
    extra: str = ""


COMMANDS: dict[str, Row] = {
    "bench": Row(
        "edgeml.cli.bench:command",
        "Measure a bundle's variants, or a model on every runtime, on this machine.",
    ),
    "doctor": Row(
        "edgeml.cli.doctor:command", "Tell what works on this machine, and how to get the rest."
    ),
}
