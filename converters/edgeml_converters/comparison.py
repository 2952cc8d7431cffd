"""What a comparison returns: the values behind ``edgeml compare --json``.

The names of the fields are a contract: other people's scripts read them.
"""

from __future__ import annotations

import msgspec

from edgeml.manifest import Score
from edgeml_converters.results import Latency, Speedup


class Side(msgspec.Struct, frozen=True):
    """One of the two.

    Attributes:
        name: As the user wrote it, with the variant or runtime that was taken.
        runtime: Name of the runtime.
        precision: Of the variant; ``as it is`` for a model file.
        placement: The device or provider that really ran it.
        digest: Of the bundle, or of the model's files.
        size_bytes: Total size of its files.
        memory_bytes: What loading and running it added to a process of its own, at the peak.
        threads: Of every run here.
        latency_ms: Percentiles of one run.
        metric: Its score; None without data.
    """

    name: str
    runtime: str
    precision: str
    placement: str
    digest: str
    size_bytes: int
    memory_bytes: int
    threads: int
    latency_ms: Latency
    metric: Score | None = None


class Loss(msgspec.Struct, frozen=True):
    """How much worse B is than A.

    Attributes:
        value: Estimate; negative when B is better.
        lower: One-sided 95 % lower bound.
        upper: One-sided 95 % upper bound.
    """

    value: float
    lower: float
    upper: float


class Limit(msgspec.Struct, frozen=True):
    """What a limit said.

    Attributes:
        option: ``max-drop`` or ``max-slowdown``.
        limit: What was allowed.
        state: ``ok``, ``undecided`` (too few samples or rounds to tell) or ``fails``.
        reason: Why, in one sentence.
    """

    option: str
    limit: float
    state: str
    reason: str


class Comparison(msgspec.Struct, frozen=True):
    """What ``edgeml compare --json`` prints.

    Attributes:
        a: What is compared with.
        b: What is compared.
        host: One line that names the machine which the latencies are about.
        samples: Test samples.
        data: Digest of the evaluation data; empty for random samples.
        speedup: How many times as fast B is as A, in the same rounds.
        clock: The time that was compared, ``wall`` or ``cpu``.
        drop: How much B loses of the metric; None without data.
        sqnr_db: A's outputs against the difference, the worst output.
        agreement: How far B gives what A gives.
        limits: What the limits said that were given.
        warnings: What a reader must know.
    """

    a: Side
    b: Side
    host: str
    samples: int
    data: str
    speedup: Speedup
    clock: str
    drop: Loss | None
    sqnr_db: float
    agreement: Score
    limits: tuple[Limit, ...]
    warnings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether no limit failed."""
        return all(limit.state != "fails" for limit in self.limits)
