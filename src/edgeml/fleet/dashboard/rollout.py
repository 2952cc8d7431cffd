"""One rollout: its waves with what the gates said, the evidence, the devices, the decisions."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import msgspec

from edgeml.fleet.dashboard import charts, look
from edgeml.fleet.dashboard.frame import heading
from edgeml.fleet.dashboard.rollouts import told, wave_bar
from edgeml.fleet.rollout import ACTIVE
from edgeml.fleet.views import PartRow, RolloutDetail
from edgeml.gates import AnyGate, Figure, Verdict

_END = frozenset({"done", "rolling_back", "rolled_back", "aborted"})
_NAMES = {
    "accuracy": "accuracy, canary",
    "accuracy_control": "accuracy, the others",
    "drop": "drop of accuracy",
    "errors": "failed requests, canary",
    "errors_control": "failed requests, the others",
    "lost": "devices lost",
    "degraded": "devices degraded",
    "failed": "installs failed",
}
_GATES = {"install": "Install", "health": "Health", "labels": "Labels"}


def judged(found: RolloutDetail) -> list[tuple[Verdict, ...]]:
    """Return the verdicts that ended each wave; for the current wave those of now.

    A decision that releases a wave carries the verdicts that ended the wave before it.
    """
    waves: list[tuple[Verdict, ...]] = []
    for decision in found.decisions:
        released = decision.kind == "running" and decision.message.startswith("wave ")
        if waves and decision.verdicts:
            waves[-1] = decision.verdicts
        if released:
            waves.append(())
    going = found.row.state in ACTIVE and found.row.state != "rolling_back"
    if waves and going and found.verdicts:
        waves[-1] = found.verdicts
    return waves


def head(found: RolloutDetail) -> str:
    """Return the heading, and why it stands where it stands."""
    row = found.row
    title = f"{row.ref.model} {row.ref.version}"
    kind = {"rolled_back": "bad", "rolling_back": "bad", "aborted": "warn", "paused": "warn",
            "done": "ok"}.get(row.state, "busy")  # fmt: skip
    shape = look.STATES.get(row.state, ("", "info", ""))[1]
    facts = (
        f"<span>rollout <b>{escape(row.id)}</b></span>"
        f"<span>slot <b>{escape(row.slot)}</b></span>"
        f"<span>to <b>{escape(row.selector)}</b></span>"
        f"<span>strategy <b>{escape(row.strategy)}</b></span>"
        f"<span>by <b>{escape(row.author or look.NONE)}</b>, {look.ago(row.created)}</span>"
    )
    word = look.STATES.get(row.state, ("", "", row.state))[2]
    return (
        heading(title, look.state(row.state), ("/rollouts", "Rollouts"))
        + f'<p class="sub">{facts}</p><p class="callout {kind}" data-state="{row.state}">'
        f"{look.icon(shape)}<span><b>{escape(word.capitalize())}</b> "
        f"{escape(row.reason)}</span>{look.ago(row.since)}</p>"
    )


def timeline(found: RolloutDetail) -> str:
    """Return the waves, each with what every gate said of it."""
    verdicts = judged(found)
    row = found.row
    steps = []
    for index, wave in enumerate(row.waves):
        said = verdicts[index] if index < len(verdicts) else ()
        state = _wave_state(found, index)
        chips = "".join(_chip(gate, said) for gate in found.gates)
        size = look.count(wave.devices, "device")
        back = sum(p.restored for p in found.devices if p.wave == index + 1)
        steps.append(
            f'<li class="step {state}"><div class="line"><b>Wave {index + 1}</b>'
            f'<span class="mute">{size}</span><span class="end">{_WAVE[state]}</span></div>'
            f'{wave_bar(wave, back)}<p class="mute">{told(wave, back)}</p>'
            f'<ul class="gates">{chips}</ul></li>'
        )
    return look.card("Waves", f'<ol class="steps">{"".join(steps)}</ol>')


_WAVE = {
    "passed": look.state("ok", "passed"),
    "current": look.state("running", "now"),
    "stopped": look.state("failed", "stopped here"),
    "next": look.state("waiting", "not begun"),
}


def _wave_state(found: RolloutDetail, index: int) -> str:
    row = found.row
    current = row.wave - 1
    if index > current:
        return "next"
    if index < current or row.state == "done":
        return "passed"
    return "stopped" if row.state in _END else "current"


def _chip(gate: AnyGate, said: Sequence[Verdict]) -> str:
    name = escape(_GATES.get(gate.name, gate.name))
    verdict = next((v for v in said if v.gate == gate.name), None)
    if verdict is None:
        return f"<li>{look.state('waiting', 'not judged')}<b>{name}</b></li>"
    first = escape(verdict.reasons[0]) if verdict.reasons else ""
    return f"<li>{look.state(verdict.state)}<b>{name}</b><span class='why'>{first}</span></li>"


def evidence(found: RolloutDetail) -> str:
    """Return the figures behind the newest verdicts, with reasons and limits."""
    waves = judged(found)
    index = max((i for i, said in enumerate(waves) if said), default=-1)
    if index < 0:
        return look.card("Evidence", look.empty("No gate has judged yet."))
    parts = []
    for verdict in waves[index]:
        gate = next((g for g in found.gates if g.name == verdict.gate), None)
        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
        parts.append(
            f'<article class="gate {verdict.state}"><div class="line">{look.state(verdict.state)}'
            f"<b>{escape(_GATES.get(verdict.gate, verdict.gate))} gate</b>"
            f'<span class="mute end">{_limits(gate)}</span></div>'
            f'<ul class="reasons">{reasons}</ul>{_figures(verdict)}</article>'
        )
    aside = f'<span class="mute">wave {index + 1}; bars are 95 % intervals</span>'
    return look.card("Evidence", "".join(parts), aside)


def _limits(gate: AnyGate | None) -> str:
    """Return what a gate allows, in words."""
    if gate is None:
        return ""
    values = msgspec.to_builtins(gate)
    told = []
    for name, value in values.items():
        if name in {"type", "name"}:
            continue
        if name.startswith("max_") and isinstance(value, float):
            told.append(f"{name[4:]} at most {100 * value:g} %")
        elif name in {"minimum", "min_requests"}:
            told.append(f"at least {value} {'requests' if name == 'min_requests' else 'seen'}")
    return escape(", ".join(told))


def _figures(verdict: Verdict) -> str:
    if not verdict.evidence:
        return ""
    rows = []
    for name, figure in verdict.evidence.items():
        kind = "control" if name.endswith("_control") else verdict.state
        rows.append((
            escape(_NAMES.get(name, name)), look.percent(figure.value) if figure.n else look.NONE,
            charts.interval(figure.value, figure.interval, _axis(figure), kind)
            if figure.n else "", _bounds(figure), f"n = {figure.n}",
        ))  # fmt: skip
    return (
        '<div class="figures">' + look.table(("", "", "", "", ""), rows, right=(1, 3, 4)) + "</div>"
    )


def _axis(figure: Figure) -> tuple[float, float]:
    low = figure.interval[0] if figure.interval else figure.value
    return (-1.0, 1.0) if min(low, figure.value) < 0 else (0.0, 1.0)


def _bounds(figure: Figure) -> str:
    if figure.interval is None or not figure.n:
        return ""
    low, high = (look.percent(v).removesuffix(" %") for v in figure.interval)
    return f'<span class="mute">{low} to {high} %</span>'


def parts(found: RolloutDetail) -> str:
    """Return every device's part."""
    rows = [
        (
            look.link(f"/devices/{p.device}", p.device),
            str(p.wave),
            look.state(p.state) + (look.state("restored", "back again") if p.restored else ""),
            "" if p.online else look.state(p.presence),
            escape(p.before or ("-" if p.state == "waiting" else "nothing")),
            f'<span class="why">{escape(p.detail)}</span>',
        )
        for p in _sorted(found.devices)
    ]
    heads = ("Device", "Wave", "State", "", "Had before", "Reason")
    limit = f", first {_SHOWN}" if len(found.devices) > _SHOWN else ""
    aside = f'<span class="mute">{look.count(len(found.devices), "device")}{limit}</span>'
    return look.card("Devices", look.table(heads, rows[:_SHOWN], right=(1,)), aside)


_SHOWN = 200
_ORDER = {"failed": 0, "trying": 1, "sent": 2, "committed": 3, "waiting": 4}


def _sorted(rows: Sequence[PartRow]) -> list[PartRow]:
    return sorted(rows, key=lambda p: (p.wave, _ORDER.get(p.state, 5), p.device))


def decisions(found: RolloutDetail) -> str:
    """Return what was decided, newest first."""
    rows = []
    for decision in reversed(found.decisions):
        colour, shape, word = look.STATES.get(decision.kind, ("off", "info", decision.kind))
        if decision.kind == "gates":
            colour, shape, word = "off", "info", "gates"
        rows.append(
            f'<li class="event"><span class="st {colour}">{look.icon(shape)}</span><div><p>'
            f"<b>{escape(word)}</b> {escape(decision.message)}</p></div>"
            f"{look.ago(decision.at)}</li>"
        )
    return look.card("Decisions", f'<ul class="rows">{"".join(rows)}</ul>')
