"""``python -m edgeml_agent.serve``: the data plane under a supervisor."""

from __future__ import annotations

import logging
import sys

import click

from edgeml.cli.group import run
from edgeml_agent.serve.process import DataPlane, run_loop
from edgeml_agent.serve.settings import parse_settings


@click.command()
@click.option("--control", required=True, help="Path of the supervisor's Unix socket.")
@click.option("--settings", default="{}", envvar="EDGEML_SERVE_SETTINGS", help="Settings as JSON.")
def main(control: str, settings: str) -> None:
    """Serve what the supervisor says, until it says quit."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )
    parsed = parse_settings(settings)

    async def serve() -> None:
        plane = DataPlane(parsed)
        await plane.start(control)
        logger.info("listening on %s", ", ".join(plane.addresses))
        await plane.run()

    run_loop(serve)


logger = logging.getLogger("edgeml_agent.serve")

if __name__ == "__main__":
    sys.exit(run(main))
