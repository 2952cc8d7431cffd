"""What a conversion returns: the values behind ``edgeml convert --json``.

The names of the fields are a contract: other people's scripts read them.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from edgeml.manifest import Score

#: SQNR is cut here: outputs that are the same bit for bit would be at infinity.
SQNR_CEILING = 150.0


class Standing(StrEnum):
    """What the gates said about a candidate; ``skipped`` was never judged, its reason says why."""

    PASSED = "passed"
    UNDECIDED = "undecided"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"


class Latency(msgspec.Struct, frozen=True):
    """Percentiles of one run's wall time in milliseconds."""

    p50: float
    p95: float
    p99: float


class Speedup(msgspec.Struct, frozen=True):
    """How many times as fast as the baseline.

    Attributes:
        value: Ratio of the latencies, baseline over this.
        interval: Two-sided 95 % interval of it.
    """

    value: float
    interval: tuple[float, float]


class Drop(msgspec.Struct, frozen=True):
    """How much worse than the source, on the same samples.

    Attributes:
        value: Estimate; absolute for scores in [0, 1], relative for errors.
        upper: One-sided 95 % upper bound.
        limit: What ``--max-drop`` allows.
    """

    value: float
    upper: float
    limit: float


class Int8Coverage(msgspec.Struct, frozen=True):
    """How much of a file its runtime computes in 8 bits, without running it.

    Attributes:
        weighted: Products with stored weights: convolutions, matrix products.
        int8: How many of them are computed in 8 bits.
        converts: Conversions between 8 bits and float that are left.
    """

    weighted: int
    int8: int
    converts: int


class Candidate(msgspec.Struct, frozen=True):
    """One way to run the model, and what is known about it.

    Attributes:
        runtime: Name of the runtime.
        precision: ``fp32``, ``bf16`` or ``int8``.
        recipe: Name of the recipe that made it.
        files: Its files, relative to the folder that ``edgeml unpack`` makes; empty when the
            bundle does not hold it.
        entry: The file that the runtime opens; empty when the bundle does not hold it.
        size_bytes: Total size of its files; 0 when it could not be built.
        threads: Threads of every run here.
        batch: Batch of every run here.
        isa: Instruction sets of the machine that it was measured on.
        latency_ms: None when it was not measured.
        metric: Its score on the test data; None when there is none.
        sqnr_db: Signal to quantisation noise against the source's outputs, the worst output; at
            most SQNR_CEILING; None when it did not run.
        evidence: How far it was verified (``edgeml.manifest.EvidenceState``).
        verdict: What the gates said.
        reason: Why, and why it won or lost.
        speedup: Against the baseline; None when it was not measured.
        drop: Against the source; None without evaluation data.
        memory_bytes: Memory that loading and running it added to a process; None when unknown.
        load_ms: From its file to the first answer, the library loaded already; None when it did
            not run here.
        pareto: Whether no other passing candidate is better in one of accuracy, latency and size
            without being worse in another.
        stage: 2 for a candidate that builds on the results of others, else 1.
        timed: Which measurement its figures are from: ``first`` (few rounds, which only sort out
            who cannot win), ``final``, or empty.
        energy_mj: Energy of a run in millijoules, the whole processor's; None without a counter.
        saving: How many times less energy than the baseline; None without a counter.
        coverage: What was seen before timing; None where nothing was looked at.
    """

    runtime: str
    precision: str
    recipe: str
    files: tuple[str, ...] = ()
    entry: str = ""
    size_bytes: int = 0
    threads: int = 1
    batch: int = 1
    isa: tuple[str, ...] = ()
    latency_ms: Latency | None = None
    metric: Score | None = None
    sqnr_db: float | None = None
    evidence: str = ""
    verdict: Standing = Standing.PASSED
    reason: str = ""
    speedup: Speedup | None = None
    drop: Drop | None = None
    memory_bytes: int | None = None
    pareto: bool = False
    load_ms: float | None = None
    stage: int = 1
    timed: str = ""
    energy_mj: float | None = None
    saving: Speedup | None = None
    coverage: Int8Coverage | None = None

    @property
    def id(self) -> str:
        """``<runtime>.<recipe>``, unique among the candidates of one profile."""
        return f"{self.runtime}.{self.recipe}"


class Timed(msgspec.Struct, frozen=True):
    """A candidate with another number of threads or samples in a run.

    Attributes:
        id: ``<runtime>.<recipe>``.
        latency_ms: Of it.
        speedup: Against the baseline with as many, in the same run.
    """

    id: str
    latency_ms: Latency
    speedup: Speedup


class AtThreads(msgspec.Struct, frozen=True):
    """The winner with another number of threads or samples in a run.

    Attributes:
        threads: How many.
        latency_ms: Of the winner.
        speedup: Against the baseline with as many threads, in the same run.
        batch: Samples in a run.
        best: Id of the fastest there that is surely faster than the baseline, or the baseline's.
        candidates: All that were measured so.
    """

    threads: int
    latency_ms: Latency
    speedup: Speedup
    batch: int = 1
    best: str = ""
    candidates: tuple[Timed, ...] = ()


class Layer(msgspec.Struct, frozen=True):
    """One operator of the source, and what became of it in the winner.

    Attributes:
        name: Of the node in the source.
        op: Its operator.
        precision: ``int8`` or ``float``: how the winner's runtime computes it.
        weighted: Whether it is a product with stored weights.
        sqnr_db: Of its output in the winner, with what earlier layers add; None when the winner has
            no tensor that stands for it.
        source_us: Microseconds in the source, on onnxruntime; None when it is fused away.
        latency_us: Microseconds in the winner, conversions around it included; None likewise.
        share: Of the winner's time.
    """

    name: str
    op: str
    precision: str
    weighted: bool
    sqnr_db: float | None
    source_us: float | None
    latency_us: float | None
    share: float


class ProfileResult(msgspec.Struct, frozen=True):
    """What was found for one hardware profile.

    Attributes:
        profile: Name of the profile.
        host: One line that names the machine which the figures are about.
        baseline: onnxruntime fp32 of the source: same threads, batch 1, same run.
        winner: What the bundle's first variant of this profile is.
        speedup: Of the winner against the baseline; None when nothing was measured.
        candidates: All that were tried, the baseline too.
        warnings: What a reader must know before relying on the figures.
        seconds: How long the search took.
        reason: Why the winner won, in one sentence.
        other_threads: The winner with the profile's other numbers of threads, as far as this
            machine has cores, and of samples in a run; and who is best there.
        confirmed: Gain of the winner, measured again in new processes; None when it was not.
        layers: Of the winner, when it computes in 8 bits; empty when nothing is known of them.
    """

    profile: str
    host: str
    baseline: Candidate
    winner: Candidate
    speedup: Speedup | None
    candidates: tuple[Candidate, ...]
    warnings: tuple[str, ...]
    seconds: float
    reason: str = ""
    other_threads: tuple[AtThreads, ...] = ()
    confirmed: Speedup | None = None
    layers: tuple[Layer, ...] = ()


class ConvertResult(msgspec.Struct, frozen=True):
    """What ``edgeml.convert`` returns, and ``edgeml convert --json`` prints.

    Attributes:
        bundle: Path of the bundle.
        results: One per profile, in the order that was asked for.
        digest: The bundle's digest.
        name: Name of the model.
        version: Version of the bundle.
    """

    bundle: str
    results: tuple[ProfileResult, ...]
    digest: str = ""
    name: str = ""
    version: str = ""
