"""Overview: the fleet at a glance, what happens now, what needs people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from edgeml.fleet.dashboard import charts, look
from edgeml.fleet.dashboard.devices import reason_of
from edgeml.fleet.dashboard.frame import Board, heading
from edgeml.fleet.dashboard.live import Snapshot
from edgeml.fleet.dashboard.rollouts import wave_bars
from edgeml.fleet.rollout import ACTIVE
from edgeml.fleet.views import DeviceRow, EventRow

_SHOWN = 8
_EVENTS = 14


def build(board: Board) -> None:
    """Add the panels."""
    board.panel(tiles)
    board.columns((("wide", (now, versions, load)), ("narrow", (attention, latest))))


def tiles(seen: Snapshot) -> str:
    """Return the counts."""
    devices = seen.devices
    online = sum(d.online for d in devices)
    health = Counter(d.health for d in devices if d.online)
    going = [r for r in seen.rollouts if r.state in ACTIVE]
    stats = seen.stats.values()
    requests, errors = sum(s.requests for s in stats), sum(s.errors for s in stats)
    unwell = health["degraded"] + health["failing"]
    share = errors / (requests + errors) if requests + errors else None
    bar = charts.stack(
        (
            ("ok", online - unwell - health["unknown"]),
            ("warn", health["degraded"]),
            ("bad", health["failing"]),
            ("off", len(devices) - online + health["unknown"]),
        )
    )
    spark = charts.spark([rate for _, rate in seen.curve], "requests per second, 15 minutes")
    offline = sum(d.presence == "offline" for d in devices)
    unknown = len(devices) - online - offline
    cells = (
        _tile("Devices online", f"{online}<small>of {len(devices)}</small>", bar, "/devices"),
        _tile(
            "Offline",
            str(offline),
            f"{unknown} unknown" if unknown else "not connected now",
            kind="off" if offline else "",
        ),
        _tile(
            "Degraded",
            str(unwell),
            f"{health['failing']} failing",
            kind=("bad" if health["failing"] else "warn") if unwell else "",
        ),
        _tile("Rollouts going", str(len(going)), _last(seen), "/rollouts"),
        _tile("Requests / s", look.number(sum(s.rate for s in stats)), spark),
        _tile(
            "Requests failed",
            look.percent(share),
            f"{look.number(errors)} in the last minute",
            kind="bad" if share and share > 0.02 else "",
        ),
    )
    return f'{heading("Overview")}<div class="tiles">{"".join(cells)}</div>'


def _tile(name: str, value: str, below: str, href: str = "", kind: str = "") -> str:
    tag, to = ("a", f' href="{href}"') if href else ("div", "")
    return (
        f'<{tag} class="tile {kind}"{to}><span class="name">{name}</span>'
        f'<span class="value">{value}</span><span class="below">{below}</span></{tag}>'
    )


def _last(seen: Snapshot) -> str:
    if not seen.rollouts:
        return "none so far"
    last = seen.rollouts[0]
    return f"last: {look.state(last.state)}"


def now(seen: Snapshot) -> str:
    """Return the rollouts that are on their way, or how the last one ended."""
    going = [r for r in seen.rollouts if r.state in ACTIVE]
    if not seen.devices:
        return look.card("Now", look.empty(
            "No device yet. Make one known, and copy the file to it:",
            "edgeml fleet enrol cam-1 -o cam-1.json",
        ))  # fmt: skip
    if not seen.rollouts:
        command = "edgeml fleet deploy MODEL@VERSION --to all"
        if not seen.versions:
            command = f"edgeml registry push MODEL-1.0.0.edgeml\n{command}"
        return look.card("Now", look.empty("Nothing was rolled out yet:", command))
    title = "Now" if going else "Last rollout"
    items = []
    for row in going or seen.rollouts[:1]:
        items.append(
            f'<a class="going" href="/rollouts/{row.id}"><div class="line">'
            f"{look.version(row.ref.model, row.ref.version)}{look.state(row.state)}"
            f'<span class="mute end">{look.ago(row.since)}</span></div>'
            f'<p class="why">{escape(row.reason)}</p>{wave_bars(row)}</a>'
        )
    return look.card(title, "".join(items), look.link("/rollouts", "all rollouts"))


def versions(seen: Snapshot) -> str:
    """Return what runs where, and how it does."""
    running = Counter((s.model, s.version) for d in seen.devices for s in d.slots if s.version)
    banned = {(v.model, v.version) for v in seen.versions if v.quarantined}
    if not running:
        return look.card("Versions running", look.empty("No device serves a model yet."))
    rows = []
    for key in sorted(running, key=lambda k: (k[0], -running[k])):
        stats = seen.versions_stats.get(key)
        share = 100 * running[key] / max(1, len(seen.devices))
        bar = f'<div class="bar"><i style="width:{share:.1f}%"></i></div>'
        failed = stats.errors / max(1, stats.requests + stats.errors) if stats else None
        right = stats.correct / stats.labelled if stats and stats.labelled else None
        labels = (
            f' <span class="mute">of {stats.labelled}</span>' if stats and stats.labelled else ""
        )
        mark = look.state("quarantined") if key in banned else ""
        rows.append((
            f"{look.version(*key)} {mark}", bar, str(running[key]),
            look.number(stats.rate if stats else None), look.percent(failed),
            look.number(stats.p50_ms if stats else None),
            look.number(stats.p95_ms if stats else None), look.percent(right) + labels,
        ))  # fmt: skip
    heads = ("Version", "", "Devices", "Req/s", "Failed", "p50 ms", "p95 ms", "Accuracy, by labels")
    body = look.table(heads, rows, right=(2, 3, 4, 5, 6, 7))
    return look.card("Versions running", body, '<span class="mute">last 5 minutes</span>')


def load(seen: Snapshot) -> str:
    """Return the requests of the last quarter of an hour; nothing when there are none."""
    drawn = charts.lines({"whole fleet": seen.curve}, "requests per second", "requests per second")
    return look.card("Requests", drawn) if drawn else ""


def attention(seen: Snapshot) -> str:
    """Return the devices that people should look at."""
    bad = sorted((d for d in seen.devices if _rank(d) < 3), key=lambda d: (_rank(d), d.device))
    if not bad:
        told = "Every device is online and well." if seen.devices else "No device yet."
        return look.card("Needs attention", f'<p class="calm">{look.icon("ok")}{told}</p>')
    rows = [
        f'<li><a href="/devices/{escape(d.device)}">{escape(d.device)}</a>'
        f"{look.state(d.health if d.online else d.presence)}"
        f'<span class="why">{_why(d)}</span></li>'
        for d in bad[:_SHOWN]
    ]
    more = f'<li class="mute">and {len(bad) - _SHOWN} more</li>' if len(bad) > _SHOWN else ""
    return look.card(
        "Needs attention", f'<ul class="rows">{"".join(rows)}{more}</ul>', str(len(bad))
    )


def _rank(device: DeviceRow) -> int:
    if not device.online:
        return 2
    return {"failing": 0, "degraded": 1}.get(device.health, 3)


def _why(device: DeviceRow) -> str:
    if not device.online:
        return "seen " + look.ago(device.seen) if device.seen else "never seen: not installed yet?"
    return escape(reason_of(device) or "no reason given")


def latest(seen: Snapshot) -> str:
    """Return the newest events."""
    if not seen.events:
        return look.card("Latest events", look.empty("Nothing has happened yet."))
    return look.card("Latest events", event_list(seen.events[:_EVENTS]))


def event_list(events: Sequence[EventRow], with_device: bool = True) -> str:
    """Return events as a list."""
    rows = []
    for event in events:
        colour, shape, word = look.STATES.get(event.severity, ("off", "info", event.severity))
        who = ""
        if with_device and event.device:
            who = look.link(f"/devices/{event.device}", event.device) + " "
        kind = "" if event.message.startswith(event.kind) else f"<b>{escape(event.kind)}</b> "
        rows.append(
            f'<li class="event"><span class="st {colour}" title="{escape(word)}">'
            f"{look.icon(shape)}</span><div><p>{who}{kind}"
            f"{escape(event.message)}</p></div>{look.ago(event.at)}</li>"
        )
    return f'<ul class="rows">{"".join(rows)}</ul>'
