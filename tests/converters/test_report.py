"""The report of a conversion and the index of a sweep: what is told, and how it is drawn."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import msgspec
import pytest

from edgeml.report import render
from edgeml.report.style import COLOURS, STYLE
from edgeml_converters.account import account
from edgeml_converters.results import Candidate, Layer, Standing
from edgeml_converters.sweep_report import overview
from tests.support import outcomes


@pytest.fixture(scope="module")
def result():
    return outcomes.profile_result()


@pytest.fixture(scope="module")
def files(result):
    rounds = {result.profile: outcomes.rounds(result)}
    lineage = outcomes.lineage(result)
    return render(account("mobilenet", "1.0.0", [result], lineage, rounds, "latency"))


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.labels, self.words, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if given.get("role") == "img":
            self.labels.append(given["aria-label"])
        self.ids += [given["id"]] if "id" in given else []

    def handle_data(self, data):
        self.words.append(data)


def test_every_candidate_has_its_reason_and_the_winner_is_named(result, files):
    text = files["report.md"].decode().replace("\\", "")
    for number, one in enumerate(result.candidates, 1):
        row = next(
            line for line in text.splitlines()
            if re.match(rf"\| (\*\*)?{number}(\*\*)? \| (\*\*)?{re.escape(one.id)}", line)
            and one.reason in line
        )  # fmt: skip
        assert ("winner" in row) == (one.id == result.winner.id)
    assert text.index("Note:") < text.index("## Profile")
    assert outcomes.HOST in text


def test_pictures_are_told_to_those_who_cannot_see_them(result, files):
    page = Page(files["report.html"].decode())
    assert len(page.labels) == 4
    pareto, latency, accuracy, sizes = page.labels
    assert f"the winner {result.winner.id}" in pareto
    for label in (latency, accuracy, sizes):
        assert "openvino.int8-static" in label
    assert len(page.ids) == len(set(page.ids)), "two parts of the page have one id"


def test_pictures_take_the_colours_of_the_page_also_in_the_dark(files):
    html = files["report.html"].decode()
    drawn = html[html.index("<main>") :]
    assert not re.search(r":\s*#[0-9a-fA-F]{6}\b", drawn), "a colour that the dark does not change"
    light = STYLE[: STYLE.index("@media")]
    dark = STYLE[STYLE.index("@media") : STYLE.index("* {")]
    for name, value in COLOURS.items():
        assert f"--{name}: {value};" in light
        assert f"--{name}: " in dark
    for name in ("pareto", "latency", "accuracy", "size"):
        root = ElementTree.fromstring(files[f"{name}-cpu-x86-64.svg"])
        assert root.tag.endswith("svg")


def contrast(one, other):
    """Contrast of two colours as WCAG 2 defines it (relative luminance)."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_and_marks_stand_out(mode):
    where = STYLE[: STYLE.index("@media")] if mode == "light" else STYLE[STYLE.index("@media") :]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", where))
    for name in ("ink", "soft", "good", "bad", "doubt"):
        assert contrast(colours[name], colours["card"]) >= 4.5, name
    for name in ("blue", "purple", "orange", "grey"):
        assert contrast(colours[name], colours["card"]) >= 3.0, name


def test_the_same_outcome_gives_the_same_bytes(result, files):
    rounds = {result.profile: outcomes.rounds(result)}
    again = account("mobilenet", "1.0.0", [result], outcomes.lineage(result), rounds, "latency")
    assert render(again) == files


def test_without_figures_there_are_no_pictures_of_them(result):
    kept = Candidate("onnxruntime", "fp32", "fp32", size_bytes=1000, sqnr_db=150.0)
    lone = msgspec.structs.replace(
        result, baseline=kept, winner=kept, candidates=(kept,), speedup=None
    )
    files = render(account("m", "1.0.0", [lone], outcomes.lineage(result), {}, "latency"))
    assert [name for name in files if name.endswith(".svg")] == ["size-cpu-x86-64.svg"]
    head = next(line for line in files["report.md"].decode().splitlines() if "precision" in line)
    assert "SQNR" in head
    assert "p50" not in head
    assert "metric" not in head


def test_a_candidate_that_loses_everything_hides_no_other(result):
    lost = msgspec.structs.replace(
        result.candidates[3], recipe="lost", verdict=Standing.FAILED,
        drop=msgspec.structs.replace(result.candidates[3].drop, value=0.97, upper=0.99),
    )  # fmt: skip
    many = msgspec.structs.replace(result, candidates=(*result.candidates, lost))
    files = render(account("m", "1.0.0", [many], outcomes.lineage(result), {}, "latency"))
    svg = files["pareto-cpu-x86-64.svg"].decode()
    said = re.findall(r">(\N{MINUS SIGN}?\d+\.\d+)</text>", svg)
    ticks = [float(text.replace("\N{MINUS SIGN}", "-")) for text in said]
    assert ticks
    assert max(ticks) <= 0.05


