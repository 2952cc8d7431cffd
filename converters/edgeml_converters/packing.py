"""From the outcome of the searches to a bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec
import numpy as np

from edgeml.bundle import Bundle, blob_ref, pack
from edgeml.drift import reference as drift
from edgeml.drift.features import MAX_VALUES
from edgeml.errors import DataError, ModelError
from edgeml.manifest import BlobRef, Evidence, Lineage, Manifest, Score, Step, Variant
from edgeml.report import Report, render
from edgeml.runtime.golden import save_arrays
from edgeml.tensors import Array
from edgeml_converters import golden, samples
from edgeml_converters.account import account
from edgeml_converters.cache import file_digest, key_of
from edgeml_converters.candidates import Bench, Trial
from edgeml_converters.jobs import JobError
from edgeml_converters.recipes import BASELINE, baseline_allowed
from edgeml_converters.results import ProfileResult
from edgeml_converters.search import Found
from edgeml_converters.winners import winner_layers
from edgeml_converters.worker import CheckJob

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle besides the searches' outcome.

    Attributes:
        name: Of the model.
        version: SemVer.
        lineage: Without the steps of the variants.
        samples: Stacked test samples.
        labels: Label of each sample; None without.
        classes: Names of the classes.
        given: Whether the samples are real: random ones make no drift reference.
        score: The source's score; None without data.
        objective: What was optimised.
        steps: What was done to the source before anything was tried.
    """

    name: str
    version: str
    lineage: Lineage
    samples: samples.Stacked
    labels: Array | None
    classes: tuple[str, ...]
    given: bool
    score: Score | None
    objective: str
    steps: tuple[Step, ...] = ()


@dataclass
class _Parts:
    """Files of the bundle, and what the manifest says of them."""

    files: dict[str, Path | bytes]
    variants: list[Variant]
    steps: dict[str, tuple[Step, ...]]

    def add(self, path: str, data: Path | bytes) -> BlobRef:
        """Keep a file and return its reference."""
        self.files[path] = data
        return blob_ref(path, data)


def make_bundle(
    found: Sequence[Found], benches: Sequence[Bench], contents: Contents, out: Path
) -> tuple[Bundle, tuple[ProfileResult, ...], Report]:
    """Write the bundle.

    Args:
        found: One per profile.
        benches: One per profile.
        contents: The rest.
        out: Where it goes.

    Returns:
        The bundle, the results with the paths of what it holds, and its report.

    Raises:
        ModelError: A variant does not run on the golden samples.
        BundleError: It cannot be written.
    """
    parts = _Parts({}, [], {})
    base = found[0].trials[0]
    feed = _golden_feed(contents, benches[0], base)
    golden_inputs = parts.add("golden/inputs.npz", save_arrays(feed))
    results = [
        _add_profile(parts, one, bench, feed, contents.given)
        for one, bench in zip(found, benches, strict=True)
    ]
    steps = {name: (*contents.steps, *own) for name, own in parts.steps.items()}
    lineage = msgspec.structs.replace(contents.lineage, steps=steps)
    rounds = {f.profile.name: _rounds(f) for f in found}
    told = [msgspec.structs.replace(result, seconds=0.0) for result in results]
    report = _account(contents, told, lineage, rounds, benches[0])
    refs = tuple(parts.add(f"report/{name}", data) for name, data in render(report).items())
    measurements = msgspec.json.encode(
        {"results": told, "rounds_ms": rounds}, order="deterministic"
    )
    watched = _drift(contents, base, benches[0])
    manifest = Manifest(
        name=contents.name,
        version=contents.version,
        inputs=benches[0].inputs,
        outputs=benches[0].outputs,
        variants=tuple(parts.variants),
        lineage=lineage,
        score=contents.score,
        labels=contents.classes,
        golden=golden_inputs,
        drift=parts.add("drift/reference.bin", watched) if watched else None,
        report=refs,
        measurements=parts.add("measurements.json", measurements),
    )
    return pack(manifest, parts.files, out), tuple(results), report


def _account(
    contents: Contents,
    results: Sequence[ProfileResult],
    lineage: Lineage,
    rounds: Mapping[str, Mapping[str, tuple[float, ...]]],
    bench: Bench,
) -> Report:
    """Return the report; its pictures take long, so that of a run with the same figures is kept."""
    given = (contents.name, contents.version, results, lineage, rounds, contents.objective)
    key = key_of("account", bench.context, given)
    if (known := bench.cache.take(key, bench.work)) is not None:
        return msgspec.msgpack.decode(known, type=Report)
    report = account(*given)
    bench.cache.keep(key, msgspec.msgpack.encode(report))
    return report


