"""``edgeml compare``: options in, a table and an exit code out."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec

from edgeml_converters import words
from edgeml_converters.comparison import Comparison, Side


@click.command("compare", short_help="Compare two models or bundles: accuracy, latency, memory.")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--data", metavar="FILE|M:F", help="Evaluation data: an .npz, or module:function.")
@click.option(
    "--metric",
    metavar="NAME|M:F",
    help="What counts as good (default: top1 with class labels, else agreement).",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0.0),
    help="Exit with 1 when B loses more: absolute for scores, relative for errors.",
)
@click.option(
    "--max-slowdown",
    type=click.FloatRange(0.0),
    help="Exit with 1 when B takes longer by more than this share: 0.05 for 5 %.",
)
@click.option(
    "--strict", is_flag=True, help="Exit with 1 also when the samples or rounds cannot tell."
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Threads of one run; what a variant was made for, or 1, without it.",
)
@click.option(
    "--rounds",
    type=click.IntRange(6, 10000),
    default=40,
    show_default=True,
    help="How often each is visited.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    a: str,
    b: str,
    data: str | None,
    metric: str | None,
    max_drop: float | None,
    max_slowdown: float | None,
    strict: bool,
    threads: int | None,
    rounds: int,
    seed: int,
    as_json: bool,
) -> None:
    """Compare two models or bundles: accuracy, latency, memory.

    A and B are BUNDLE, BUNDLE#VARIANT, MODEL or MODEL#RUNTIME. Both run the same samples, and are
    measured in the same rounds; A is what B is compared with. Of a bundle, the first variant that
    fits this machine is taken.
    """
    from edgeml_converters.compare import compare

    result = compare(
        a,
        b,
        data=data,
        metric=metric,
        max_drop=max_drop,
        max_slowdown=max_slowdown,
        threads=threads,
        rounds=rounds,
        seed=seed,
        progress=lambda line: click.echo(line, err=True),
    )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
    else:
        click.echo(text(result))
    allowed = ("ok",) if strict else ("ok", "undecided")
    if any(limit.state not in allowed for limit in result.limits):
        ctx.exit(1)


def text(result: Comparison) -> str:
    """Return a comparison as a table for people."""
    rows = _rows(result.a, result.b)
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    low, high = result.speedup.interval
    lines += [
        "",
        f"speed      B is {result.speedup.value:.2f} x as fast as A [{low:.2f}, {high:.2f}], "
        f"{result.clock} time",
    ]
    if result.drop is not None and result.a.metric is not None:
        lines.append(
            f"accuracy   B loses {result.drop.value + 0.0:+.4f} (≤ {result.drop.upper:.4f}) "
            f"of {result.a.metric.name} on {result.samples} samples"
        )
    lines.append(
        f"outputs    SQNR {words.decibels(result.sqnr_db)}, agreement "
        f"{words.score(result.agreement)}"
    )
    lines += [f"size       {_times(result.a.size_bytes, result.b.size_bytes, 'smaller', 'larger')}"]
    lines += [
        f"limit      {one.option} {one.limit:g}: {one.state}; {one.reason}" for one in result.limits
    ]
    lines += [f"note       {warning}" for warning in result.warnings]
    return "\n".join([*lines, f"host       {result.host}"])


def _rows(a: Side, b: Side) -> Sequence[tuple[str, str, str]]:
    rows = [
        ("", "A", "B"),
        ("model", a.name, b.name),
        ("runtime", f"{a.runtime} on {a.placement}", f"{b.runtime} on {b.placement}"),
        ("precision", a.precision, b.precision),
        ("threads", str(a.threads), str(b.threads)),
    ]
    for label in ("p50", "p95", "p99"):
        one, other = (f"{getattr(side.latency_ms, label):.4g}" for side in (a, b))
        rows.append((f"{label} ms", one, other))
    if a.metric is not None and b.metric is not None:
        rows.append((a.metric.name, words.score(a.metric), words.score(b.metric)))
    rows.append(("size", words.size(a.size_bytes), words.size(b.size_bytes)))
    rows.append(("memory", words.size(a.memory_bytes), words.size(b.memory_bytes)))
    return rows


def _times(a: int, b: int, less: str, more: str) -> str:
    if a == b or not a or not b:
        return "as large as A"
    return f"B is {a / b:.2f} x {less}" if b < a else f"B is {b / a:.2f} x {more}"
