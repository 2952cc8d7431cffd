"""``edgeml-agent serve``: serve bundles on this machine, without a fleet."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click

from edgeml.bundle import Bundle
from edgeml.errors import UsageError
from edgeml.messages.payloads import Ref
from edgeml_agent.control import Stage
from edgeml_agent.serve.process import DataPlane, run_loop
from edgeml_agent.serve.settings import Settings, check_settings

logger = logging.getLogger(__name__)


@click.command(short_help="Serve bundles over HTTP, without a fleet.")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--http", default="127.0.0.1:8500", show_default=True, help="HOST:PORT; '' for none.")
@click.option("--uds", default="", help="Path of a Unix socket to serve on as well.")
@click.option("--profile", default="", help="Serve only variants of this profile.")
@click.option(
    "--token", default="", envvar="EDGEML_AGENT_TOKEN",
    help="Secret that requests over TCP must bring.",
)  # fmt: skip
@click.option("--max-batch", default=64, show_default=True, help="Most rows of one run.")
@click.option("--max-queue", default=256, show_default=True, help="Requests that may wait.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when ready.")
def serve(
    bundles: tuple[Path, ...],
    http: str,
    uds: str,
    profile: str,
    token: str,
    max_batch: int,
    max_queue: int,
    as_json: bool,
) -> None:
    """Serve BUNDLES over the Open Inference Protocol until SIGTERM.

    Each model is served under its bundle's name.
    """
    settings = Settings(http=http, uds=uds, token=token, max_batch=max_batch, max_queue=max_queue)
    check_settings(settings)
    stages = [_stage(path, profile) for path in bundles]
    names = [stage.slot for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two bundles are named '{name}'", "serve one version at a time")

    async def main() -> None:
        plane = DataPlane(settings)
        try:
            for stage in stages:
                await plane.slots.stage(stage)
                plane.slots.switch(stage.slot)
            await plane.start()
        except BaseException:
            await plane.close()
            raise
        _announce(plane, as_json)
        await plane.run()

    run_loop(main)


def _stage(path: Path, profile: str) -> Stage:
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    ref = Ref(manifest.name, manifest.version, bundle.digest)
    return Stage(manifest.name, ref, str(path), profile)


def _announce(plane: DataPlane, as_json: bool) -> None:
    """Print where it serves what; the line means that it is ready."""
    models = {
        name: {
            "version": status.ref.version,
            "variant": status.variant,
            "placement": status.placement,
            "degraded": status.degraded,
        }
        for name, status in plane.slots.status().items()
    }
    if as_json:
        click.echo(json.dumps({"ready": True, "addresses": plane.addresses, "models": models}))
        return
    served = ", ".join(f"{name} {model['version']}" for name, model in models.items())
    click.echo(f"ready: {served} on {' and '.join(plane.addresses)}")
