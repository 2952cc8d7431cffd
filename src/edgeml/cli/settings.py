"""Settings from files: ``./edgeml.toml``, then the user's configuration folder (XDG).

A table per command, named as on the command line, with the long options' names (``-`` or ``_``)::

    [convert]
    profile = ["cpu-x86-64"]
    max-drop = 0.005

    [fleet]                    # for every command below ``edgeml fleet``
    server = "http://127.0.0.1:8080"

    [fleet.serve]              # for this one
    data = "/srv/edgeml"

A flag wins over its ``EDGEML_*`` variable, that over ``./edgeml.toml``, that over the user's file.
An unknown key is an error that names the nearest one.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgeml.errors import UsageError, nearest

FILE = "edgeml.toml"
Table = dict[str, Any]


def files() -> list[Path]:
    """Return the files that are there, the weakest first."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [path for path in (home / "edgeml" / FILE, Path(FILE)) if path.is_file()]


def read() -> list[tuple[Path, Table]]:
    """Return each file with what it says, the weakest first.

    Raises:
        UsageError: A file is not TOML, or cannot be read.
    """
    found = []
    for path in files():
        try:
            found.append((path, tomllib.loads(path.read_text())))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"cannot read settings from {path}: {error}") from error
    return found


def defaults(name: str, command: click.Command, program: str) -> Table:
    """Return the defaults that the files give for a command, as click takes them.

    Args:
        name: The command's name.
        command: The command or group.
        program: Only ``edgeml`` reads these files; the agent has its own.

    Raises:
        UsageError: A key is unknown, or a table is not one.
    """
    merged: Table = {}
    if program != "edgeml":
        return merged
    for path, settings in read():
        table = settings.get(name, {})
        if not isinstance(table, dict):
            raise UsageError(f"'{name}' in {path} is not a table", f"write [{name}] above its keys")
        _merge(merged, _for_command(command, table, f"[{name}] in {path}"))
    return merged


def check_names(known: Mapping[str, object]) -> None:
    """Check that the files name only commands that exist.

    Raises:
        UsageError: One does not.
    """
    for path, settings in read():
        for name in settings:
            if name not in known:
                raise UsageError(f"unknown command '{name}' in {path}", nearest(name, known))


def _for_command(command: click.Command, table: Table, where: str) -> Table:
    """Return a table with click's parameter names, a group's keys handed to its commands."""
    if not isinstance(command, click.Group):
        return _for_options(command, table, where, {})
    context = click.Context(command)
    below = {n: command.get_command(context, n) for n in command.list_commands(context)}
    commands = {n: found for n, found in below.items() if found is not None}
    shared = {k: v for k, v in table.items() if k not in commands}
    for key in shared:
        if not any(_option(found, key) for found in commands.values()):
            options = {n for found in commands.values() for n in _options(found)}
            raise UsageError(f"unknown key '{key}' of {where}", nearest(key, {*options, *commands}))
    result: Table = {}
    for name, found in commands.items():
        own = table.get(name, {})
        if not isinstance(own, dict):
            raise UsageError(f"'{name}' of {where} is not a table")
        common = {k: v for k, v in shared.items() if _option(found, k)}
        result[name] = _for_options(found, own, f"{where}, {name}", common)
    return result


def _for_options(command: click.Command, table: Table, where: str, common: Table) -> Table:
    """Return the keys of one command as click's parameter names."""
    result: Table = {}
    for key, value in {**common, **table}.items():
        option = _option(command, key)
        if option is None or option.name is None:
            raise UsageError(f"unknown key '{key}' of {where}", nearest(key, _options(command)))
        result[option.name] = value
    return result


def _options(command: click.Command) -> dict[str, click.Option]:
    """Return long names without dashes -> options."""
    return {
        word.removeprefix("--"): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for word in parameter.opts
        if word.startswith("--")
    }


def _option(command: click.Command, key: str) -> click.Option | None:
    """Return the option that a key means; ``_`` and ``-`` are the same."""
    return _options(command).get(key.replace("_", "-"))


def _merge(weak: Table, strong: Table) -> None:
    """Put the strong table over the weak one, tables within tables too."""
    for key, value in strong.items():
        if isinstance(value, dict) and isinstance(weak.get(key), dict):
            _merge(weak[key], value)
        else:
            weak[key] = value
