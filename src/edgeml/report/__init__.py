"""One Report value -> HTML, Markdown, JSON."""

from __future__ import annotations

from edgeml.report.model import Column, Fact, Picture, Report, Row, Section, Table
from edgeml.report.write import FORMATS, render, write

__all__ = [
    "FORMATS",
    "Column",
    "Fact",
    "Picture",
    "Report",
    "Row",
    "Section",
    "Table",
    "render",
    "write",
]