@pytest.mark.parametrize("limit", [0.0, 1e-6, 0.005, 0.5, 100.0])
def test_any_limit_can_be_drawn(result, limit):
    rows = [msgspec.structs.replace(c, drop=msgspec.structs.replace(c.drop, limit=limit))
            for c in result.candidates if c.drop]  # fmt: skip
    one = msgspec.structs.replace(result, candidates=tuple(rows))
    files = render(account("m", "1.0.0", [one], outcomes.lineage(result), {}, "latency"))
    svg = files["pareto-cpu-x86-64.svg"].decode()
    assert ("allowed" in svg) == (limit < 1)


def test_the_layers_of_the_winner_are_told_and_drawn(result):
    layers = tuple(
        Layer(f"conv{i}", "Conv", "float" if i == 3 else "int8", True, 40.0 - i, 44.0, 20.0, 0.1)
        for i in range(6)
    )
    layers += (Layer("add", "Add", "float", False, None, None, 6.0, 0.4),)
    told = msgspec.structs.replace(result, layers=layers)
    files = render(account("m", "1.0.0", [told], outcomes.lineage(result), {}, "latency"))
    text = files["report.md"].decode()
    assert "5 of 6 products with stored weights are computed in 8 bits" in text
    assert "In float: conv3." in text
    assert "layers-cpu-x86-64.svg" in files
    labels = Page(files["report.html"].decode()).labels
    assert any("the least exact is conv5 at 35.0 dB" in label for label in labels)


def test_a_winner_that_is_better_than_the_source_is_not_above_the_picture(result):
    better = msgspec.structs.replace(
        result.candidates[4],
        drop=msgspec.structs.replace(result.candidates[4].drop, value=-0.008),
    )
    one = msgspec.structs.replace(
        result, winner=better, candidates=(*result.candidates[:4], better)
    )
    files = render(account("m", "1.0.0", [one], outcomes.lineage(result), {}, "latency"))
    svg = files["pareto-cpu-x86-64.svg"].decode()
    tall = float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)[1])
    places = [float(y) for y in re.findall(r'<use [^>]*y="([\d.-]+)"', svg)]
    assert all(0 < y < tall for y in places)


def test_the_index_of_a_sweep_leads_to_every_report(result):
    outcomes_ = [
        ("mobilenet", "done", "", (result, outcomes.profile_result("cpu-arm64")), 30.0),
        ("too-big", "gate", "nothing passes for profile 'cpu-arm64'", (), 12.0),
    ]
    files = render(overview("nightly", outcomes_))
    html, text = files["report.html"].decode(), files["report.md"].decode()
    assert html.count('href="mobilenet/report.html"') == 2
    assert text.count("(<mobilenet/report.html>)") == 2
    assert "nothing passes for profile" in html
    assert "1 of 2" in html
    assert "gains.svg" in files
    assert not re.search(r"https?:|src=", html)


def test_long_names_leave_room_for_what_they_name(result):
    rows = [
        msgspec.structs.replace(c, recipe=c.recipe + "-pruned50" * 6) for c in result.candidates
    ]
    long = msgspec.structs.replace(result, candidates=tuple(rows))
    rounds = {long.profile: outcomes.rounds(long)}
    files = render(account("m", "1.0.0", [long], outcomes.lineage(result), rounds, "latency"))
    svg = files["size-cpu-x86-64.svg"].decode()  # a warning of collapsed axes is an error here
    assert "\N{HORIZONTAL ELLIPSIS}" in svg
    assert rows[0].id in files["report.md"].decode()


def test_the_column_of_scores_has_the_name_of_the_metric(files):
    head = next(line for line in files["report.md"].decode().splitlines() if "precision" in line)
    assert "top1" in head


def test_what_was_not_judged_is_in_the_table_and_has_no_place_in_the_picture(result):
    slow = msgspec.structs.replace(
        result.candidates[6], recipe="slow", verdict=Standing.SKIPPED, metric=None, drop=None,
        sqnr_db=None, reason="no gain over the source",
    )  # fmt: skip
    given = msgspec.structs.replace(result, candidates=(*result.candidates, slow))
    files = render(account("m", "1.0.0", [given], outcomes.lineage(result), {}, "latency"))
    figures = files["report.md"].decode().split("why it won or lost")[0]
    assert f"| {slow.id} |" in figures
    (alt,) = re.findall(r"!\[(Accuracy lost.*?)\]", figures, re.DOTALL)
    assert slow.id not in alt
