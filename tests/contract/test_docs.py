"""The documentation is true: commands, links, and what the README tells people to type."""

import re
import shlex
from pathlib import Path

import click
import pytest

from edgeml.cli.table import COMMANDS as EDGEML
from edgeml.plugins import load_object
from edgeml_agent.cli import COMMANDS as AGENT
from tests.support.cli_reference import PAGE, render

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += [ROOT / "agent/README.md", ROOT / "converters/README.md"]
TABLES = {"edgeml": EDGEML, "edgeml-agent": AGENT}


def test_the_reference_of_the_commands_is_up_to_date():
    assert PAGE.read_text() == render(), "run: python -m tests.support.cli_reference"


def typed_lines():
    """Every line in a code block that calls one of our programs."""
    for page in PAGES:
        if page == PAGE:
            continue
        for block in re.findall(
            r"^```(?:sh|bash|console)?\n(.*?)^```", page.read_text(), re.S | re.M
        ):
            for line in block.replace("\\\n", " ").splitlines():
                words = line.strip().removeprefix("$ ")
                if words.startswith(("edgeml ", "edgeml-agent ")):
                    yield pytest.param(words, id=f"{page.relative_to(ROOT)}: {words[:60]}")


@pytest.mark.parametrize("line", list(typed_lines()))
def test_what_the_pages_tell_people_to_type_exists(line):
    words = shlex.split(line, comments=True)
    program, name, *rest = words
    assert name in TABLES[program], line
    command = load_object(TABLES[program][name].target)
    while isinstance(command, click.Group) and rest:
        below = command.get_command(click.Context(command), rest[0])
        if below is None:
            break
        command, rest = below, rest[1:]
    options = {o for p in command.params for o in p.opts + p.secondary_opts} | {"--help"}
    for word in rest:
        if word.startswith("--"):
            assert word.split("=")[0] in options, f"{line}: no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        found = page.parent / target
        assert found.exists() or found.with_suffix(".md").exists(), f"{page.name}: {target}"
