"""``edgeml compare``: two models on the same samples, in the same rounds.

The figures are those of ``edgeml convert``, made by the same code: the paired test on the metric,
the paired ratio of the latencies, SQNR, memory, size. A is what B is compared with.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from edgeml.errors import ModelError, UsageError
from edgeml.manifest import Score
from edgeml.metrics import DropVerdict, get_metric, verdict
from edgeml.runtime.bind import open_variant
from edgeml.runtime.facts import device_facts, host_line
from edgeml.runtime.measure import Ratio, Timing, interleave, speedup
from edgeml.tensors import Array, TensorSpec
from edgeml_converters import samples
from edgeml_converters.comparison import Comparison, Limit, Loss, Side
from edgeml_converters.data import EvaluationData
from edgeml_converters.jobs import JobError, Limits, run_job
from edgeml_converters.judge import SAME_DB, mismatch, sqnr_db
from edgeml_converters.results import Latency, Speedup
from edgeml_converters.subject import Subject, open_subject
from edgeml_converters.worker import Checked, CheckJob

_MEMORY_SHARE = 0.75


def compare(
    a: str | Path,
    b: str | Path,
    *,
    data: str | Path | None = None,
    metric: str | None = None,
    max_drop: float | None = None,
    max_slowdown: float | None = None,
    threads: int | None = None,
    rounds: int = 40,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Compare two models, or variants of bundles.

    Args:
        a: ``BUNDLE``, ``BUNDLE#VARIANT``, ``MODEL`` or ``MODEL#RUNTIME``: what is compared with.
        b: What is compared; it must take and give the same tensors.
        data: Evaluation data, as ``edgeml.convert`` takes it; random samples without.
        metric: As ``edgeml.convert`` takes it.
        max_drop: Most that B may lose: absolute for scores, relative for errors.
        max_slowdown: Most that B may take longer, as a share: 0.05 for 5 %.
        threads: Threads of every run; what each was made for when None.
        rounds: Of the measurement.
        seed: Of everything random.
        progress: Takes lines that say what is being done.

    Raises:
        UsageError: An option has a value that it cannot have, or the two do not fit together.
        ModelError: One does not load or run.
        DataError: The data cannot be used.
    """
    _check_options(data, metric, max_drop, max_slowdown)
    facts = device_facts()
    with tempfile.TemporaryDirectory(prefix="edgeml-compare-") as name:
        work = Path(name)
        pair = (
            open_subject(str(a), work / "bundle-a", facts, threads),
            open_subject(str(b), work / "bundle-b", facts, threads),
        )
        inputs = common_contract(*pair)
        given = EvaluationData.open(data, inputs, seed)
        stacked = samples.stack(given.test, inputs)
        feed = next(samples.feeds(stacked))
        rows = samples.count(stacked) * samples.batch_of(feed)
        samples.save(work / "samples.npz", stacked)
        limits = Limits(memory_bytes=int(facts.memory_bytes * _MEMORY_SHARE))
        ran = []
        for subject in pair:
            progress(f"{subject.name}: {rows} samples")
            ran.append(_run(subject, inputs, work, limits))
        progress(f"measuring both side by side, {rounds} rounds")
        timings = _measure(pair, inputs, feed, rounds, seed)
    (checked_a, first), (checked_b, second) = ran
    problem = mismatch(first, second)
    if problem:
        raise ModelError(
            f"'{pair[1].name}' does not answer as '{pair[0].name}' does: {problem}",
            "look at both with 'edgeml inspect'",
        )
    sqnr, ratio = sqnr_db(first, second), speedup(*timings)
    judged = _judge((first, second), given, rows, metric, max_drop, sqnr >= SAME_DB)
    return Comparison(
        a=_side(pair[0], checked_a, timings[0], judged.scores[0]),
        b=_side(pair[1], checked_b, timings[1], judged.scores[1]),
        host=host_line(facts),
        samples=rows,
        data=given.digest if given.given else "",
        speedup=Speedup(ratio.value, (ratio.low, ratio.high)),
        clock=ratio.clock,
        drop=judged.loss,
        sqnr_db=sqnr,
        agreement=get_metric("agreement").score(second, None, first),
        limits=(*judged.limits, *_slowdown(ratio, max_slowdown)),
        warnings=_warnings(pair, given),
    )


def _check_options(
    data: object, metric: str | None, max_drop: float | None, max_slowdown: float | None
) -> None:
    if metric is not None:
        get_metric(metric)
    if data is None and (max_drop is not None or metric is not None):
        option = "--max-drop" if max_drop is not None else f"--metric {metric}"
        raise UsageError(f"{option} needs evaluation data", "give --data")
    for name, value in (("max_drop", max_drop), ("max_slowdown", max_slowdown)):
        if value is not None and not 0.0 <= value < float("inf"):
            raise UsageError(
                f"{name} is {value}, expected a number that is not negative", "give 0.01 for 1 %"
            )


def common_contract(a: Subject, b: Subject) -> tuple[TensorSpec, ...]:
    """Return the inputs that both take, an axis fixed where one of the two fixes it.

    Raises:
        UsageError: They take or give other tensors.
    """
    for what, one, other in (("take", a.inputs, b.inputs), ("give", a.outputs, b.outputs)):
        if not _alike(one, other):
            raise UsageError(
                f"'{a.name}' and '{b.name}' do not {what} the same: "
                f"{_told(one)} against {_told(other)}",
                "compare models of one task; 'edgeml inspect' shows what each takes and gives",
            )
    by_name = {spec.name: spec for spec in b.inputs}
    merged = []
    for spec in a.inputs:
        shape = tuple(max(m, n) for m, n in zip(spec.shape, by_name[spec.name].shape, strict=True))
        merged.append(TensorSpec(spec.name, spec.dtype, shape))
    return tuple(merged)


