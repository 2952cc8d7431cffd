"""Progress, energy counters and the prescreen: the small parts of a search."""

import io

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml.errors import UsageError
from edgeml.runtime.energy import EnergyCounter
from edgeml.runtime.measure import Timing, saving
from edgeml_converters.before import check_run
from edgeml_converters.layers.coverage import Coverage, coverage
from edgeml_converters.lines import Lines
from edgeml_converters.search.prescreen import loser
from edgeml_converters.search.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_one_line_is_written_over_on_a_terminal():
    stream = Terminal()
    lines = Lines(stream)
    lines.show("one")
    lines.show("x" * 500)
    lines.say("stays")
    lines.show("two")
    lines.close()
    assert stream.getvalue().split("\r\x1b[K")[1:2] == ["one"]
    assert "\r\x1b[Kstays\n" in stream.getvalue()
    assert max(map(len, stream.getvalue().split("\r\x1b[K"))) < 500
    assert stream.getvalue().endswith("\r\x1b[K")


def test_elsewhere_lines_are_plain_and_few():
    stream = io.StringIO()
    lines = Lines(stream)
    for _ in range(100):
        lines.show("working")
    lines.say("done")
    lines.close()
    assert stream.getvalue() == "done\n"


def test_time_left_is_reckoned_from_what_came_true():
    shown = []
    progress = Progress(print, shown.append)
    progress.expect("a", 10.0)
    progress.expect("b", 30.0)
    progress.step("a", 0.0, "begins")
    assert shown[-1] == "a: begins"
    progress.step("a", 1.0, "ends")
    assert "about 0 s left" in shown[-1]  # it took no time at all
    assert progress.left_s() == float("inf")
    assert progress.used() == 0.0
    assert Progress(print, budget_s=1e-9).used() > 1.0


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "3 s"), (150, "2 min"), (9000, "2 h"), (400000, "5 days")]
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def package(root, name, kind, value, span=1000):
    folder = root / "sys" / "class" / "powercap" / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{kind}\n")
    (folder / "energy_uj").write_text(f"{value}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    return folder / "energy_uj"


def test_the_energy_counter_sums_packages_and_survives_its_end(tmp_path):
    first = package(tmp_path, "intel-rapl:0", "package-0", 900)
    second = package(tmp_path, "intel-rapl:1", "package-1", 10)
    package(tmp_path, "intel-rapl:0:0", "core", 5)
    package(tmp_path, "intel-rapl:2", "psys", 5)
    counter = EnergyCounter.find(tmp_path)
    assert counter.joules() == 0.0
    first.write_text("100")  # it began anew after 1000
    second.write_text("30")
    assert counter.joules() == pytest.approx(220e-6)
    assert counter.joules() == pytest.approx(220e-6)
    assert EnergyCounter.find(tmp_path / "nothing") is None


def test_energy_is_compared_in_the_same_rounds():
    def timing(joules):
        ones = np.ones(8)
        return Timing(ones, ones, ones, None if joules is None else np.full(8, joules))

    ratio = saving(timing(2.0), timing(1.0))
    assert ratio.low < ratio.value == 2.0 < ratio.high
    assert saving(timing(2.0), timing(None)) is None


def test_options_that_cannot_be_are_one_line(monkeypatch):
    for options, says in (
        (("latency", -1.0, False, False, True), "budget"),
        (("latency", None, True, True, True), "--fresh"),
        (("latency", None, True, False, False), "--no-cache"),
    ):
        with pytest.raises(UsageError, match=says):
            check_run(*options)
    monkeypatch.setattr(EnergyCounter, "find", lambda: None)
    with pytest.raises(UsageError, match="no energy counter"):
        check_run("energy", None, False, False, True)
    check_run("latency", 600.0, True, False, True)


def seen(weighted, int8, **more):
    return Coverage("onnxruntime", 100, weighted, int8, **more)


@pytest.mark.parametrize(
    ("found", "size", "says"),
    [
        # What was measured to lose (decision record 16).
        (seen(26, 2, dequantize=73), 500, "73 DequantizeLinear left, 24 of 26 products in float"),
        (seen(53, 52, conv_integer=52), 500, "52 ConvInteger"),
        (seen(50, 50, grouped=32), 500, "32 of 50 products are grouped"),
        (seen(10, 0), 1000, "no product is computed in 8 bits"),
        (seen(10, 0), 5096, "larger than the source by 4 KiB"),
        # What gained, or may.
        (seen(53, 38, dequantize=60), 500, ""),  # 1.27 times as fast
        (seen(53, 53, depthwise=17, quantize=1, dequantize=1), 500, ""),
        (seen(36, 18, dequantize=60), 500, ""),
        (seen(20, 19, conv_integer=1), 500, ""),
        (seen(10, 0), 400, ""),  # smaller, which may be all that was asked for
        (seen(0, 0), 5000, ""),
    ],
)
def test_only_what_was_measured_to_lose_is_dropped(found, size, says):
    reason = loser(found, size, 1000)
    assert (says in reason) if says else (reason == "")


def test_convolutions_with_ranges_at_run_time_are_seen_in_the_graph(tmp_path):
    weights = numpy_helper.from_array(np.ones((4, 1, 3, 3), np.int8), "w")
    zero = numpy_helper.from_array(np.zeros((), np.int8), "z")
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "p"]),
        helper.make_node("ConvInteger", ["q", "w", "p", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "dynamic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [weights, zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "m.onnx")
    found = coverage(tmp_path / "m.onnx", "onnxruntime")
    assert found.conv_integer == 1
    assert "ConvInteger" in loser(found, 1, 1000)
