"""``edgeml verify``: whether a bundle is whole, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(bundle: Path, as_json: bool) -> None:
    """Check the structure and every byte of a bundle.

    Ends with 4 when a byte is not what its digest says, with 2 when it is no bundle. Who made the
    bundle is not asked here: that is for signatures.
    """
    from edgeml.bundle import Bundle

    opened = Bundle.open(bundle)
    opened.check()
    manifest = opened.manifest
    size = sum(ref.size for ref in {ref.digest: ref for ref in opened.layers}.values())
    if as_json:
        body = {
            "ok": True,
            "name": manifest.name,
            "version": manifest.version,
            "digest": opened.digest,
            "blobs": len(opened.layers),
            "size_bytes": size,
        }
        click.echo(json.dumps(body))
        return
    click.echo(f"{manifest.name} {manifest.version}: {len(opened.layers)} blobs are intact")
    click.echo(opened.digest)