def _drift(contents: Contents, base: Trial, bench: Bench) -> bytes | None:
    """Return the drift reference; None without real data, or where samples cannot be told apart."""
    if not contents.given:
        return None
    told = file_digest(base.results) if base.results else ""
    key = key_of("drift", bench.context, bench.samples.digest, told)
    if (known := bench.cache.take(key, bench.work)) is not None:
        return known
    inputs = {
        # What is summed up a few samples at a time need not be in memory.
        name: cast("Array", rows) if rows.size > MAX_VALUES * len(rows) else np.asarray(rows)
        for name, rows in samples.flat(contents.samples).items()
    }
    try:
        watched = drift.build(inputs, base.outputs).encode()
    except DataError as error:
        logger.warning("no drift reference: %s", error.message)
        return None
    bench.cache.keep(key, watched)
    return watched


def _rounds(found: Found) -> dict[str, tuple[float, ...]]:
    return {t.id: t.measured.rounds_ms for t in found.trials if t.measured}


def _golden_feed(contents: Contents, bench: Bench, base: Trial) -> dict[str, Array]:
    runs = samples.count(contents.samples)
    classes = golden.classes_of(contents.labels, base.outputs, runs)
    return golden.golden_feed(contents.samples, bench.inputs, golden.pick(classes, runs))


def _add_profile(
    parts: _Parts, found: Found, bench: Bench, feed: Mapping[str, Array], given: bool
) -> ProfileResult:
    """Add the winner's variant and its fallback; return the result with their paths."""
    base = found.trials[0]
    chosen = [found.winner]
    if found.winner.id != BASELINE and baseline_allowed(found.profile):
        chosen.append(base)
    layers = winner_layers(found.winner, bench, given)
    result = msgspec.structs.replace(found.result, layers=layers)
    for trial in chosen:
        variant = _add_variant(parts, found, trial, base, bench, feed)
        result = _with_files(result, trial.id, variant)
    return result


def _add_variant(
    parts: _Parts, found: Found, trial: Trial, base: Trial, bench: Bench, feed: Mapping[str, Array]
) -> Variant:
    """Record a variant's golden outputs, and add it."""
    draft = trial.draft(bench.threads)
    folder = trial.folder
    if folder is None or trial.checked is None:
        raise ModelError(f"candidate {trial.id} was never run")
    name = f"{found.profile.name}.{trial.id}"
    recorded = _record(trial.here(bench.threads), folder, bench, feed)
    variant = msgspec.structs.replace(
        draft,
        id=name,
        profile=found.profile.name,
        files=tuple(
            parts.add(f"variants/{name}/{ref.path}", folder / ref.path) for ref in draft.files
        ),
        entry=f"variants/{name}/{draft.entry}",
        evidence=Evidence(found.evidence, f"{trial.runtime} {trial.checked.version}", found.host),
        tolerance=golden.tolerance(trial.recipe.precision, trial.recall(), base.outputs),
        golden=parts.add(f"golden/{name}.npz", save_arrays(recorded)),
    )
    parts.variants.append(variant)
    parts.steps[name] = trial.steps
    return variant


def _record(
    draft: Variant, folder: Path, bench: Bench, feed: Mapping[str, Array]
) -> dict[str, Array]:
    """Run a variant on the golden samples as a device will: all in one feed."""
    one_run = bench.work / "golden-feed.npz"
    results = bench.work / f"golden-{draft.id}.npz"
    samples.save(one_run, {name: array[np.newaxis] for name, array in feed.items()})
    job = CheckJob(
        str(folder), draft, bench.inputs, bench.outputs, str(one_run), str(results), first=True
    )
    try:
        bench.check(job)
    except JobError as error:
        raise ModelError(f"{draft.id} does not run on the golden samples: {error}") from error
    return samples.load(results)


def _with_files(result: ProfileResult, candidate: str, variant: Variant) -> ProfileResult:
    """Return the result with the paths of a candidate that the bundle holds."""
    files = tuple(ref.path for ref in variant.files)

    candidates = tuple(
        msgspec.structs.replace(c, files=files, entry=variant.entry) if c.id == candidate else c
        for c in result.candidates
    )
    by_id = {c.id: c for c in candidates}
    return msgspec.structs.replace(
        result,
        candidates=candidates,
        winner=by_id[result.winner.id],
        baseline=by_id[result.baseline.id],
    )
