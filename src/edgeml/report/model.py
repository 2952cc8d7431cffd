"""The Report value: what is to be told, without how it looks.

Pictures come as finished SVG bytes: whoever makes the report draws them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Tone = Literal["", "good", "bad", "doubt", "quiet"]


class Fact(msgspec.Struct, frozen=True, omit_defaults=True):
    """One figure that stands out: a label, its value, and a small line below."""

    label: str
    value: str
    note: str = ""
    tone: Tone = ""


class Column(msgspec.Struct, frozen=True, omit_defaults=True):
    """A column's title, and whether its cells are numbers (set to the right)."""

    title: str
    number: bool = False


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row of a table.

    Attributes:
        cells: As many as the table has columns.
        tone: Of the whole row.
        link: Where the first cell leads: a path relative to the report; empty for nowhere.
    """

    cells: tuple[str, ...]
    tone: Tone = ""
    link: str = ""


class Table(msgspec.Struct, frozen=True, omit_defaults=True):
    """A table; ``caption`` says how to read it."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: str = ""


class Picture(msgspec.Struct, frozen=True, omit_defaults=True):
    """A picture.

    Attributes:
        name: File name without ending; unique in the report.
        alt: What it shows, for somebody who cannot see it.
        svg: The picture itself.
        caption: How to read it.
        wide: Whether it takes the whole width of the page.
    """

    name: str
    alt: str
    svg: bytes
    caption: str = ""
    wide: bool = False


class Section(msgspec.Struct, frozen=True, omit_defaults=True):
    """A heading and what stands under it, in this order.

    Attributes:
        title: The heading.
        text: Paragraphs.
        pictures: Pictures, side by side where there is room.
        tables: Tables.
        folded: Whether a reader sees it only after opening it.
    """

    title: str
    text: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: bool = False


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """A report.

    Attributes:
        title: What it is about.
        lead: The outcome in one or two sentences.
        facts: The figures that matter most.
        warnings: What a reader must know before relying on it.
        sections: The rest.
        footer: What made it.
    """

    title: str
    lead: str
    facts: tuple[Fact, ...] = ()
    warnings: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    footer: str = ""
