"""Where a setting comes from: flag, variable, ./edgeml.toml, the user's file, in this order."""

import json

import click
import pytest

from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import Row

ROWS = {
    "show": Row("tests.core.test_settings:show", "Show."),
    "many": Row("tests.core.test_settings:many", "Many."),
}


@click.command()
@click.option("--max-drop", type=float, default=0.5, help="x")
@click.option("--profile", multiple=True, help="x")
def show(max_drop, profile):
    """Show."""
    click.echo(json.dumps([max_drop, list(profile)]))


@click.group()
def many():
    """Many."""


@many.command()
@click.option("--server", default="none", help="x")
def one(server):
    """One."""
    click.echo(server)


@many.command()
@click.option("--server", default="none", help="x")
@click.option("--data", default="none", help="x")
def two(server, data):
    """Two."""
    click.echo(f"{server} {data}")


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder; return (code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def do(*words):
        group = LazyGroup(ROWS, name="edgeml", help="x")
        code = run(group, list(words))
        said = capsys.readouterr()
        return code, said.out, said.err

    def write(text, user=False):
        path = tmp_path / ("config/edgeml/edgeml.toml" if user else "edgeml.toml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    do.write = write
    return do


def test_each_source_wins_over_the_one_below(call, monkeypatch):
    assert call("show")[1] == "[0.5, []]\n"
    call.write("[show]\nmax-drop = 0.4\nprofile = ['a']\n", user=True)
    assert call("show")[1] == '[0.4, ["a"]]\n'
    call.write("[show]\nmax_drop = 0.3\n")
    assert call("show")[1] == '[0.3, ["a"]]\n'
    monkeypatch.setenv("EDGEML_SHOW_MAX_DROP", "0.2")
    assert call("show")[1] == '[0.2, ["a"]]\n'
    assert call("show", "--max-drop", "0.1", "--profile", "b")[1] == '[0.1, ["b"]]\n'


def test_a_groups_keys_reach_all_its_commands(call):
    call.write("[many]\nserver = 'here'\n[many.two]\ndata = 'there'\n")
    assert call("many", "one")[1] == "here\n"
    assert call("many", "two")[1] == "here there\n"


@pytest.mark.parametrize(
    ("text", "words", "message", "hint"),
    [
        ("[show]\nmax-dorp = 1\n", ["show"], "unknown key 'max-dorp'", "max-drop"),
        ("[shwo]\nx = 1\n", ["show"], "unknown command 'shwo'", "show"),
        ("[many]\nsevrer = 1\n", ["many", "one"], "unknown key 'sevrer'", "server"),
        ("show = 1\n", ["show"], "not a table", "[show]"),
        ("[show\n", ["show"], "cannot read settings", ""),
        ("[show]\nmax-drop = 'x'\n", ["show"], "max-drop", ""),
    ],
)
def test_wrong_files_are_said(call, text, words, message, hint):
    call.write(text)
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert hint in err
    assert "Traceback" not in err
