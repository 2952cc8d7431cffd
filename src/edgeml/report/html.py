"""A report as one HTML file that needs nothing else: no script, no address outside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from urllib.parse import quote

from edgeml.report.model import Fact, Picture, Report, Section, Table
from edgeml.report.style import COLOURS, STYLE

_PROLOG = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", re.DOTALL)
_NAMESPACE = re.compile(r'\sxmlns(:\w+)?="[^"]*"')
_NAMES = {value: name for name, value in COLOURS.items()}
#: A colour as the value of a style; ``#...`` elsewhere is the name of a part of the picture.
_COLOUR = re.compile(rf":\s*({'|'.join(COLOURS.values())})\b", re.IGNORECASE)
#: Names of parts: those that nothing uses go, for several pictures on a page have the same.
_ID = re.compile(r'\sid="([^"]*)"')
_USES = re.compile(r'[("]#([^)"]+)')
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def to_html(report: Report) -> str:
    """Return the report as HTML."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(report.title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>"
    yield f'<header><h1>{escape(report.title)}</h1><p class="lead">{escape(report.lead)}</p>'
    if report.facts:
        yield f'<dl class="facts">{"".join(map(_fact, report.facts))}</dl>'
    yield "</header>\n<main>"
    if report.warnings:
        items = "".join(f"<li>{escape(warning)}</li>" for warning in report.warnings)
        yield f'<aside><h2>Before you rely on it</h2><ul class="warnings">{items}</ul></aside>'
    for section in report.sections:
        yield from _section(section)
    yield f"</main>\n<footer>{escape(report.footer)}</footer>\n</body>\n</html>"


def _fact(fact: Fact) -> str:
    note = f'<dd class="note">{escape(fact.note)}</dd>' if fact.note else ""
    return (
        f'<div class="{fact.tone}"><dt>{escape(fact.label)}</dt>'
        f'<dd class="value">{escape(fact.value)}</dd>{note}</div>'
    )


def _section(section: Section) -> Iterator[str]:
    if section.folded:
        yield f"<details><summary>{escape(section.title)}</summary>"
    else:
        yield f"<section><h2>{escape(section.title)}</h2>"
    for paragraph in section.text:
        yield f"<p>{escape(paragraph)}</p>"
    if section.pictures:
        yield '<div class="pictures">'
        yield from map(_picture, section.pictures)
        yield "</div>"
    for table in section.tables:
        yield from _table(table)
    yield "</details>" if section.folded else "</section>"


def _picture(picture: Picture) -> str:
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    label = escape(picture.alt, quote=True)
    kind = ' class="wide"' if picture.wide else ""
    drawn = inline_svg(picture.svg).replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return f"<figure{kind}>{drawn}{caption}</figure>"


def inline_svg(svg: bytes) -> str:
    """Return a picture as HTML takes it: no prolog, no namespaces, the page's own colours."""
    plain = _NAMESPACE.sub("", _PROLOG.sub("", svg.decode())).strip()
    used = set(_USES.findall(plain))
    named = _ID.sub(lambda found: found[0] if found[1] in used else "", plain)
    return _COLOUR.sub(lambda found: f": var(--{_NAMES[found[1].lower()]})", named)


def _table(table: Table) -> Iterator[str]:
    numbers = [' class="number"' if column.number else "" for column in table.columns]
    yield '<div class="scroll"><table>'
    if table.caption:
        yield f"<caption>{escape(table.caption)}</caption>"
    heads = zip(numbers, table.columns, strict=True)
    cells = "".join(f'<th scope="col"{number}>{escape(c.title)}</th>' for number, c in heads)
    yield f"<thead><tr>{cells}</tr></thead><tbody>"
    for row in table.rows:
        told = [escape(cell) for cell in row.cells]
        if row.link:
            told[0] = f'<a href="{escape(quote(row.link), quote=True)}">{told[0]}</a>'
        pairs = zip(numbers, told, strict=True)
        cells = "".join(f"<td{number}>{cell}</td>" for number, cell in pairs)
        yield f'<tr class="{row.tone}">{cells}</tr>'
    yield "</tbody></table></div>"
