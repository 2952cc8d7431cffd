"""``edgeml bench``: how fast a bundle or a model runs on this machine.

The same code measures here, in the converter and on a device: all candidates in the same rounds,
ratios with their intervals, and the machine named beside the figures.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeml.errors import DataError, EdgemlError, ModelError, ProfileError, UsageError

if TYPE_CHECKING:
    from edgeml.hardware import DeviceFacts
    from edgeml.manifest import Variant
    from edgeml.runtime import Program
    from edgeml.runtime.measure import Timing
    from edgeml.tensors import Array, TensorSpec

logger = logging.getLogger(__name__)


@dataclass
class _Candidates:
    """What is measured, and what is not and why.

    Attributes:
        programs: Name -> compiled model and the threads that it runs with.
        errors: Name -> why it cannot be measured here.
        baseline: Name of what the others are compared with; the first when empty.
        files: Name -> precision (empty when it is not known) and size in bytes.
    """

    programs: dict[str, tuple[Program, int]] = field(default_factory=dict)
    errors: dict[str, EdgemlError] = field(default_factory=dict)
    baseline: str = ""
    files: dict[str, tuple[str, int]] = field(default_factory=dict)


@click.command("bench")
@click.argument("path", metavar="BUNDLE|MODEL", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Evaluation data (.npz) to run with; random numbers without it.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Threads of one run; what a variant was made for, or 1, without it.",
)
@click.option(
    "--batch", type=click.IntRange(1, 65536), default=1, show_default=True, help="Samples per run."
)
@click.option(
    "--rounds",
    type=click.IntRange(6, 10000),
    default=30,
    show_default=True,
    help="How often each candidate is visited.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of order and numbers.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    path: Path,
    data: Path | None,
    threads: int | None,
    batch: int,
    rounds: int,
    seed: int,
    as_json: bool,
) -> None:
    """Measure a bundle's variants, or a model on every runtime, on this machine."""
    from edgeml.runtime.facts import device_facts, host_line
    from edgeml.runtime.measure import interleave

    facts = device_facts()
    with ExitStack() as stack:
        if path.is_dir() or path.suffix in (".edgeml", ".tar"):
            found = _open_bundle(path, facts, threads, stack)
        else:
            found = _open_model(path, threads or 1)
        for program, _ in found.programs.values():
            stack.enter_context(closing(program))
        arrays = _read_data(data) if data else None
        runs: dict[str, Callable[[], object]] = {}
        for name, (program, _) in found.programs.items():
            session = stack.enter_context(closing(program.session()))
            feed = make_feed(program.inputs, batch, seed, arrays)
            runs[name] = lambda session=session, feed=feed: session.run(feed)  # type: ignore[misc]  # bound now
        if not runs:
            raise next(iter(found.errors.values()), ModelError(f"no runtime opens '{path.name}'"))
        logger.info("measuring %d candidates in %d rounds", len(runs), rounds)
        timings = interleave(runs, rounds=rounds, seed=seed)
        report = _report(found, timings, facts.runtimes)
    report = {
        "host": host_line(facts),
        "batch": batch,
        "data": str(data) if data else "random",
        **report,
    }
    click.echo(json.dumps(report) if as_json else _text(report))


def _open_bundle(
    path: Path, facts: DeviceFacts, threads: int | None, stack: ExitStack
) -> _Candidates:
    """Unpack a bundle and compile every variant that fits this machine."""
    import msgspec

    from edgeml.bundle import Bundle
    from edgeml.runtime.bind import open_variant

    bundle = Bundle.open(path)
    manifest = bundle.manifest
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeml-bench-")))
    unpacked = bundle.unpack(folder / "bundle")
    found = _Candidates()
    for variant in manifest.variants:
        chosen = msgspec.structs.replace(variant, threads=threads or variant.threads)
        try:
            _check_fit(variant, facts)
            program = open_variant(unpacked, chosen, manifest.inputs, manifest.outputs)
        except EdgemlError as error:
            found.errors[variant.id] = error
            continue
        found.programs[variant.id] = (program, chosen.threads)
        found.files[variant.id] = (variant.precision, variant.size)
        plain = variant.runtime == "onnxruntime" and variant.precision == "fp32"
        if plain and not found.baseline:
            found.baseline = variant.id
    return found


def _check_fit(variant: Variant, facts: DeviceFacts) -> None:
    """Check that a variant was made for machines like this one.

    Raises:
        ProfileError: It was not. A profile that is not known here says nothing against it.
    """
    from edgeml.hardware import fits, load_profile, profile_names

    if variant.profile not in profile_names():
        return
    reason = fits(load_profile(variant.profile), facts)
    if reason:
        raise ProfileError(f"profile '{variant.profile}' does not fit this machine: {reason}")


def _open_model(path: Path, threads: int) -> _Candidates:
    """Compile a model with every runtime that opens files like it.

    Raises:
        ModelError: It is not there.
        UsageError: No runtime opens such files.
    """
    from edgeml.runtime import ProgramOptions, get_runtime, runtime_names

    if not path.is_file():
        raise ModelError(f"model '{path}' is not there, or is not a file", "check the path")
    runtimes = [get_runtime(name) for name in runtime_names()]
    able = [runtime for runtime in runtimes if path.suffix.lower() in runtime.suffixes]
    if not able:
        known = sorted({suffix for runtime in runtimes for suffix in runtime.suffixes})
        raise UsageError(
            f"no runtime opens '{path.name}', expected {', '.join(known)}, or a bundle"
        )
    found = _Candidates()
    for runtime in able:
        try:
            program = runtime.prepare(path, ProgramOptions(threads=threads))
        except EdgemlError as error:
            found.errors[runtime.name] = error
            continue
        found.programs[runtime.name] = (program, threads)
        found.files[runtime.name] = ("", path.stat().st_size)
    return found


