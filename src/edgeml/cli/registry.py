"""``edgeml registry``: versions of models, pushed, listed and named."""

from __future__ import annotations

from pathlib import Path

import click

from edgeml.cli.fleet_common import (
    ago,
    confirm,
    connected,
    count_of,
    dry_run_option,
    json_option,
    parse_version,
    show_json,
    size_text,
    table,
    yes_option,
)
from edgeml.errors import UsageError
from edgeml.fleet.client import FleetClient
from edgeml.messages.topics import check_name


@click.group("registry")
def group() -> None:
    """Push, list and name versions of models."""


@group.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@json_option
@connected
def push(client: FleetClient, bundle: Path, as_json: bool) -> None:
    """Send a bundle to the registry."""
    row = client.push(bundle)
    if as_json:
        show_json(row)
    else:
        click.echo(f"{row.model}@{row.version}  {row.digest}  {size_text(row.size)}")


@group.command("list")
@click.argument("model", default="")
@json_option
@connected
def list_(client: FleetClient, model: str, as_json: bool) -> None:
    """List versions, newest first."""
    rows = client.versions(model)
    if as_json:
        show_json(rows)
        return
    cells = [
        (
            r.model, r.version, " ".join(f"@{a}" for a in r.aliases), size_text(r.size),
            r.score, ",".join(r.profiles), r.devices, ago(r.pushed),
            "quarantined" if r.quarantined else "",
        )
        for r in rows
    ]  # fmt: skip
    heads = ("model", "version", "alias", "size", "score", "profiles", "devices", "pushed", "state")
    table(heads, cells)


@group.command()
@click.argument("version", metavar="MODEL@VERSION")
@json_option
@connected
def show(client: FleetClient, version: str, as_json: bool) -> None:
    """Show one version: variants, evidence, lineage."""
    detail = client.version(*parse_version(version))
    if as_json:
        show_json(detail)
        return
    row = detail.row
    click.echo(f"{row.model}@{row.version}  {row.digest}")
    click.echo(f"pushed {ago(row.pushed)} ago by {row.author}, {size_text(row.size)}, {row.score}")
    if row.quarantined:
        click.echo(f"quarantined: {row.quarantined}")
    click.echo(f"made from {detail.source} ({detail.source_digest})")
    cells = [(v.id, v.precision, size_text(v.size), v.evidence, v.by) for v in detail.variants]
    table(("variant", "precision", "size", "evidence", "by"), cells)


@group.command()
@click.argument("version", metavar="MODEL@VERSION")
@click.argument("name")
@yes_option
@dry_run_option
@json_option
@connected
def alias(
    client: FleetClient, version: str, name: str, yes: bool, dry_run: bool, as_json: bool
) -> None:
    """Point an alias such as prod at a version."""
    model, wanted = parse_version(version)
    label = check_name(name.removeprefix("@"), "alias")
    if label[0].isdigit():
        raise UsageError(f"alias '{label}' begins like a version", "begin it with a letter")
    row = client.version(model, wanted).row
    if not dry_run:
        confirm(f"point @{label} of {model} at {row.version}?", yes)
        row = client.set_alias(model, label, row.version)
    if as_json:
        show_json(row)
    else:
        would = "would point" if dry_run else "points"
        click.echo(f"@{label} of {model} {would} at {row.version}")


@group.command()
@click.argument("version", metavar="MODEL@VERSION")
@click.option("--reason", required=True, help="Why it may run again; kept as an event.")
@yes_option
@dry_run_option
@json_option
@connected
def release(
    client: FleetClient, version: str, reason: str, yes: bool, dry_run: bool, as_json: bool
) -> None:
    """Lift the quarantine of a version.

    Devices that found the bundle itself at fault keep refusing it.
    """
    row = client.version(*parse_version(version)).row
    name = f"{row.model}@{row.version}"
    if not row.quarantined:
        raise UsageError(f"{name} is not quarantined", "deploy it with 'edgeml fleet deploy'")
    if dry_run:
        if as_json:
            show_json(row)
        else:
            click.echo(f"would let {name} run again; quarantined: {row.quarantined}")
        return
    confirm(f"let {name} run again? quarantined: {row.quarantined}", yes)
    found = client.release(row.model, row.version, reason)
    if as_json:
        show_json(found)
        return
    click.echo(f"{name} may run again; deploy it with 'edgeml fleet deploy {name}'")
    if found.refusing:
        click.echo(
            f"found at fault by, and still refused by {count_of(len(found.refusing), 'device')}: "
            f"{', '.join(found.refusing[:5])}{' ...' if len(found.refusing) > 5 else ''}"
        )