def _alike(one: tuple[TensorSpec, ...], other: tuple[TensorSpec, ...]) -> bool:
    by_name = {spec.name: spec for spec in other}
    if len(by_name) != len(one) or {spec.name for spec in one} != set(by_name):
        return False
    return all(
        spec.dtype == by_name[spec.name].dtype
        and len(spec.shape) == len(by_name[spec.name].shape)
        and all(m == n or -1 in (m, n)
                for m, n in zip(spec.shape, by_name[spec.name].shape, strict=True))
        for spec in one
    )  # fmt: skip


def _told(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in specs)


def _run(
    subject: Subject, inputs: tuple[TensorSpec, ...], work: Path, limits: Limits
) -> tuple[Checked, dict[str, Array]]:
    """Run one on every sample, in a process of its own.

    Raises:
        ModelError: It does not run.
    """
    feed, results = str(work / "samples.npz"), work / "outputs.npz"
    variant, outputs = subject.variant, subject.outputs
    job = CheckJob(str(subject.folder), variant, inputs, outputs, feed, str(results))
    try:
        checked = run_job(job, Checked, limits)
    except JobError as error:
        raise ModelError(
            f"'{subject.name}' does not run: {error}", "give --data with inputs that it accepts"
        ) from error
    return checked, samples.load(results)


def _measure(
    pair: tuple[Subject, Subject],
    inputs: tuple[TensorSpec, ...],
    feed: dict[str, Array],
    rounds: int,
    seed: int,
) -> tuple[Timing, Timing]:
    """Measure both side by side in this process."""
    with ExitStack() as stack:
        runs: dict[str, Callable[[], object]] = {}
        for side, subject in zip("ab", pair, strict=True):
            opened = open_variant(subject.folder, subject.variant, inputs, subject.outputs)
            program = stack.enter_context(closing(opened))
            session = stack.enter_context(closing(program.session()))
            runs[side] = lambda session=session: session.run(feed)  # type: ignore[misc]  # bound now
        timings = interleave(runs, rounds=rounds, seed=seed)
    return timings["a"], timings["b"]


@dataclass(frozen=True)
class _Judged:
    """What the metric says of both."""

    scores: tuple[Score | None, Score | None]
    loss: Loss | None
    limits: tuple[Limit, ...]


def _judge(
    outputs: tuple[dict[str, Array], ...],
    given: EvaluationData,
    rows: int,
    metric: str | None,
    max_drop: float | None,
    same: bool,
) -> _Judged:
    """Score both, and test the drop sample by sample."""
    if not given.given:
        return _Judged((None, None), None, ())
    labels = given.labels[:rows] if given.labels is not None else None
    classes = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"
    judge = get_metric(metric or ("top1" if classes else "agreement"))
    first, second = outputs
    scores = judge.score(first, labels, first), judge.score(second, labels, first)
    found = judge.drop(first, second, labels, 0.0 if max_drop is None else max_drop)
    loss = Loss(found.drop, found.lower, found.upper)
    if max_drop is None:
        return _Judged(scores, loss, ())
    told = f"B loses {loss.value:.4g} of {judge.name} (bound {loss.upper:.4g})"
    if same:  # rounding only: no number of samples is needed to show that
        return _Judged(scores, loss, (Limit("max-drop", max_drop, "ok", f"{told}: rounding"),))
    return _Judged(scores, loss, (_limit("max-drop", max_drop, found, told),))


def _slowdown(ratio: Ratio, allowed: float | None) -> tuple[Limit, ...]:
    """Return what the limit on the slow-down says: of time per run, as a share."""
    if allowed is None:
        return ()
    value, upper, lower = (1.0 / max(r, 1e-9) - 1.0 for r in (ratio.value, ratio.low, ratio.high))
    found = verdict(value, lower, upper, allowed)
    told = f"B takes {abs(value):.1%} {'longer' if value > 0 else 'less'} (bound {upper:+.1%})"
    return (_limit("max-slowdown", allowed, found, told),)


def _limit(option: str, limit: float, found: DropVerdict, told: str) -> Limit:
    more = {
        "ok": "within",
        "undecided": "this cannot tell whether it is within",
        "fails": "more than",
    }[found.state]
    return Limit(option, limit, found.state, f"{told}; {more} the allowed {limit:g}")


def _side(subject: Subject, checked: Checked, timing: Timing, score: Score | None) -> Side:
    return Side(
        name=subject.name,
        runtime=subject.variant.runtime,
        precision=subject.variant.precision,
        placement=checked.placement,
        digest=subject.digest,
        size_bytes=subject.variant.size,
        memory_bytes=checked.memory_bytes,
        threads=subject.variant.threads,
        latency_ms=Latency(**timing.latency_ms()),
        metric=score,
    )


def _warnings(pair: tuple[Subject, Subject], given: EvaluationData) -> tuple[str, ...]:
    notes = [note for subject in pair for note in subject.notes]
    if given.given:
        notes += given.notes
    else:
        notes.append(
            "no evaluation data: both ran on random samples, which say nothing of accuracy; "
            "give --data"
        )
    a, b = (subject.variant.threads for subject in pair)
    if a != b:
        notes.append(f"A runs with {a} threads, B with {b}: give --threads to compare at one")
    return tuple(dict.fromkeys(notes))
