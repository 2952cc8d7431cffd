"""Commands of ``edgeml-agent`` that look after a device: run, enrol, status, doctor."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import click
import msgspec

from edgeml.errors import GateError, UnreachableError
from edgeml_agent import config as configuration
from edgeml_agent import logs

CONFIG = click.option(
    "--config",
    "path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="agent.toml, as 'edgeml-agent enrol' wrote it.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command(name="run")
@CONFIG
@click.option(
    "--log",
    "style",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How the lines on stderr look.",
)
def run(path: Path, style: str) -> None:
    """Run this device's agent until it is told to stop."""
    from edgeml.link.mqtt import MqttLink
    from edgeml_agent.machine import this_machine
    from edgeml_agent.supervisor import Supervisor

    found = configuration.load(path)
    # -v and -vv have set the level already; without them an agent tells what it does.
    logs.configure(style, min(logging.getLogger().level, logging.INFO))
    supervisor = Supervisor(
        found,
        this_machine(found),
        lambda client, will: MqttLink(found.broker.host, found.broker.port, client, will),
    )

    def stop(_signal: int, _frame: FrameType | None) -> None:
        supervisor.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    supervisor.run()


@click.command(name="enrol")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--state",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for agent.toml, the root of trust and everything the agent remembers.",
)
@click.option("--http", default="", help="HOST:PORT to serve on; 127.0.0.1:8500 without it.")
@click.option("--force", is_flag=True, help="Replace an earlier enrolment.")
@JSON
def enrol(file: Path, folder: Path, http: str, force: bool, as_json: bool) -> None:
    """Make this machine a device of a fleet, from an enrolment file."""
    from edgeml_agent import enrol as enrolling

    found = enrolling.enrol(enrolling.read(file), folder, http=http, force=force)
    written = folder / "agent.toml"
    if as_json:
        told = {"device": found.device, "fleet": found.fleet, "config": str(written)}
        click.echo(msgspec.json.encode(told))
        return
    click.echo(f"enrolled as {found.device} of {found.fleet}")
    click.echo(f"start it with: edgeml-agent run --config {written}")


@click.command(name="status")
@CONFIG
@JSON
def status(path: Path, as_json: bool) -> None:
    """Show what this device runs, from what its agent wrote down."""
    found = read_status(configuration.load(path))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    for line in status_lines(found):
        click.echo(line)


def read_status(config: configuration.AgentConfig) -> dict[str, Any]:
    """Return what the agent wrote down last, and whether it runs now.

    Raises:
        UnreachableError: No agent has ever run on this state folder, or it may not be read.
    """
    from edgeml_agent.state import in_use

    folder = Path(config.state)
    try:
        found: dict[str, Any] = msgspec.json.decode((folder / "status.json").read_bytes())
        found["running"] = in_use(folder)
    except (OSError, msgspec.DecodeError) as error:
        raise UnreachableError(
            f"no agent has left its status in {folder}: {error}",
            "start one with 'edgeml-agent run --config FILE'",
        ) from error
    found["device"] = config.device
    return found


def status_lines(found: dict[str, Any]) -> list[str]:
    """Return the status as lines for people."""
    reported = found.get("reported") or {}
    state = "running" if found["running"] else "stopped"
    link = "connected" if found["connected"] and found["running"] else "not connected"
    lines = [
        f"{found['device']} of {found['fleet']}: {state}, {link}, "
        f"health {reported.get('health', 'unknown')}, profile {found['profile']}",
    ]
    for name, slot in sorted(reported.get("slots", {}).items()):
        active = slot.get("active")
        what = f"{active['model']} {active['version']}" if active else "nothing"
        lines.append(f"  {name}: {what} ({slot.get('variant') or '-'}), {slot['phase']}")
        for key in ("outcome", "degraded", "detail"):
            if slot.get(key):
                lines.append(f"    {key}: {slot[key]}")
    for digest in reported.get("quarantined", ()):
        lines.append(f"  quarantined: {digest}")
    return lines


@click.command(name="doctor")
@CONFIG
@JSON
def doctor(path: Path, as_json: bool) -> int:
    """Check what this device needs: disk, clock, state, trust, runtimes, broker."""
    from edgeml_agent.checks import CHECKS, Grade

    config = configuration.load(path)
    findings = []
    for check in CHECKS:
        finding = check(config)
        findings.append(finding)
        if not as_json:
            click.echo(f"{finding.grade:8} {finding.name}: {finding.message}")
            if finding.hint:
                click.echo(f"         {finding.hint}")
    bad = [finding.name for finding in findings if finding.grade is Grade.BAD]
    if as_json:
        click.echo(msgspec.json.encode({"ok": not bad, "findings": findings}))
    elif bad:
        click.echo(f"{len(bad)} of {len(findings)} checks are bad: {', '.join(bad)}")
    return GateError.exit_code if bad else 0
