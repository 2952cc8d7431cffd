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
    "convert": Row(
        "edgeml_converters.cli:convert",
        "Make a model fast and small for a device, and prove it.",
        "convert",
    ),
    "sweep": Row(
        "edgeml_converters.sweep_cli:command", "Convert many models, as a file says.", "convert"
    ),
    "compare": Row(
        "edgeml_converters.compare_cli:command",
        "Compare two models or bundles: accuracy, latency, memory.",
        "convert",
    ),
    "bench": Row(
        "edgeml.cli.bench:command",
        "Measure a bundle's variants, or a model on every runtime, on this machine.",
    ),
    "doctor": Row(
        "edgeml.cli.doctor:command", "Tell what works on this machine, and how to get the rest."
    ),
    "profiles": Row(
        "edgeml.cli.profiles:profiles",
        "List hardware profiles, show one, or detect this machine's.",
    ),
    "inspect": Row("edgeml.cli.inspect:inspect", "Show what a bundle or a model file holds."),
    "verify": Row("edgeml.cli.verify:verify", "Check the structure and every byte of a bundle."),
    "unpack": Row("edgeml.cli.unpack:unpack", "Unpack a bundle into a folder."),
    "fleet": Row(
        "edgeml.cli.fleet:group", "Serve a fleet of devices, and roll versions out to it."
    ),
    "registry": Row("edgeml.cli.registry:group", "Push, list and name versions of models."),
    "demo": Row(
        "edgeml.cli.demo.command:demo",
        "Convert, serve, roll out, roll back: the whole job on this machine.",
    ),
}
