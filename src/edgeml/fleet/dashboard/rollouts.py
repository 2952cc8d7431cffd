"""Rollouts: the list, and the bars that show how far a rollout is."""

from __future__ import annotations

from html import escape

from edgeml.fleet.dashboard import charts, look
from edgeml.fleet.dashboard.frame import heading
from edgeml.fleet.dashboard.live import Snapshot
from edgeml.fleet.views import RolloutRow, WaveRow


def draw(seen: Snapshot) -> str:
    """Return all rollouts, newest first."""
    if not seen.rollouts:
        told = look.empty(
            "Nothing was rolled out yet:", "edgeml fleet deploy MODEL@VERSION --to all --plan"
        )
        return heading("Rollouts") + look.card("", told)
    rows = [
        (
            look.link(f"/rollouts/{r.id}", r.id, "id"),
            look.version(r.ref.model, r.ref.version),
            look.state(r.state),
            wave_bars(r),
            f'<span class="why">{escape(r.reason)}</span>',
            f"<code>{escape(r.selector)}</code>",
            f"{look.ago(r.created)} <span class='mute'>{escape(r.author)}</span>",
        )
        for r in seen.rollouts
    ]
    heads = ("Rollout", "Version", "State", "Waves", "Why", "Devices", "Started")
    return heading("Rollouts") + look.card("", look.table(heads, rows))


def wave_bars(row: RolloutRow) -> str:
    """Return one bar per wave, as wide as the wave has devices."""
    gone = row.state == "rolled_back"  # what was committed is on its own version again
    bars = "".join(
        f'<div class="wave" style="flex-grow:{wave.devices}" '
        f'title="wave {index + 1}: {told(wave)}">'
        f"{wave_bar(wave, wave.committed if gone else 0)}</div>"
        for index, wave in enumerate(row.waves)
    )
    return f'<div class="waves">{bars}</div>'


def wave_bar(wave: WaveRow, back: int = 0) -> str:
    """Return the devices of a wave by state; ``back`` of the committed ones went back again."""
    back = min(back, wave.committed)
    return charts.stack(
        (
            ("ok", wave.committed - back),
            ("warn", back),
            ("bad", wave.failed),
            ("busy", wave.trying),
            ("told", wave.sent),
            ("off", wave.waiting),
        )
    )


def told(wave: WaveRow, back: int = 0) -> str:
    """Return a wave's counts in words; ``back`` devices went back again."""
    counts = (
        (wave.committed, "committed"),
        (wave.failed, "failed"),
        (wave.trying, "installing"),
        (wave.sent, "told"),
        (wave.waiting, "waiting"),
        (back, "back on their own version"),
    )
    return ", ".join(f"{n} {word}" for n, word in counts if n) or "no device"
