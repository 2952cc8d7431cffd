"""Renders docs/reference/cli.md from the commands themselves.

``python -m tests.support.cli_reference`` writes the page; a test compares it with the code.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import click

from edgeml.cli.group import LazyGroup
from edgeml.cli.table import COMMANDS as EDGEML
from edgeml_agent.cli import COMMANDS as AGENT

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/cli.md"
HEAD = """# Command line

Results go to stdout, logs and progress to stderr. `--json` prints one object, errors included. An
error is one
line (what, got, expected, where), then one line of hint.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a gate said no |
| 2 | usage, or bad input |
| 3 | an optional package or toolchain is missing; the hint installs it |
| 4 | not trusted: signature, digest or generation |
| 5 | unreachable |
| 70 | our own bug |
| 130 | interrupted |

This page is made from the commands: `python -m tests.support.cli_reference`.
"""


def _usage(command: click.Command, path: str) -> str:
    """Return the usage line and the options of one command."""
    context = click.Context(command, info_name=path)
    lines = [f"## `{path}`", "", inspect.cleandoc(command.help or "").replace("\b\n", ""), ""]
    lines += ["```", " ".join([path, *command.collect_usage_pieces(context)]), "```", ""]
    rows = [record for p in command.get_params(context) if (record := p.get_help_record(context))]
    rows = [row for row in rows if not row[0].startswith("--help")]
    if rows:
        lines += ["| option | meaning |", "|---|---|"]
        lines += [
            f"| `{name.replace('|', '/')}` | {text.replace('|', '/')} |" for name, text in rows
        ]
        lines.append("")
    return "\n".join(lines)


def _walk(command: click.Command, path: str) -> list[str]:
    """Return the sections of a command and of everything below it."""
    sections = [_usage(command, path)]
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            sections += _walk(below, f"{path} {name}")
    return sections


def render() -> str:
    """Return the whole page."""
    sections = [HEAD]
    for program, rows in (("edgeml", EDGEML), ("edgeml-agent", AGENT)):
        sections += _walk(LazyGroup(rows, name=program, help=f"The program `{program}`."), program)
    return "\n".join(sections).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(render())
