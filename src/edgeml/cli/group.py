"""LazyGroup, and the one place where errors become exit codes."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import click

from edgeml.cli import settings
from edgeml.cli.table import Row
from edgeml.errors import EdgemlError, nearest
from edgeml.plugins import EXTRAS, load_object, missing

_EXIT_INTERRUPTED = 130
_EXIT_BUG = 70


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def __init__(self, rows: Mapping[str, Row], **attributes: Any) -> None:
        """Take the table of commands, and what click's group takes."""
        prefix = str(attributes.get("name", "edgeml")).upper().replace("-", "_")
        attributes.setdefault("context_settings", {"auto_envvar_prefix": prefix})
        super().__init__(**attributes)
        self.rows = rows
        self.params.append(
            click.Option(
                ["-v", "--verbose"],
                count=True,
                expose_value=False,
                callback=_verbose,
                help="Say more; show tracebacks.",
            )
        )
        self.params.append(
            click.Option(
                ["--version"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_version,
                help="Show the version and stop.",
            )
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(self.rows)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        row = self.rows.get(cmd_name)
        if row is None:
            return None
        command: click.Command = load_object(row.target, extra=row.extra)
        found = settings.defaults(cmd_name, command, self.name or "")
        if found:
            ctx.default_map = {**(ctx.default_map or {}), cmd_name: found}
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one gets the nearest as a hint."""
        if args and args[0] not in self.rows and not args[0].startswith("-"):
            raise click.UsageError(f"unknown command '{args[0]}' ({nearest(args[0], self.rows)})")
        if self.name == "edgeml":
            settings.check_names(self.rows)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write names and one-line helps from the table, without importing anything."""
        if not self.rows:
            return
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.help) for name, row in self.rows.items()])


def _verbose(ctx: click.Context, _param: click.Parameter, value: int) -> None:
    level = logging.WARNING if value == 0 else logging.INFO if value == 1 else logging.DEBUG
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from edgeml import __version__

        click.echo(__version__)
        ctx.exit()


def run(command: click.Command, args: list[str] | None = None) -> int:
    """Run a command line, and turn whatever it raises into one line and an exit code.

    Args:
        command: The top command.
        args: The words after the program's name; those of this process when None.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if args is None else args
    try:
        result = command.main(args=words, standalone_mode=False)
    except EdgemlError as error:
        return _report(words, error.message, error.hint, error.exit_code, error.as_dict())
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRAS:
            return _bug(words, error)
        absent = missing(error.name or "")
        return _report(words, absent.message, absent.hint, absent.exit_code, absent.as_dict())
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f"see '{error.ctx.command_path} --help'"
        message = " ".join(error.format_message().split())
        return _report(words, message, hint, error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _report(words, "interrupted", "", _EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away (for example `| head`): nothing to say to anybody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _bug(words, error)
    return result if isinstance(result, int) else 0


def _bug(words: list[str], error: Exception) -> int:
    """Report what nobody expected."""
    message = f"internal error: {type(error).__name__}: {error}"
    return _report(words, message, "run it again with -v and report it", _EXIT_BUG)


def _report(
    words: list[str], message: str, hint: str, code: int, details: dict[str, object] | None = None
) -> int:
    """Print an error in one line and a hint (and as one object when ``--json`` was asked for)."""
    if any(w == "--verbose" or (w.startswith("-v") and set(w[1:]) == {"v"}) for w in words):
        traceback.print_exc()
    if "--json" in words:
        plain = {
            "error": {
                "type": "UsageError" if code == 2 else "InternalError",
                "message": message,
                "hint": hint,
                "exit_code": code,
            }
        }
        click.echo(json.dumps(details or plain))
    click.echo(f"error: {' '.join(message.split())}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
    return code
