"""What the commands of ``edgeml fleet`` and ``edgeml registry`` share."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from edgeml.errors import UsageError
from edgeml.fleet.client import FleetClient

DEFAULT_SERVER = "http://127.0.0.1:8080"


def data_folder() -> Path:
    """Return the default folder of a local server."""
    home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(home) / "edgeml" / "fleet"


def connected(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--server``, ``--token`` and ``--data``, and a client as its first argument.

    The token is taken from the flag, the variable, or ``DATA/admin-token`` of a local server.
    """

    @click.option(
        "--server", envvar="EDGEML_SERVER", default=DEFAULT_SERVER, show_default=True,
        help="Address of the fleet.",
    )  # fmt: skip
    @click.option("--token", envvar="EDGEML_TOKEN", default="", help="Token for the fleet.")
    @click.option(
        "--data", envvar="EDGEML_DATA", type=click.Path(path_type=Path), default=None,
        help="Folder of a server on this machine, to find its token.",
    )  # fmt: skip
    @functools.wraps(command)
    def wrapped(*args: Any, server: str, token: str, data: Path | None, **options: Any) -> Any:
        client = FleetClient(server, token or local_token(data))
        return command(client, *args, **options)

    return wrapped


def local_token(data: Path | None) -> str:
    """Return the token that a local server wrote; empty when there is none.

    Raises:
        UsageError: A folder was given and holds none that can be read.
    """
    path = (data or data_folder()) / "admin-token"
    try:
        return path.read_text().strip()
    except OSError as error:
        if data is not None:
            raise UsageError(
                f"cannot read {path}: {error.strerror}", "is it the folder of 'fleet serve'?"
            ) from error
        return ""


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would be done.")


def show_json(value: object) -> None:
    """Print a struct, or a list of them, as one JSON value."""
    click.echo(msgspec.json.encode(value).decode())


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns as wide as their longest cell; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(head), *(len(row[i]) for row in cells)]) for i, head in enumerate(heads)]
    right = [
        bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        for i in range(len(heads))
    ]
    for row in [[head.upper() for head in heads], *cells]:
        padded = (
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, right, strict=True)
        )
        click.echo("  ".join(padded).rstrip())


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value) if value not in (None, "") else "-"


def ago(moment: float) -> str:
    """Return how long ago a moment is, for people."""
    if not moment:
        return "never"
    seconds = max(0.0, time.time() - moment)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def clock(moment: float) -> str:
    """Return a moment as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def size_text(size: int) -> str:
    """Return a size in bytes for people."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def warn_lost(client: FleetClient) -> None:
    """Say it when the fleet cannot reach its broker: nobody knows then who is online."""
    health = client.health()
    if not health.broker:
        click.echo(
            f"broker lost {health.broker_lost:.0f} s ago: nobody knows which devices are online; "
            "they go on serving",
            err=True,
        )


def count_of(number: int, noun: str) -> str:
    """Return ``1 device``, ``2 devices``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def confirm(question: str, yes: bool) -> None:
    """Ask before the fleet is changed.

    Raises:
        UsageError: Nobody can be asked, and --yes was not given.
        click.Abort: The answer was no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("this changes the fleet, and nobody can be asked", "add --yes")
    click.confirm(question, abort=True, err=True)


def parse_address(text: str, what: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` (or ``PORT`` for the loopback interface).

    Raises:
        UsageError: It is neither.
    """
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{what} '{text}' is no address", f"for example {what} 127.0.0.1:8080")
    return host.strip("[]") or "127.0.0.1", int(port)


def parse_version(text: str) -> tuple[str, str]:
    """Return model and version of ``MODEL@VERSION``; an alias keeps its ``@``.

    ``kws@1.2.0`` is a version, ``kws@prod`` an alias: a version begins with a digit.

    Raises:
        UsageError: It is not so.
    """
    model, _, version = text.partition("@")
    if not model or not version:
        raise UsageError(f"'{text}' is not MODEL@VERSION", "for example kws@1.2.0 or kws@prod")
    return model, version if version[0].isdigit() else f"@{version.removeprefix('@')}"
