"""The command ``edgeml demo``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/demo"),
    show_default=True,
    help="Folder for everything that it makes; an earlier demo in it is replaced.",
)
@click.option("--serve", is_flag=True, help="Keep fleet and agents up until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def demo(out: Path, serve: bool, as_json: bool) -> None:
    """Convert, serve, roll out, roll back: the whole job on this machine."""
    from edgeml.cli.demo.story import Demo

    Demo(out, as_json=as_json).run(serve=serve)
