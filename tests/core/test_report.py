"""One Report value, three formats."""

import json
import re
from html.parser import HTMLParser

from edgeml.report import Column, Fact, Picture, Report, Row, Section, Table, render, write

SVG = (
    b'<?xml version="1.0"?>\n<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN"\n "http://x/y.dtd">\n'
    b'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 1 1"'
    b' xmlns="http://www.w3.org/2000/svg">'
    b'<metadata>\n<a href="http://elsewhere"/></metadata><path d="M0 0"/></svg>'
)
NASTY = "<script>alert('x')</script> a|b *c* `d`"


def report():
    table = Table(
        (Column("name"), Column("ms", number=True)),
        (Row((NASTY, "1.5"), tone="good"), Row(("b", ""))),
        caption="how to read it",
    )
    return Report(
        title=NASTY,
        lead="It got faster.",
        facts=(Fact("speed-up", "2.0 x", "[1.9, 2.1]", "good"),),
        warnings=(NASTY,),
        sections=(
            Section("Candidates", ("a paragraph",), (Picture("pareto", "dots", SVG),), (table,)),
            Section("Details", tables=(table,), folded=True),
        ),
        footer="made by edgeml",
    )


class Tags(HTMLParser):
    """Checks that what opens also closes, in order."""

    void = frozenset({"meta", "path"})

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_whole_and_needs_nothing_from_elsewhere():
    html = render(report())["report.html"].decode()
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    assert "script" not in tags.seen
    assert "svg" in tags.seen
    assert not re.search(r"https?:|//\w", html)
    assert NASTY in "".join(tags.text)


def test_json_holds_the_same_and_names_the_pictures():
    files = render(report())
    told = json.loads(files["report.json"])
    assert told["title"] == NASTY
    picture = told["sections"][0]["pictures"][0]
    assert files[picture["file"]] == SVG
    assert told["sections"][0]["tables"][0]["rows"][0]["cells"] == [NASTY, "1.5"]


def test_markdown_shows_signs_as_they_are():
    text = render(report())["report.md"].decode()
    assert "<script>" not in text.replace("\\<", "")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 6
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)


def test_the_same_report_gives_the_same_bytes_on_disk(tmp_path):
    first = write(report(), tmp_path / "a")
    second = write(report(), tmp_path / "b")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(p.name for p in first)
