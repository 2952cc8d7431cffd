"""The table of commands is true: every row resolves, and says what the command says."""

import json
import subprocess
import sys

import click
import pytest

from edgeml.cli.table import COMMANDS as EDGEML
from edgeml.plugins import BUILTINS, load_object
from edgeml_agent.cli import COMMANDS as AGENT

ROWS = [("edgeml", n, r) for n, r in EDGEML.items()] + [
    ("edgeml-agent", n, r) for n, r in AGENT.items()
]
PLUGINS = [(k, n, ref) for k, names in BUILTINS.items() for n, ref in names.items()]


def commands(command, path=()):
    """Yield every command below one, with its path."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*path, name))


@pytest.mark.parametrize(
    ("program", "name", "row"), ROWS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_every_row_resolves(program, name, row):
    command = load_object(row.target, extra=row.extra)
    assert isinstance(command, click.Command)
    assert command.get_short_help_str(limit=200).rstrip(".") == row.help.rstrip(".")


@pytest.mark.parametrize(
    ("program", "name", "row"), ROWS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_every_option_is_documented(program, name, row):
    for path, command in commands(load_object(row.target), (name,)):
        assert command.help, path
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{' '.join(path)} {parameter.opts}"


@pytest.mark.parametrize(("kind", "name", "reference"), PLUGINS)
def test_every_plugin_resolves_under_its_own_name(kind, name, reference):
    assert load_object(reference).name == name


def test_tables_are_not_empty():
    assert {"convert", "inspect", "fleet", "demo", "profiles"} <= set(EDGEML)
    assert {"run", "serve", "enrol", "status"} <= set(AGENT)


@pytest.mark.parametrize("module", ["edgeml.cli", "edgeml_agent.cli"])
def test_help_is_light(module):
    """``--help`` imports no heavy library, however many commands there are."""
    heavy = ["numpy", "onnx", "onnxruntime", "openvino", "fastapi", "nicegui", "sqlalchemy", "tuf"]
    code = (
        "import sys, json\n"
        f"from {module} import main\n"
        "sys.argv = ['x', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print(json.dumps([m for m in {heavy!r} if m in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("program", ["edgeml", "edgeml-agent"])
def test_unknown_command_names_the_nearest(program):
    typed, module = {
        "edgeml": ("convret", "edgeml.cli"),
        "edgeml-agent": ("srve", "edgeml_agent.cli"),
    }[program]
    code = f"import sys; from {module} import main; sys.argv = ['x', '{typed}']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean" in done.stderr
    assert "Traceback" not in done.stderr
