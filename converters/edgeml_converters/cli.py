"""``edgeml convert``: options in, a bundle and a table out."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from edgeml_converters import words
from edgeml_converters.lines import Lines
from edgeml_converters.results import Candidate, ConvertResult, ProfileResult

_HEADS = (
    "candidate",
    "precision",
    "p50 ms",
    "times as fast [95 %]",
    "metric",
    "drop",
    "size",
    "verdict",
)


def _shapes(
    _ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """Return input -> shape from ``NAME=1,3,8,8``; -1 leaves an axis variable."""
    shapes: dict[str, tuple[int, ...]] = {}
    for value in values:
        name, _, numbers = value.rpartition("=")
        try:
            shape = tuple(int(number) for number in numbers.split(",") if number.strip())
        except ValueError:
            shape = (0,)
        if not name or any(n < -1 or n == 0 for n in shape):
            raise click.BadParameter(f"'{value}' is not NAME=1,3,8,8 (positive numbers, or -1)")
        if name in shapes:
            raise click.BadParameter(f"input '{name}' is given twice")
        shapes[name] = shape
    return shapes


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Return seconds from ``90``, ``90s``, ``10m`` or ``1.5h``."""
    if value is None:
        return None
    seconds = words.read_seconds(value)
    if not seconds:
        raise click.BadParameter(f"'{value}' is no time, expected for example 90s, 10m or 1h")
    return seconds


@click.command("convert", short_help="Make a model fast and small for a device, and prove it.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--profile", "profiles", multiple=True, required=True, metavar="NAME",
              help="Hardware profile, or a file of your own; may be repeated.")  # fmt: skip
@click.option("--data", metavar="FILE|M:F", help="Evaluation data: an .npz, or module:function.")
@click.option("--metric", metavar="NAME|M:F",
              help="What counts as good (default: agreement with the source).")  # fmt: skip
@click.option("--max-drop", type=click.FloatRange(0.0), default=0.01, show_default=True,
              help="Most that may be lost: absolute for scores, relative for errors.")  # fmt: skip
@click.option("--objective", type=click.Choice(["latency", "size", "memory", "energy"]),
              default="latency",
              show_default=True, help="What the winner is best at.")  # fmt: skip
@click.option("--shape", "shapes", multiple=True, callback=_shapes, metavar="INPUT=N,N,...",
              help="Fix the shape of an input; may be repeated.")  # fmt: skip
@click.option("--effort", type=click.Choice(["quick", "normal", "thorough"]), default="normal",
              show_default=True, help="Recipes, test samples, rounds of measurement.")  # fmt: skip
@click.option("--budget", callback=_seconds, metavar="TIME",
              help="Time that the search may take, for example 90s, 10m or 1h.")  # fmt: skip
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Threads (default: the profile's first; what may win also at its others).",
)
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True,
              help="Candidates built at the same time; measuring is always alone.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
@click.option("--name", help="Name of the model (default: from the file).")
@click.option("--version", default="1.0.0", show_default=True, help="SemVer of the bundle.")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=True),
              help="Where the bundle goes (default: ./NAME-VERSION.edgeml).")  # fmt: skip
@click.option("--report", type=click.Path(path_type=Path, file_okay=False),
              help="Also write the report into this folder.")  # fmt: skip
@click.option("--track", metavar="PLACE", envvar="EDGEML_TRACK",
              help="Keep a record: a folder, http://HOST:PORT of MLflow, or mlflow.")  # fmt: skip
@click.option("--preprocess", multiple=True, metavar="FILE|WORDS",
              help="Build in what is done before the model: 'imagenet color=bgr'.")  # fmt: skip
@click.option("--postprocess", multiple=True, metavar="FILE|WORDS",
              help="Build in what is done after it: 'softmax top=5 labels=FILE'.")  # fmt: skip
@click.option("--on-device", metavar="SELECTOR",
              help="Measure on these devices of a fleet, and not here.")  # fmt: skip
@click.option("--server", envvar="EDGEML_SERVER", default="", metavar="URL",
              help="Address of that fleet (default: on this machine).")  # fmt: skip
@click.option("--token", envvar="EDGEML_TOKEN", default="", help="Token for that fleet.")
@click.option("--resume", is_flag=True, help="Go on from where an interrupted run was.")
@click.option("--fresh", is_flag=True, help="Measure anew what was measured before.")
@click.option("--cache/--no-cache", default=True, show_default=True,
              help="Keep and take files and measurements from one run to the next.")  # fmt: skip
@click.option("--allow-partial", is_flag=True, help="When interrupted, end with the best so far.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def convert(
    model: Path,
    profiles: tuple[str, ...],
    shapes: dict[str, tuple[int, ...]],
    budget: float | None,
    report: Path | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Make MODEL fast and small for a device, and prove it.

    Every recipe that the profile allows is built, run from its final bytes, compared with MODEL
    and measured beside it. What loses accuracy is dropped, and MODEL itself stays in the race:
    the winner is never slower or worse than what you have.
    """
    from edgeml_converters.api import convert as run

    given = click.get_current_context().get_parameter_source
    for option in ("server", "token"):
        if asked["on_device"] is None and given(option) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{option} is that of a fleet, and --on-device is not given.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is left behind then either
    lines = Lines(sys.stderr)
    try:
        result = run(
            model,
            list(profiles),
            shape=shapes,
            budget_s=budget,
            report=report,
            progress=lines.say,
            status=lines.show,
            **asked,  # the other options have the names that the function gives them
        )
    except KeyboardInterrupt:
        if asked["cache"]:
            lines.say("what was built and measured is kept: the same with --resume goes on")
        raise
    lines.close()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
    else:
        click.echo(summary(result, report))


def summary(result: ConvertResult, report: Path | None = None) -> str:
    """Return what a person wants to know at the end."""
    lines: list[str] = []
    for one in result.results:
        lines += _profile(one)
    lines += [f"bundle    {result.bundle}", f"digest    {result.digest}"]
    if report is not None:
        lines.append(f"report    {report / 'report.html'}")
    lines += ["", "next:", f"  edgeml inspect {result.bundle}"]
    lines += [f"  edgeml-agent serve {result.bundle}"]
    return "\n".join(lines)


def _profile(result: ProfileResult) -> list[str]:
    metric = words.metric_name(result.candidates)
    heads = tuple(metric if head == "metric" else head for head in _HEADS)
    rows = [heads, *(_cells(c, result.winner) for c in result.candidates)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADS))]
    lines = [f"{result.profile} on {result.host}", ""]
    lines += ["  " + _pad(row, widths) for row in rows]
    lines += ["", f"winner    {result.winner.id}: {result.reason}"]
    if result.confirmed:
        lines.append(f"again     {words.gain(result.confirmed)} in new processes")
    lines += [f"with      {words.threads(one)}" for one in result.other_threads]
    lines += [
        f"why not   {c.id}: {c.reason}" for c in result.candidates if c.id != result.winner.id
    ]
    lines += [f"note      {warning}" for warning in result.warnings]
    return [*lines, ""]


def _cells(c: Candidate, winner: Candidate) -> tuple[str, ...]:
    return (
        c.id,
        c.precision,
        words.latency(c),
        words.speedup(c),
        words.metric(c),
        words.drop(c),
        words.size(c.size_bytes or None),
        "WINNER" if c.id == winner.id else c.verdict.value,
    )


def _pad(cells: Sequence[str], widths: Sequence[int]) -> str:
    text = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join(text).rstrip()
