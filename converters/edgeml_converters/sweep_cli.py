"""``edgeml sweep``: a file in, bundles, reports, an index and a table out."""

from __future__ import annotations

import signal
from pathlib import Path

import click
import msgspec

from edgeml_converters import words
from edgeml_converters.sweep import SweepResult

_HEADS = (
    "model",
    "profile",
    "winner",
    "p50 ms",
    "times as fast [95 %]",
    "metric",
    "size",
    "seconds",
)


@click.command("sweep", short_help="Convert many models, as a file says.")
@click.argument("file", metavar="SWEEP.TOML", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, metavar="NAME", help="Only this model; may be repeated.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Candidates built at the same time; measuring is always alone.",
)
@click.option("--fresh", is_flag=True, help="Measure anew, also what was measured before.")
@click.option(
    "--track",
    metavar="PLACE",
    envvar="EDGEML_TRACK",
    help="Keep a record of each: a folder, http://HOST:PORT of MLflow, or mlflow.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    file: Path,
    only: tuple[str, ...],
    jobs: int,
    fresh: bool,
    track: str | None,
    as_json: bool,
) -> None:
    """Convert many models, as a file says.

    A model that fails stops no other; the exit code is 1 when a gate said no to any. What was
    built and measured with the same inputs is not done again.
    """
    from edgeml_converters.sweep import sweep

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is done is kept then, too
    result = sweep(
        file,
        only=only,
        jobs=jobs,
        fresh=fresh,
        track=track,
        progress=lambda line: click.echo(line, err=True),
    )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
    else:
        click.echo(text(result))
    ctx.exit(result.exit_code)


def text(result: SweepResult) -> str:
    """Return a sweep as a table for people."""
    rows = [_HEADS]
    for one in result.models:
        for found in one.results:
            c = found.winner
            rows.append(
                (
                    one.name,
                    found.profile,
                    c.id,
                    words.latency(c),
                    words.speedup(c),
                    words.metric(c),
                    words.size(c.size_bytes or None),
                    f"{one.seconds:.1f}",
                )
            )
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    failed = [one for one in result.models if one.error]
    lines += [""] if failed else []
    for one in failed:
        lines.append(f"failed    {one.name}: {one.error}")
        lines += [f"hint      {one.hint}"] if one.hint else []
    return "\n".join([*lines, "", f"index     {result.index}"])
