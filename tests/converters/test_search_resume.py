"""Interrupted, killed, cut short: the old state or the new one, and a resumed run ends the same."""

import os
import signal
import subprocess
import sys
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgeml
from edgeml.bundle import Bundle
from edgeml.digest import sha256_file
from edgeml.runtime.facts import device_facts
from edgeml_converters import account, api
from edgeml_converters.candidates import Measured
from edgeml_converters.search import measuring
from tests.converters.test_search_jobs import marked
from tests.support import models
from tests.support.bounded import killed_after


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    onnx.save(models.mlp(), folder / "mlp.onnx")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x_test=rng.normal(size=(400, 4)).astype(np.float32))
    return folder


@cache
def facts():
    return device_facts()


@pytest.fixture
def convert(case, own_profile, tmp_path, monkeypatch):
    """Return a function that converts with one runtime; figures are made up, the same each time."""
    profile = own_profile("lone", "threads = [1, 2]", runtimes="'onnxruntime'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measured = []

    def heat(members, _parked, heat, _progress, _groups):
        measured.append(heat.name)
        found = {}
        for trial in members:
            gain = 1.0 + zlib.crc32(f"{trial.id} {heat.name}".encode()) % 100 / 200
            gain = 1.0 if trial is members[0] else gain + 1.0
            ms = 1.0 / gain
            found[trial.id] = Measured((ms,) * 6, ms, ms, ms, (gain, gain, gain), "wall")
        return found

    monkeypatch.setattr(measuring, "_heat", heat)
    monkeypatch.setattr(api, "device_facts", facts)
    monkeypatch.setattr(api, "code_digest", lambda: "the code of this test")
    monkeypatch.setattr(account, "_pictures", lambda *_: ())

    def run(**options):
        measured.clear()
        out = tmp_path / "made.edgeml"
        settings = {"data": case / "data.npz", "effort": "quick", "out": out, **options}
        return edgeml.convert(case / "mlp.onnx", profile, **settings)

    run.measured = measured
    return run


def interrupt_at(count):
    """Return a listener that interrupts the run at its n-th line."""
    seen = []

    def listen(line):
        seen.append(line)
        if len(seen) == count:
            raise KeyboardInterrupt

    return listen


def test_the_same_run_once_more_measures_nothing_and_gives_the_same_bytes(convert):
    first = convert()
    assert convert.measured
    told = []
    again = convert(progress=told.append)
    assert convert.measured == []
    assert again.digest == first.digest
    assert " s ago are taken again" in told[0]  # how many, a busy machine decides
    assert convert(fresh=True).digest == first.digest
    assert convert.measured
    convert(cache=False)
    assert convert.measured
    assert convert(seed=1).digest != first.digest
    assert convert.measured


@pytest.mark.parametrize("line", [2, 6, 8, 9])
def test_a_resumed_run_ends_with_the_bytes_of_the_uninterrupted_one(convert, tmp_path, line):
    whole = convert()
    every = list(convert.measured)
    old = sha256_file(tmp_path / "made.edgeml")
    try:
        convert(fresh=True, progress=interrupt_at(line))
        ended = True
    except KeyboardInterrupt:
        ended = False
    assert sha256_file(tmp_path / "made.edgeml") == old
    done = list(convert.measured)
    told = []
    resumed = convert(resume=True, progress=told.append)
    assert resumed.digest == whole.digest
    assert done + convert.measured == every  # nothing twice, nothing left out
    assert ended or "ago are taken again" in told[0]


def test_a_run_that_was_interrupted_is_offered_and_not_taken_by_itself(convert):
    with pytest.raises(KeyboardInterrupt):
        convert(progress=interrupt_at(7))
    told = []
    convert(progress=told.append)
    assert "was interrupted" in told[0]
    assert "--resume" in told[0]
    told.clear()
    convert(resume=True, seed=5, progress=told.append)
    assert "nothing to resume" in told[0]


def test_an_interrupted_run_may_end_with_the_best_so_far(convert):
    def listen(line):
        if "final rounds" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(progress=listen)
    result = convert(fresh=True, allow_partial=True, progress=listen)
    (one,) = result.results
    assert {c.timed for c in one.candidates} == {"first"}
    assert any("interrupted" in warning for warning in one.warnings)
    Bundle.open(Path(result.bundle)).check()


def test_an_interrupt_before_anything_was_measured_ends_it(convert, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        convert(allow_partial=True, progress=interrupt_at(2))
    assert not (tmp_path / "made.edgeml").exists()


def test_a_budget_that_is_over_lists_what_was_not_tried(convert):
    result = convert(budget_s=0.01)
    (one,) = result.results
    untried = [c for c in one.candidates if c.verdict == "skipped"]
    assert untried
    assert all("no time left" in c.reason for c in untried)
    assert any("not tried, for lack of time" in warning for warning in one.warnings)
    assert one.winner.id == "onnxruntime.fp32"


def test_a_winner_that_does_not_hold_gives_way_to_the_next(convert, monkeypatch):
    honest = measuring._heat

    def heat(members, parked, heat, progress, groups):
        found = honest(members, parked, heat, progress, groups)
        for key, one in found.items():
            if heat.name == "once more" and key != members[0].id and not heat_seen:
                heat_seen.append(key)
                ms = one.rounds_ms
                found[key] = Measured(ms, 1.0, 1.0, 1.0, (0.99, 0.97, 1.01), "wall")
        return found

    heat_seen = []
    monkeypatch.setattr(measuring, "_heat", heat)
    (one,) = convert().results
    (lost,) = (c for c in one.candidates if c.id == heat_seen[0])
    assert lost.verdict == "failed"
    assert "measured again in a new process: 0.99 x [0.97, 1.01]" in lost.reason
    assert one.winner.id not in (lost.id, "onnxruntime.fp32")
    assert one.confirmed.value > 1.0
    assert any(f"{lost.id} had won, but" in warning for warning in one.warnings)


def test_each_number_of_threads_has_its_own_best(convert, monkeypatch):
    (one,) = convert().results
    if one.other_threads:  # as far as the machine has cores
        (two,) = one.other_threads
        assert two.threads == 2
        fastest = min(two.candidates, key=lambda c: c.latency_ms.p50)
        assert two.best == fastest.id
        assert one.winner.threads == 1


@pytest.mark.parametrize("line", [3, 9])
def test_a_killed_run_leaves_the_old_state_or_the_new_one(case, own_profile, tmp_path, line):
    profile = own_profile("lone", "threads = [1, 2]", runtimes="'onnxruntime'")
    (tmp_path / "t").mkdir()
    env = {
        **os.environ,
        "TMPDIR": str(tmp_path / "t"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "EDGEML_TEST_MARK": str(tmp_path),
    }
    code = "from edgeml_converters import api; api.code_digest = str; "  # people edit meanwhile
    code += "import sys; from edgeml.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "convert", str(case / "mlp.onnx")]
    words += ["--profile", profile, "--data", str(case / "data.npz"), "--effort", "quick"]
    words += ["-o", str(tmp_path / "made.edgeml")]
    (tmp_path / "made.edgeml").write_bytes(b"old")
    child = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=env)
    with killed_after(child):
        for _ in range(line):
            child.stderr.readline()
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert [p.name for p in tmp_path.glob("*.edgeml")] == ["made.edgeml"]
    kept = (tmp_path / "made.edgeml").read_bytes()
    if kept != b"old":
        Bundle.open(tmp_path / "made.edgeml").check()
    done = subprocess.run([*words, "--resume"], env=env, capture_output=True, text=True, check=True)
    bundle = Bundle.open(tmp_path / "made.edgeml")
    bundle.check()
    assert bundle.digest in done.stdout
    assert list((tmp_path / "t").iterdir()) == []  # what the killed one left is gone too
    assert marked(tmp_path) == []
