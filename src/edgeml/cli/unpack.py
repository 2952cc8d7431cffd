"""``edgeml unpack``: the files of a bundle, in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("unpack")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--variant", help="Only what this variant needs.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to make; it must be new, or empty.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def unpack(bundle: Path, variant: str | None, output: Path, as_json: bool) -> None:
    """Unpack a bundle into a folder."""
    from edgeml.bundle import Bundle

    opened = Bundle.open(bundle)
    folder = opened.unpack(output, variant)
    chosen = [v for v in opened.manifest.variants if variant in (None, v.id)]
    if as_json:
        entries = {v.id: v.entry for v in chosen}
        click.echo(json.dumps({"folder": str(folder), "digest": opened.digest, "entries": entries}))
        return
    click.echo(f"{opened.manifest.name} {opened.manifest.version} is in {folder}")
    for one in chosen:
        click.echo(f"  {one.id}: {folder / one.entry}")
