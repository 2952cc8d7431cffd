"""Models: the versions in the registry, their variants and what is known of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from html import escape

from edgeml.fleet.dashboard import look
from edgeml.fleet.dashboard.frame import heading
from edgeml.fleet.dashboard.live import Snapshot
from edgeml.fleet.views import VariantRow, VersionDetail, VersionRow

_SHOWN = 50


def draw(seen: Snapshot, details: dict[str, VersionDetail]) -> str:
    """Return all versions, by model.

    Args:
        seen: The fleet.
        details: Digest -> what its manifest says.
    """
    if not seen.versions:
        told = look.empty("The registry is empty:", "edgeml registry push MODEL-1.0.0.edgeml")
        return heading("Models") + look.card("", told)
    serving = Counter(s.digest for d in seen.devices for s in d.slots if s.digest)
    groups: dict[str, list[VersionRow]] = defaultdict(list)
    for row in seen.versions:
        groups[row.model].append(row)
    return heading("Models") + "".join(
        look.card(
            model,
            "".join(_version(r, serving[r.digest], details.get(r.digest)) for r in rows[:_SHOWN]),
            look.count(len(rows), "version") + (f", newest {_SHOWN}" if len(rows) > _SHOWN else ""),
        )
        for model, rows in groups.items()
    )


def _version(row: VersionRow, devices: int, detail: VersionDetail | None) -> str:
    aliases = "".join(f'<span class="tag">@{escape(a)}</span>' for a in row.aliases)
    banned = ""
    if row.quarantined:
        told = f"must not run: {escape(row.quarantined)}"
        banned = f'<p class="callout bad">{look.icon("bad")}{told}</p>'
    state = look.state("quarantined") if row.quarantined else ""
    serves = look.count(devices, "device") if devices else '<span class="mute">no device</span>'
    pairs = [
        (
            "digest",
            f'<code title="{escape(row.digest)}">{escape(row.digest[7:19])}</code>',
        ),
        ("size", look.size(row.size)),
        ("serves on", serves),
        ("pushed", look.ago(row.pushed) + (f" by {escape(row.author)}" if row.author else "")),
    ]
    if row.score:
        pairs.append(("score", escape(row.score)))
    if detail is not None and detail.source:
        pairs.append(("made from", escape(detail.source)))
    table = _variants(detail.variants) if detail is not None else ""
    return (
        f'<article class="version"><div class="line"><b class="big">{escape(row.version)}</b>'
        f"{aliases}{state}</div>{banned}{look.facts(pairs)}{table}</article>"
    )


def _variants(variants: tuple[VariantRow, ...]) -> str:
    rows = [
        (
            f"<code>{escape(v.id)}</code>", escape(v.runtime),
            escape(v.precision), look.size(v.size),
            f'<span class="evidence {escape(v.evidence)}">{escape(v.evidence)}</span> '
            f'<span class="mute">{escape(v.by)}</span>',
        )
        for v in variants
    ]  # fmt: skip
    return look.table(("Variant", "Runtime", "Precision", "Size", "Evidence"), rows, right=(3,))