def _read_data(path: Path) -> dict[str, Array]:
    """Return the arrays of evaluation data.

    Raises:
        DataError: It cannot be read.
    """
    from edgeml.runtime.golden import load_arrays

    try:
        return load_arrays(path.read_bytes(), limit=4 * 2**30)
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}") from error


def make_feed(
    specs: tuple[TensorSpec, ...],
    batch: int,
    seed: int,
    arrays: dict[str, Array] | None = None,
) -> dict[str, Array]:
    """Return one feed.

    Args:
        specs: The inputs.
        batch: Samples in it.
        seed: Of random numbers.
        arrays: Evaluation data; random numbers when None.

    Raises:
        DataError: The data lacks an input, has too few samples, or another shape.
        UsageError: The model does not take this batch.
    """
    import numpy as np

    feed: dict[str, Array] = {}
    for spec in specs:
        fixed = spec.shape[0] if spec.shape and not spec.batched else 0
        if batch > 1 and fixed not in (0, batch):
            raise UsageError(f"input '{spec.name}' takes {fixed} samples, not --batch {batch}")
        blank = spec.zeros(batch)
        if arrays is not None:
            feed[spec.name] = _rows(arrays, spec, blank, only=len(specs) == 1)
            continue
        rng = np.random.default_rng(seed)
        if blank.dtype.kind == "f":
            feed[spec.name] = rng.normal(size=blank.shape).astype(blank.dtype)
        elif blank.dtype.kind in "iub":  # small enough to be an index into anything
            feed[spec.name] = rng.integers(0, 2, size=blank.shape).astype(blank.dtype)
        else:
            feed[spec.name] = np.full(blank.shape, "", dtype=object)
    return feed


def _rows(arrays: dict[str, Array], spec: TensorSpec, blank: Array, only: bool) -> Array:
    """Return the first samples of an input from evaluation data.

    Raises:
        DataError: They are not there, too few, or do not fit.
    """
    import numpy as np

    names = [f"test/{spec.name}", f"calib/{spec.name}"]
    names += ["x_test", "x_calib"] if only else []
    name = next((name for name in names if name in arrays), None)
    if name is None:
        raise DataError(f"the data holds no input '{spec.name}', expected '{names[0]}'")
    samples = arrays[name]
    if f"scale/{spec.name}" in arrays:
        zero = np.float32(arrays.get(f"zero_point/{spec.name}", 0))
        samples = (samples.astype(np.float32) - zero) * np.float32(arrays[f"scale/{spec.name}"])
    count = blank.shape[0] if blank.ndim else 0
    if samples.ndim == 0 or len(samples) < count:
        raise DataError(f"'{name}' has {samples.shape} samples, expected at least {count}")
    rows = samples[:count].astype(spec.dtype)
    fits = rows.ndim == len(spec.shape) and all(
        want in (-1, got) for want, got in zip(spec.shape, rows.shape, strict=True)
    )
    if not fits:
        raise DataError(f"'{name}' has samples of shape {list(rows.shape)}, not {list(spec.shape)}")
    return rows


def _report(
    found: _Candidates, timings: dict[str, Timing], versions: dict[str, str]
) -> dict[str, Any]:
    """Return the outcome as plain values."""
    from edgeml.runtime.measure import Ratio, speedup

    baseline = found.baseline or next(iter(timings))
    results: list[dict[str, Any]] = []
    for name, timing in timings.items():
        program, threads = found.programs[name]
        ratio = Ratio(1.0, 1.0, 1.0) if name == baseline else speedup(timings[baseline], timing)
        results.append(
            {
                "name": name,
                "runtime": program.runtime,
                "precision": found.files[name][0],
                "size_bytes": found.files[name][1],
                "version": versions.get(program.runtime, ""),
                "placement": program.placement,
                "threads": threads,
                "rounds": len(timing.wall),
                "latency_ms": timing.latency_ms(),
                "speedup": {
                    "value": ratio.value,
                    "interval": [ratio.low, ratio.high],
                    "clock": ratio.clock,
                },
            }
        )
    left_out = [{"name": n, "reason": e.message, "hint": e.hint} for n, e in found.errors.items()]
    return {"baseline": baseline, "results": results, "left_out": left_out}


def _text(report: dict[str, Any]) -> str:
    """Return the outcome as a table for people."""
    from edgeml.report import figures

    heads = ("candidate", "precision", "p50 ms", "p95 ms", "p99 ms", "times as fast [95 %]", "size")
    rows = [heads]
    for row in report["results"]:
        gain = row["speedup"]
        compared = figures.ratio(gain["value"], gain["interval"])
        latency = (figures.milliseconds(row["latency_ms"][key]) for key in ("p50", "p95", "p99"))
        rows.append(
            (
                row["name"],
                row["precision"] or figures.NOTHING,
                *latency,
                "baseline" if row["name"] == report["baseline"] else compared,
                figures.size(row["size_bytes"]),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += [f"left out  {row['name']}: {row['reason']}" for row in report["left_out"]]
    used = {f"{row['runtime']} {row['version']} on {row['placement']}, "
            f"threads {row['threads']}" for row in report["results"]}  # fmt: skip
    clocks = " and ".join(sorted({row["speedup"]["clock"] for row in report["results"]}))
    lines += ["", f"batch {report['batch']}, data: {report['data']}, compared by {clocks} time; "
              f"{'; '.join(sorted(used))}"]  # fmt: skip
    lines += [f"measured on: {report['host']}"]
    return "\n".join(lines)
