"""``edgeml profiles``: the hardware profiles, and which one fits this machine."""

from __future__ import annotations

import json
from typing import Any

import click

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group(invoke_without_command=True)
@_JSON
@click.pass_context
def profiles(ctx: click.Context, as_json: bool) -> None:
    """List hardware profiles, show one, or detect this machine's."""
    if ctx.invoked_subcommand is None:
        _list(as_json)
    elif as_json:
        raise click.UsageError(f"write --json after '{ctx.invoked_subcommand}'", ctx)


@profiles.command("list")
@_JSON
def list_profiles(as_json: bool) -> None:
    """List the shipped profiles."""
    _list(as_json)


@profiles.command()
@click.argument("name")
@_JSON
def show(name: str, as_json: bool) -> None:
    """Show one profile; NAME is a name or the path of a file of your own."""
    import msgspec

    from edgeml.hardware import load_profile

    found: dict[str, Any] = msgspec.to_builtins(load_profile(name))
    if as_json:
        click.echo(json.dumps(found))
        return
    for key, value in found.items():
        _show(key, value, 0)


@profiles.command()
@_JSON
def detect(as_json: bool) -> None:
    """Tell what this machine is, and which profile fits it best."""
    import msgspec

    from edgeml.hardware import best_profile, fits, load_profile, profile_names
    from edgeml.runtime.facts import device_facts

    facts = device_facts()
    reasons = {name: fits(load_profile(name), facts) for name in profile_names()}
    best = best_profile(facts).name
    if as_json:
        body = {"best": best, "facts": msgspec.to_builtins(facts), "profiles": reasons}
        click.echo(json.dumps(body))
        return
    click.echo(f"{facts.cpu or 'unknown processor'}, {facts.machine}, {facts.os or facts.system}")
    click.echo(f"cores {facts.cores}, memory {facts.memory_bytes / 2**30:.1f} GiB")
    click.echo(f"instruction sets: {', '.join(facts.isa) or 'none that matter'}")
    click.echo(f"accelerators: {', '.join(facts.accelerators) or 'none'}")
    runtimes = ", ".join(f"{k} {v}" for k, v in facts.runtimes.items())
    click.echo(f"runtimes: {runtimes or 'none'}")
    click.echo("")
    for name, reason in reasons.items():
        mark = "*" if name == best else " "
        click.echo(f"{mark} {name:<24} {'no: ' + reason if reason else 'fits'}")


def _list(as_json: bool) -> None:
    import msgspec

    from edgeml.hardware import load_profile, profile_names
    from edgeml.plugins import table

    built = table("targets")
    found = [load_profile(name) for name in profile_names()]
    if as_json:
        rows = [{**msgspec.to_builtins(p), "built": p.target in built} for p in found]
        click.echo(json.dumps({"profiles": rows}))
        return
    for profile in found:
        note = "" if profile.target in built else f"  (target '{profile.target}' is not built yet)"
        click.echo(f"{profile.name:<24} {profile.title}{note}")


def _show(key: str, value: object, depth: int) -> None:
    """Print a key and its value, nested ones indented."""
    pad = "  " * depth
    if isinstance(value, dict):
        click.echo(f"{pad}{key}:" if value else f"{pad}{key}: -")
        for inner, item in value.items():
            _show(inner, item, depth + 1)
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        for number, item in enumerate(value, 1):
            _show(f"{key} {number}", item, depth)
    elif isinstance(value, list | tuple):
        click.echo(f"{pad}{key}: {', '.join(str(v) for v in value) or '-'}")
    else:
        click.echo(f"{pad}{key}: {'-' if value in ('', None) else value}")
