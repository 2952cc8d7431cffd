"""``edgeml fleet``: serve a fleet, look at it, and change what runs on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from edgeml.cli.fleet_common import (
    ago,
    clock,
    confirm,
    connected,
    data_folder,
    dry_run_option,
    json_option,
    parse_address,
    show_json,
    table,
    warn_lost,
    yes_option,
)
from edgeml.cli.fleet_rollouts import deploy, rollback, rollout, rollouts
from edgeml.errors import InputError, UsageError
from edgeml.fleet.client import FleetClient
from edgeml.messages.topics import check_name
from edgeml.plugins import load_object


@click.group("fleet")
def group() -> None:
    """Serve a fleet of devices, and roll versions out to it."""


for _command in (deploy, rollouts, rollout, rollback):
    group.add_command(_command)


@group.command()
@click.option(
    "--data", envvar="EDGEML_DATA", type=click.Path(path_type=Path), default=None,
    help="Folder for everything that is kept.",
)  # fmt: skip
@click.option(
    "--http", default="127.0.0.1:8080", show_default=True, help="Address of API and pages."
)
@click.option(
    "--mqtt", default="127.0.0.1:1883", show_default=True, help="Address of the embedded broker."
)
@click.option("--broker", default="", help="Address of a broker that is there already.")
@click.option("--seen-as", default="", help="Address of the broker as devices see it.")
@click.option(
    "--keep-days", type=click.FloatRange(1.0, 3650.0), default=14.0, show_default=True,
    help="How long telemetry and events are kept.",
)  # fmt: skip
@click.option(
    "--after-restore", is_flag=True,
    help="The folder is an older copy: number everything above what was published since.",
)  # fmt: skip
@click.option("--fleet", "name", default="default", show_default=True, help="Name of the fleet.")
@json_option
def serve(
    data: Path | None,
    http: str,
    mqtt: str,
    broker: str,
    seen_as: str,
    keep_days: float,
    after_restore: bool,
    name: str,
    as_json: bool,
) -> None:
    """Serve API, pages and broker until stopped."""
    settings = load_object("edgeml.fleet.server:Settings", extra="fleet")(
        data=data or data_folder(),
        fleet=name,
        http=parse_address(http, "--http"),
        mqtt=parse_address(mqtt, "--mqtt"),
        broker=parse_address(broker, "--broker") if broker else None,
        seen_as=parse_address(seen_as, "--seen-as") if seen_as else None,
        keep_days=keep_days,
        after_restore=after_restore,
    )

    def ready(found: Any) -> None:
        if as_json:
            show_json(found)
            return
        login = f"login: {found.user}"
        if found.password:
            login += f", password: {found.password} (shown this once)"
        click.echo(f"fleet '{name}' on {found.url}, {found.broker or 'broker'} on {found.mqtt}")
        click.echo(f"{login}; token for the command line: {found.token_file}")
        if not found.password:
            lost = f"edgeml fleet password {found.user} --data {settings.data}"
            click.echo(f"password lost? '{lost}' sets a new one", err=True)

    load_object("edgeml.fleet.server:serve", extra="fleet")(settings, ready)


@group.command()
@click.argument("user", default="admin")
@click.option(
    "--data", envvar="EDGEML_DATA", type=click.Path(path_type=Path), default=None,
    help="Folder of the server on this machine.",
)  # fmt: skip
@yes_option
@dry_run_option
@json_option
def password(user: str, data: Path | None, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Set a new password, on the server's own machine."""
    folder = data or data_folder()
    if dry_run:
        would = {"user": user, "data": str(folder)}
        if as_json:
            show_json(would)
        else:
            click.echo(f"would set a new password for '{user}' of the fleet in {folder}")
        return
    confirm(f"set a new password for '{user}', and end the sessions of this user?", yes)
    found = load_object("edgeml.fleet.access:new_password", extra="fleet")(folder, user)
    if as_json:
        show_json(found)
    else:
        click.echo(f"login: {found.user}, password: {found.password} (shown this once)")
        click.echo(f"token for the command line: {found.token_file}")


@group.command()
@click.argument("device")
@click.option("--out", "-o", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option("--profile", default="auto", show_default=True, help="Hardware profile.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Tag, for selectors.")
@json_option
@connected
def enrol(
    client: FleetClient, device: str, out: Path, profile: str, tags: tuple[str, ...], as_json: bool
) -> None:
    """Write the file that turns a machine into a device."""
    check_name(device, "device")
    pairs: dict[str, str] = {}
    for tag in tags:
        key, equals, value = tag.partition("=")
        if not key or not equals:
            raise UsageError(f"tag '{tag}' is not KEY=VALUE", "for example --tag site=berlin")
        if any(letter in ", \t\n" for letter in tag):
            raise UsageError(
                f"tag '{tag}' holds a space or a comma", "no selector could name such a device"
            )
        pairs[key] = value
    data, known = client.enrol(device, profile, pairs or None)
    temporary = out.with_name(out.name + ".new")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {out}: {error.strerror}", "choose another --out") from error
    if as_json:
        show_json({"device": device, "file": str(out), "known": known})
        return
    if known:
        kept = "" if pairs else ", and keeps its tags"
        click.echo(f"'{device}' was known already{kept}", err=True)
    click.echo(f"{out}: on the device, run 'edgeml-agent enrol {out.name} --state DIR'")


@group.command()
@json_option
@connected
def devices(client: FleetClient, as_json: bool) -> None:
    """List devices: what they run, and how they are."""
    rows = client.devices()
    if as_json:
        show_json(rows)
        return
    warn_lost(client)
    cells = [
        (
            r.device,
            r.presence,
            r.health,
            r.profile,
            " ".join(f"{s.slot}={s.version or '-'}" for s in r.slots),
            " ".join(f"{k}={v}" for k, v in r.tags.items()),
            ago(r.seen),
        )
        for r in rows
    ]
    table(("device", "state", "health", "profile", "runs", "tags", "seen"), cells)


@group.command()
@click.argument("name", metavar="ID")
@json_option
@connected
def device(client: FleetClient, name: str, as_json: bool) -> None:
    """Show one device: machine, slots, traffic, events."""
    found = client.device(name)
    if as_json:
        show_json(found)
        return
    row = found.row
    warn_lost(client)
    click.echo(f"{row.device}  {row.presence}  {row.health}  agent {row.agent_version or '-'}")
    if found.facts:
        click.echo(f"{row.profile}  {found.facts.get('cpu', '')}  {found.facts.get('os', '')}")
    else:
        click.echo(f"enrolled {ago(found.enrolled)} ago, and has not connected yet")
    cells = [
        (s.slot, s.version, s.desired, s.last_verified, s.phase, s.placement, s.detail)
        for s in row.slots
    ]
    table(("slot", "runs", "should", "verified", "phase", "placement", "detail"), cells)
    for event in found.events[:10]:
        click.echo(f"{clock(event.at)}  {event.severity}  {event.kind}: {event.message}")


@group.command()
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=50,
    show_default=True,
    help="How many.",
)
@click.option("--device", "name", default="", help="Only of this device.")
@json_option
@connected
def events(client: FleetClient, limit: int, name: str, as_json: bool) -> None:
    """List what happened, newest first."""
    rows = client.events(limit, name)
    if as_json:
        show_json(rows)
        return
    cells = [(clock(e.at), e.severity, e.device, e.kind, e.message) for e in rows]
    table(("when", "severity", "device", "kind", "message"), cells)
