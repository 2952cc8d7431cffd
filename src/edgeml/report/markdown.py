"""A report as Markdown (the GitHub dialect: tables, folded details)."""

from __future__ import annotations

from collections.abc import Iterator

from edgeml.report.model import Report, Section, Table, Tone

_MARKS: dict[Tone, str] = {"": "", "good": "**", "bad": "", "doubt": "", "quiet": ""}


def to_markdown(report: Report) -> str:
    """Return the report as Markdown; pictures are links to files beside it."""
    return "\n".join(_lines(report)).rstrip() + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield from (f"# {_text(report.title)}", "", _text(report.lead), "")
    for fact in report.facts:
        note = f" ({_text(fact.note)})" if fact.note else ""
        yield f"- {_text(fact.label)}: **{_text(fact.value)}**{note}"
    yield ""
    for warning in report.warnings:
        yield from (f"> **Note:** {_text(warning)}", "")
    for section in report.sections:
        yield from _section(section)
    if report.footer:
        yield from ("---", "", _text(report.footer))


def _section(section: Section) -> Iterator[str]:
    if section.folded:
        yield from ("<details>", f"<summary>{_text(section.title)}</summary>", "")
    else:
        yield from (f"## {_text(section.title)}", "")
    for paragraph in section.text:
        yield from (_text(paragraph), "")
    for picture in section.pictures:
        yield from (f"![{_text(picture.alt)}]({picture.name}.svg)", "")
        if picture.caption:
            yield from (f"*{_text(picture.caption)}*", "")
    for table in section.tables:
        yield from _table(table)
    if section.folded:
        yield from ("</details>", "")


def _table(table: Table) -> Iterator[str]:
    yield "| " + " | ".join(_cell(column.title) for column in table.columns) + " |"
    yield "|" + "|".join("---:" if column.number else "---" for column in table.columns) + "|"
    for row in table.rows:
        mark = _MARKS[row.tone]
        cells = [f"{mark}{_cell(cell)}{mark}" if cell else "" for cell in row.cells]
        if row.link:
            cells[0] = f"[{cells[0]}](<{row.link}>)"
        yield "| " + " | ".join(cells) + " |"
    yield ""
    if table.caption:
        yield from (f"*{_text(table.caption)}*", "")


def _text(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    folded = " ".join(text.split())
    for sign in "\\`*_[]<>":
        folded = folded.replace(sign, "\\" + sign)
    return folded


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")
