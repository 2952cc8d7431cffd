"""One device: machine, slots, traffic, accuracy of its versions, history."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from edgeml.fleet.dashboard import charts, look
from edgeml.fleet.dashboard.devices import reason_of
from edgeml.fleet.dashboard.frame import heading
from edgeml.fleet.dashboard.overview import event_list
from edgeml.fleet.dashboard.traffic import Point
from edgeml.fleet.views import DeviceDetail, SlotRow, TrafficRow
from edgeml.stats.proportion import wilson


def head(found: DeviceDetail) -> str:
    """Return the heading, and in one line why it is not well."""
    row = found.row
    aside = look.state(row.presence) + look.state(row.health)
    why = reason_of(row)
    kind = "bad" if row.health == "failing" else "warn"
    said = f'<p class="callout {kind}">{look.icon("warn")}{escape(why)}</p>' if why else ""
    if not row.seen:
        said = look.card("", look.empty(
            "Known, but never seen. On the device, type:",
            f"edgeml-agent enrol {row.device}.json --state /var/lib/edgeml",
        ))  # fmt: skip
    return heading(row.device, aside, ("/devices", "Devices")) + said


def machine(found: DeviceDetail) -> str:
    """Return who it is."""
    row, facts = found.row, found.facts
    plain = [
        (name.removesuffix("_bytes").replace("_", " "), escape(_fact(value)))
        for name, value in facts.items()
        if value not in (None, "", [], {}, 0)
    ]
    tags = " ".join(f'<span class="tag">{escape(f"{k}={v}")}</span>'
                    for k, v in sorted(row.tags.items()))  # fmt: skip
    order = f"{row.generation}"
    if row.wanted > row.generation:
        order += f' <span class="busy">→ {row.wanted}</span>'
    clock = look.state("warning", "not trusted") if row.clock == "untrusted" else row.clock
    pairs = [
        ("profile", escape(row.profile or look.NONE)),
        ("tags", tags or look.NONE),
        ("agent", escape(row.agent_version or look.NONE)),
        ("last report", look.ago(row.seen)),
        ("in this state", look.ago(found.state_since, "")),
        ("enrolled", look.ago(found.enrolled)),
        ("boots seen", str(found.boots)),
        ("generation", order),
        ("clock", clock or look.NONE),
        *plain,
    ]
    return look.card("Machine", look.facts(pairs))


def _fact(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_fact(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_fact(v) for v in value)
    if isinstance(value, int) and value > 1_000_000:
        return look.size(value)
    return str(value)


def slots(found: DeviceDetail) -> str:
    """Return what its slots hold, should hold, and go back to."""
    if not found.row.slots:
        said = look.empty(
            "It holds no model yet:",
            f"edgeml fleet deploy MODEL@VERSION --to device={found.row.device}",
        )
        return look.card("Slots", said)
    return look.card("Slots", "".join(_slot(s) for s in found.row.slots))


def _slot(slot: SlotRow) -> str:
    digest = f'<code title="{escape(slot.digest)}">{escape(slot.digest[7:19])}</code>'
    wanted = escape(slot.desired or "nothing asked for")
    if slot.desired and slot.desired != slot.version:
        wanted = f'<span class="busy">{wanted}</span>'
    progress = ""
    if slot.progress[1]:
        share = 100 * slot.progress[0] / slot.progress[1]
        told = f"{look.size(slot.progress[0])} of {look.size(slot.progress[1])}"
        progress = f' <span class="bar"><i style="width:{share:.0f}%"></i></span> {told}'
    pairs = [
        ("active", look.version(slot.model, slot.version) + (digest if slot.digest else "")),
        ("should run", wanted),
        ("goes back to", escape(slot.last_verified or look.NONE)),
        ("updater", escape(slot.phase or look.NONE) + progress),
        ("last attempt", escape(slot.outcome.replace("_", " ") or look.NONE)),
        ("variant", escape(slot.variant or look.NONE)),
        ("placement", escape(slot.placement or look.NONE)),
    ]
    if slot.degraded:
        pairs.append(("degraded", look.state("degraded", slot.degraded)))
    if slot.detail:
        pairs.append(("reason", escape(slot.detail)))
    return f"<h3>{escape(slot.slot)}</h3>{look.facts(pairs)}"


def latency(points: Sequence[Point]) -> str:
    """Return latency and rate over the last quarter of an hour."""
    p50 = [(p.at, p.p50_ms) for p in points if p.p50_ms is not None]
    p95 = [(p.at, p.p95_ms) for p in points if p.p95_ms is not None]
    drawn = charts.lines({"p50": p50, "p95": p95}, "ms", "latency of the last 15 minutes")
    rate = charts.lines(
        {"requests": [(p.at, p.rate) for p in points]}, "per second", "requests per second"
    )
    none = look.empty("Not enough requests yet: a curve begins with the second window.")
    return look.card("Latency", drawn or none) + (look.card("Requests", rate) if rate else "")


def accuracy(traffic: Sequence[TrafficRow]) -> str:
    """Return how often each version was right, by labels from the field."""
    rows = []
    for one in traffic:
        right, drawn = look.NONE, ""
        if one.accuracy is not None:
            right = look.percent(one.accuracy)
            bounds = wilson(round(one.accuracy * one.labelled), one.labelled)
            drawn = charts.interval(one.accuracy, bounds, (0.0, 1.0), "ok")
        rows.append((
            look.version(one.model, one.version), look.number(one.requests),
            look.percent(one.error_share), look.number(one.p50_ms), look.number(one.p99_ms),
            str(one.labelled), right, drawn,
        ))  # fmt: skip
    if not rows:
        return look.card("Versions", look.empty("No traffic in the last 5 minutes."))
    heads = (
        "Version",
        "Requests",
        "Failed",
        "p50 ms",
        "p99 ms",
        "Labels",
        "Accuracy",
        "0 to 100 %",
    )
    body = look.table(heads, rows, right=(1, 2, 3, 4, 5, 6))
    return look.card("Versions", body, '<span class="mute">last 5 minutes</span>')


def history(found: DeviceDetail) -> str:
    """Return its events."""
    if not found.events:
        return look.card("History", look.empty("Nothing has happened on this device yet."))
    return look.card("History", event_list(found.events[:40], with_device=False))
