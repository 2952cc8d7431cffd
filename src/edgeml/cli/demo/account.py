"""What the demo says while it goes, and what it writes at the end."""

from __future__ import annotations

import time

import click
import msgspec


class ConvertSummary(msgspec.Struct, frozen=True):
    """One winner: of one version, for one profile."""

    version: str
    profile: str
    runtime: str
    recipe: str
    precision: str
    p50_ms: float
    speedup: float
    size_bytes: int
    metric: float


class RolloutSummary(msgspec.Struct, frozen=True):
    """How one rollout ended: ``done`` or ``rolled_back``, why, and after how many seconds."""

    version: str
    outcome: str
    reason: str
    seconds: float


class RequestSummary(msgspec.Struct, frozen=True):
    """What became of the requests of the demo's traffic."""

    sent: int
    answered: int
    wrong_shape: int
    lost: int


class DeviceSummary(msgspec.Struct, frozen=True):
    """Which version a device serves at the end, and on what."""

    id: str
    version: str
    variant: str


class Summary(msgspec.Struct, frozen=True):
    """The file ``summary.json``."""

    convert: tuple[ConvertSummary, ...]
    rollouts: tuple[RolloutSummary, ...]
    requests: RequestSummary
    accuracy: dict[str, float]
    devices: tuple[DeviceSummary, ...]
    broker: str
    seconds: float


class Account:
    """Writes the story for a person, line by line."""

    def __init__(self, quiet: bool) -> None:
        """Say nothing on stdout when ``quiet`` (the summary goes there instead)."""
        self.quiet = quiet
        self.began = time.monotonic()
        self.chapters = 0

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self.chapters += 1
        elapsed = f"{time.monotonic() - self.began:5.1f} s"
        self._say("")
        self._say(
            click.style(f" {self.chapters} ", bold=True, reverse=True)
            + " "
            + click.style(title, bold=True)
            + click.style(f"  ({elapsed})", dim=True)
        )

    def line(self, text: str, mark: str = "·", color: str | None = None) -> None:
        """Say one thing."""
        self._say(f"   {click.style(mark, fg=color, bold=bool(color))} {text}")

    def good(self, text: str) -> None:
        """Say that something was checked and holds."""
        self.line(text, "✓", "green")

    def bad(self, text: str) -> None:
        """Say that something was stopped."""
        self.line(text, "✗", "red")

    def _say(self, text: str) -> None:
        click.echo(text, err=self.quiet)
