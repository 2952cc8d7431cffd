"""A report in its formats, and on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgeml.report.html import to_html
from edgeml.report.markdown import to_markdown
from edgeml.report.model import Picture, Report


def pictures(report: Report) -> tuple[Picture, ...]:
    """Return every picture of a report."""
    return tuple(picture for section in report.sections for picture in section.pictures)


def to_json(report: Report) -> str:
    """Return the report as JSON; a picture is named by its file beside it, not held."""

    def plain(value: Any) -> Any:
        if isinstance(value, Picture):
            return {"file": f"{value.name}.svg", "alt": value.alt, "caption": value.caption}
        if isinstance(value, msgspec.Struct):
            return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return value

    return msgspec.json.format(msgspec.json.encode(plain(report)), indent=2).decode() + "\n"


#: File name -> what makes it.
FORMATS: dict[str, Callable[[Report], str]] = {
    "report.html": to_html,
    "report.md": to_markdown,
    "report.json": to_json,
}


def render(report: Report) -> dict[str, bytes]:
    """Return file name -> bytes: every format, and the pictures that Markdown and JSON name."""
    files = {name: make(report).encode() for name, make in FORMATS.items()}
    files |= {f"{picture.name}.svg": picture.svg for picture in pictures(report)}
    return files


def write(report: Report, folder: Path) -> list[Path]:
    """Write every format into a folder, each file whole or not at all.

    Returns:
        The paths, in the order of ``render``.

    Raises:
        OSError: The folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, data in render(report).items():
        temporary = folder / f".{name}.tmp"
        temporary.write_bytes(data)
        paths.append(temporary.replace(folder / name))
    return paths
