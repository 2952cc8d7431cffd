"""What the pages are made of, without a browser."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgeml.errors import InputError
from edgeml.fleet.dashboard import charts, look
from edgeml.fleet.dashboard.live import Live
from edgeml.fleet.dashboard.traffic import KEPT, Traffic
from edgeml.fleet.telemetry import Window
from edgeml.stats.buckets import LatencyHistogram


def window(device="a", sequence=1, received=1000.0, seconds=10.0, ms=4.0, requests=100):
    histogram = LatencyHistogram()
    histogram.add(ms / 1e3, requests)
    return Window(device, "b", sequence, "m", "1.0.0", received, seconds, requests, 0, 0, 10, 9,
                  tuple(histogram.counts))  # fmt: skip


class Windows:
    """What a database gives, and how often it was asked."""

    def __init__(self, *windows):
        self.all = list(windows)

    def __call__(self, since):
        return sorted((w for w in self.all if w.received >= since), key=lambda w: w.received)


def test_every_window_counts_once():
    stored = Windows(window(sequence=1), window(sequence=2))
    traffic = Traffic(stored)
    for _ in range(3):
        traffic.update(1001.0)
    stored.all.append(window(sequence=3))  # at the very moment of the last one
    traffic.update(1002.0)
    stats = traffic.devices(1002.0)["a"]
    assert (stats.requests, stats.labelled, stats.correct, stats.rate) == (300, 30, 27, 10.0)
    assert 4.0 <= stats.p50_ms <= 4.0 * 1.19
    assert traffic.versions(1002.0)["m", "1.0.0"].requests == 300


def test_old_windows_go():
    traffic = Traffic(Windows(window()))
    traffic.update(1001.0)
    assert traffic.devices(1001.0)
    assert not traffic.devices(1000.0 + KEPT / 2)
    traffic.update(1001.0 + KEPT)
    assert not traffic.history("a")
    assert not traffic.curve(1001.0 + KEPT)


def test_a_device_without_traffic_has_no_rate():
    traffic = Traffic(Windows(window()))
    traffic.update(1001.0)
    assert traffic.devices(1030.0)["a"].rate == 10.0
    quiet = traffic.devices(1080.0)["a"]
    assert quiet.rate == 0.0
    assert 4.0 <= quiet.p50_ms <= 4.0 * 1.19


def test_the_curve_spreads_a_window_over_its_time():
    traffic = Traffic(Windows(*(window(sequence=i, received=1000.0 + 10 * i) for i in range(12))))
    traffic.update(1111.0)
    rates = [rate for _, rate in traffic.curve(1111.0)]
    assert len(rates) > 10
    assert 0.9 * 100 * 11 <= sum(rates[1:-1]) * 5 <= 1.1 * 100 * 12


def test_all_who_look_share_one_reading():
    class Services:
        def windows(self, since):
            return []

        def subscribe(self, watcher):
            return lambda: None

    calls = []
    started = threading.Event()

    def make():
        calls.append(1)
        started.wait(1)
        return "read"

    def broken():
        raise InputError("not there")

    async def look_all():
        live = Live(Services())
        asked = [asyncio.create_task(live.shared("key", make)) for _ in range(20)]
        await asyncio.sleep(0)
        started.set()
        assert set(await asyncio.gather(*asked)) == {"read"}
        with pytest.raises(InputError):
            await live.shared("other", broken)

    # In a thread of its own: the browser of the other tests has an event loop in this one.
    with ThreadPoolExecutor() as pool:
        pool.submit(asyncio.run, look_all()).result()
    assert calls == [1]


def test_numbers_are_for_people():
    assert look.percent(0.6812) == "68.1 %"
    assert look.percent(1.0) == "100 %"
    assert look.percent(0.0004) == "0.04 %"
    assert look.percent(None) == look.NONE
    assert look.number(12345.0) == "12\N{THIN SPACE}345"
    assert look.number(3.0444) == "3.04"
    assert look.size(188_000) == "188.0 kB"


def test_what_comes_from_outside_is_escaped():
    bad = "<b onclick='x'>"
    for made in (look.link(bad, bad), look.version(bad, bad), look.state(bad), look.empty(bad, bad),
                 look.card(bad, ""), charts.lines({bad: [(0, 1), (1, 2)]}, bad, bad)):  # fmt: skip
        assert "<b onclick" not in made


def test_charts_need_something_to_draw():
    assert charts.lines({"p50": [(1.0, 2.0)]}, "ms", "latency") == ""
    assert charts.spark([1.0], "rate") == ""
    assert 'cx="115.0"' in charts.interval(1.0, (0.9, 1.0), (0.0, 1.0), "ok")
    assert "polyline" in charts.lines({"p50": [(1.0, 0.0), (2.0, 0.0)]}, "ms", "latency")


def test_the_server_starts_without_the_pages():
    """Importing the fleet must not import the pages' framework: every command would wait for it."""
    code = "import sys, edgeml.fleet.server; sys.exit('nicegui' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
