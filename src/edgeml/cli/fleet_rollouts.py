"""The commands of ``edgeml fleet`` that are about rollouts."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from edgeml.cli.fleet_common import (
    ago,
    clock,
    confirm,
    connected,
    count_of,
    dry_run_option,
    json_option,
    parse_version,
    show_json,
    table,
    yes_option,
)
from edgeml.errors import GateError
from edgeml.fleet.client import FleetClient
from edgeml.fleet.views import Plan, RolloutDetail, RolloutRequest, RolloutRow
from edgeml.gates import AnyGate, HealthGate, InstallGate, LabelGate

_POLL_SECONDS = 0.5
_ENDED = frozenset({"done", "rolled_back", "aborted"})
_SHARE = click.FloatRange(0.0, 1.0)
_COUNT = click.IntRange(1, 100_000_000)
_SECONDS = click.FloatRange(0.0, 1e9)
_TRIAL = click.FloatRange(0.0, 86_400.0)
_GATES: dict[str, tuple[type, str]] = {
    "max_failed": (InstallGate, "max_failed"),
    "min_attempts": (InstallGate, "minimum"),
    "install_timeout": (InstallGate, "timeout"),
    "max_errors": (HealthGate, "max_errors"),
    "soak": (HealthGate, "soak"),
    "max_drop": (LabelGate, "max_drop"),
    "min_labels": (LabelGate, "minimum"),
    "label_patience": (LabelGate, "patience"),
    "require_labels": (LabelGate, "required"),
}


def _gate_options(command: Any) -> Any:
    """Add the options that change a gate's limits."""
    options = [
        click.option("--max-failed", type=_SHARE, help="Install gate: share that may fail."),
        click.option("--min-attempts", type=_COUNT, help="Install gate: attempts to see."),
        click.option("--install-timeout", type=_SECONDS, help="Install gate: seconds."),
        click.option("--max-errors", type=_SHARE, help="Health gate: share above the others."),
        click.option("--soak", type=_SECONDS, help="Health gate: seconds to watch a wave."),
        click.option("--max-drop", type=_SHARE, help="Label gate: drop of the accuracy."),
        click.option("--min-labels", type=_COUNT, help="Label gate: labels per arm."),
        click.option("--label-patience", type=_SECONDS, help="Label gate: seconds to wait."),
        click.option("--require-labels", is_flag=True, default=None, help="Hold without labels."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _gates(given: dict[str, Any]) -> tuple[AnyGate, ...]:
    """Return the gates whose limits were given."""
    fields: dict[type, dict[str, Any]] = {}
    for name, value in given.items():
        if value is not None:
            kind, field = _GATES[name]
            fields.setdefault(kind, {})[field] = value
    return tuple(kind(**values) for kind, values in fields.items())


@click.command()
@click.argument("version", metavar="MODEL@VERSION")
@click.option("--to", "selector", required=True, help="all, device=A,B, tag.K=V, profile=P.")
@click.option(
    "--strategy", type=click.Choice(["canary", "all-at-once"]), default="canary", show_default=True,
    help="Which devices go first.",
)  # fmt: skip
@click.option("--waves", default="", help="Cumulative shares, for example 25%,100%.")
@click.option("--slot", default="", help="Slot of the devices; the model's name by default.")
@click.option("--trial-requests", type=_COUNT, default=20, show_default=True,
              help="Requests of each device's own trial.")  # fmt: skip
@click.option("--trial-seconds", type=_TRIAL, default=10.0, show_default=True,
              help="Or seconds of it.")  # fmt: skip
@_gate_options
@click.option("--id", "plan_id", default="", help="Id that --plan told, to get exactly its waves.")
@click.option("--plan", "--dry-run", "plan_only", is_flag=True, help="Only show the plan.")
@click.option("--wait", is_flag=True, help="Follow it to its end; exit 1 when it goes back.")
@yes_option
@json_option
@connected
def deploy(
    client: FleetClient,
    version: str,
    selector: str,
    strategy: str,
    waves: str,
    slot: str,
    trial_requests: int,
    trial_seconds: float,
    plan_id: str,
    plan_only: bool,
    wait: bool,
    yes: bool,
    as_json: bool,
    **limits: Any,
) -> int:
    """Roll a version out in waves."""
    model, wanted = parse_version(version)
    request = RolloutRequest(
        model, wanted, selector, strategy, waves, slot, _gates(limits), trial_requests,
        trial_seconds, plan_id,
    )  # fmt: skip
    plan = client.preview(request)
    if plan_only:
        if as_json:
            show_json(plan)
        else:
            _show_plan(plan)
            click.echo(f"add '--id {plan.id} --yes' to get exactly these waves")
        return 0
    if not yes:
        _show_plan(plan, err=True)
    confirm(f"roll {plan.ref.model} {plan.ref.version} out?", yes)
    exact = msgspec.structs.replace(request, version=plan.ref.version, id=plan.id)
    row = client.create(exact)
    if wait:
        return _follow(client, row.id, as_json)
    if as_json:
        show_json(row)
    else:
        click.echo(f"rollout {row.id}: {row.reason}")
    return 0


def _show_plan(plan: Plan, err: bool = False) -> None:
    ref = plan.ref
    click.echo(f"{ref.model} {ref.version} ({ref.digest[:19]}) into '{plan.slot}'", err=err)
    for number, wave in enumerate(plan.waves, 1):
        click.echo(f"wave {number}: {_some(wave)}", err=err)
    if plan.offline:
        click.echo(f"offline now: {_some(plan.offline)}", err=err)
    for name, why in list(plan.skipped.items())[:20]:
        click.echo(f"skipped {name}: {why}", err=err)


def _some(names: tuple[str, ...], most: int = 8) -> str:
    """Return how many devices, and the first of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    noun = "device" if len(names) == 1 else "devices"
    return f"{len(names)} {noun}: {', '.join(names[:most])}{more}"


def _follow(client: FleetClient, rollout_id: str, as_json: bool) -> int:
    """Follow a rollout to its end; return 0 when it is done, else 1.

    Raises:
        GateError: It was rolled back or aborted (with ``--json`` the code is returned instead).
    """
    told = 0
    while True:
        found = client.rollout(rollout_id)
        for decision in found.decisions[told:]:
            click.echo(f"{clock(decision.at)}  {decision.kind}: {decision.message}", err=True)
        told = len(found.decisions)
        if found.row.state in _ENDED:
            break
        time.sleep(_POLL_SECONDS)
    row = found.row
    good = row.state == "done"
    if as_json:
        show_json(found)
    elif good:
        click.echo(f"rollout {row.id} {row.state}: {row.reason}")
    else:
        raise GateError(
            f"rollout {row.id} of {row.ref.model} {row.ref.version} {row.state}: {row.reason}",
            f"see 'edgeml fleet rollout {row.id}'",
        )
    return 0 if good else 1


@click.command()
@json_option
@connected
def rollouts(client: FleetClient, as_json: bool) -> None:
    """List rollouts, newest first."""
    rows = client.rollouts()
    if as_json:
        show_json(rows)
        return
    cells = [
        (
            r.id, r.ref.model, r.ref.version, r.state, f"{r.wave}/{len(r.waves)}",
            f"{sum(w.committed for w in r.waves)}/{sum(w.devices for w in r.waves)}",
            r.selector, ago(r.created), r.reason,
        )
        for r in rows
    ]  # fmt: skip
    table(("id", "model", "version", "state", "wave", "devices", "to", "age", "reason"), cells)


@click.command()
@click.argument("rollout_id", metavar="ID")
@click.argument("action", type=click.Choice(["pause", "resume", "abort"]), required=False)
@click.option("--reason", default="", help="Why; kept with the decision.")
@yes_option
@dry_run_option
@json_option
@connected
def rollout(
    client: FleetClient,
    rollout_id: str,
    action: str | None,
    reason: str,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Show a rollout, or pause, resume or abort it."""
    if action is not None:
        row, said = _control(client, rollout_id, action, reason, yes, dry_run)
        if as_json:
            show_json(row)
        else:
            click.echo(said)
        return
    found = client.rollout(rollout_id)
    if as_json:
        show_json(found)
    else:
        _show(found)


@click.command()
@click.argument("rollout_id", metavar="ROLLOUT")
@click.option("--reason", default="", help="Why; kept with the decision.")
@click.option("--wait", is_flag=True, help="Wait until every device that is online is back.")
@yes_option
@dry_run_option
@json_option
@connected
def rollback(
    client: FleetClient,
    rollout_id: str,
    reason: str,
    wait: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send every device of a rollout back to its own version."""
    row, said = _control(client, rollout_id, "rollback", reason, yes, dry_run)
    while wait and not dry_run and row.state not in _ENDED:
        time.sleep(_POLL_SECONDS)
        row = client.rollout(rollout_id).row
        said = f"rollout {row.id} is {row.state}: {row.reason}"
    if as_json:
        show_json(row)
    else:
        click.echo(said)


def _control(
    client: FleetClient, rollout_id: str, action: str, reason: str, yes: bool, dry_run: bool
) -> tuple[RolloutRow, str]:
    """Ask a rollout for something, or only say what that would be; return it and a line."""
    row = client.rollout(rollout_id).row
    touched = sum(w.devices - w.waiting for w in row.waves)
    what = f"{action} rollout {row.id} of {row.ref.model} {row.ref.version}"
    what += f", {count_of(touched, 'device')} told"
    if action == "rollback":
        serving = client.version(row.ref.model, row.ref.version).row.devices
        what += (
            f"; its digest is quarantined in every slot: {count_of(serving, 'device')} serving it"
        )
    if dry_run:
        return row, f"would {what}"
    confirm(f"{what}?", yes)
    row = client.control(rollout_id, action, reason)
    return row, f"rollout {row.id} is {row.state}: {row.reason}"


def _show(found: RolloutDetail) -> None:
    row = found.row
    click.echo(f"rollout {row.id}: {row.ref.model} {row.ref.version} into '{row.slot}'")
    click.echo(f"{row.state} for {ago(row.since)}: {row.reason}")
    cells = [
        (d.device, d.wave, d.state, d.online, d.before, d.restored, d.detail) for d in found.devices
    ]
    table(("device", "wave", "state", "online", "before", "restored", "detail"), cells)
    for verdict in found.verdicts:
        click.echo(f"gate {verdict.gate}: {verdict.state}: {'; '.join(verdict.reasons)}")
    for decision in found.decisions:
        click.echo(f"{clock(decision.at)}  {decision.kind}: {decision.message}")
