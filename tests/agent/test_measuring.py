"""Measuring on a device: orders, candidates that crash, hang or lie, restarts, and full disks."""

import errno
import sys
import threading
import time

import msgspec
import numpy as np
import pytest

from edgeml.bundle import blob_ref, pack
from edgeml.errors import DeviceError, NotTrustedError, UnreachableError
from edgeml.hardware import DeviceFacts
from edgeml.manifest import Evidence, EvidenceState, Lineage, Manifest, Tolerance, Variant
from edgeml.messages.measuring import MeasureOrder
from edgeml.messages.payloads import DesiredState, Ref, Rpc
from edgeml.runtime.bind import binding_identity
from edgeml.runtime.golden import save_arrays
from edgeml.tensors import TensorSpec
from edgeml.trust import desired
from edgeml.trust.envelope import DirectorKeys
from edgeml.trust.measuring import sign, verify
from edgeml.trust.repository import TrustRepository
from edgeml_agent import measurement, measurer
from edgeml_agent.clock import Clock
from edgeml_agent.measure import Outcome, one_run
from edgeml_agent.measurement import MeasurementStopped, run
from edgeml_agent.measurer import Measurer, Surroundings
from tests.support import models

INPUTS = (TensorSpec("x", "float32", (-1, 4)),)
OUTPUTS = (TensorSpec("y", "float32", (-1, 3)),)
FEED = {"x": np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)}


def candidates(folder, broken=b"", wrong=False, names=("base", "good", "odd")):
    """A bundle of good variants, of which one may be broken, or recorded with other values."""
    from edgeml_converters.model import run_model

    model = models.mlp()
    content = model.SerializeToString()
    answers = run_model(model, FEED)
    files = {"golden/in.npz": save_arrays(FEED)}
    variants = []
    for name in names:
        data = broken if name == "odd" and broken else content
        path, recorded = f"variants/{name}/model.onnx", f"golden/{name}.npz"
        told = {"y": answers["y"] + (1.0 if wrong and name == "odd" else 0.0)}
        files |= {path: data, recorded: save_arrays(told)}
        variants.append(
            Variant(
                name,
                "cpu-x86-64",
                "onnxruntime",
                "fp32",
                "r",
                (blob_ref(path, data),),
                path,
                tuple(map(binding_identity, INPUTS)),
                tuple(map(binding_identity, OUTPUTS)),
                Evidence(EvidenceState.CHECKED, ""),
                Tolerance(1e-5, 1e-3),
                golden=blob_ref(recorded, files[recorded]),
            )
        )
    manifest = Manifest(
        "candidates", "0.0.0-x", INPUTS, OUTPUTS, tuple(variants),
        Lineage("candidates", "sha256:" + "0" * 64, "", 0, {}, {}),
        golden=blob_ref("golden/in.npz", files["golden/in.npz"]),
    )  # fmt: skip
    return pack(manifest, files, folder / "candidates")


def order(bundle, number=5, **more):
    ref = Ref(bundle.manifest.name, bundle.manifest.version, bundle.digest)
    size = len(bundle.oci_manifest)
    return MeasureOrder(
        "f", "dev1", "job", number, ref, size, "cpu-x86-64", "base",
        rounds=6, budget_s=1.0, limit_s=60.0, **more,
    )  # fmt: skip


def measured(bundle, tmp_path, stopped=lambda: False):
    told = []
    found = run(order(bundle), bundle.path, tmp_path / "work", stopped, told.append)
    return found, told


def test_good_candidates_get_figures_and_a_broken_file_costs_its_own_candidate(tmp_path):
    found, told = measured(candidates(tmp_path, broken=b"this is no model"), tmp_path)
    assert "does not run" in found["odd"].error
    for name in ("base", "good"):
        assert found[name].error == ""
        assert len(found[name].rounds_ms) >= 6
        assert found[name].p50 > 0
        assert found[name].memory_bytes > 0
        assert found[name].placement == "CPUExecutionProvider"
        assert found[name].version
    assert found["base"].speedup[0] == pytest.approx(1.0)
    assert told[-1].startswith("measuring 2 side by side")


def test_a_candidate_that_gives_other_values_here_is_out(tmp_path):
    found, _told = measured(candidates(tmp_path, wrong=True), tmp_path)
    assert "other values here" in found["odd"].error
    assert found["good"].error == ""


def child_does(monkeypatch, code, when="'odd' in names"):
    """Let the child do something else before, or instead of, its task."""

    def command(module, folder):
        script = (
            f"import sys, json, os, time, signal\nfolder = {folder!r}\n"
            f"names = json.load(open({folder!r} + '/task'))['variants']\n"
            f"if {when}:\n    {code}\n"
            f"sys.argv = ['x', {folder!r}]\n"
            "from edgeml_agent.measure import main\nsys.exit(main())\n"
        )
        return [sys.executable, "-c", script]

    monkeypatch.setattr(measurement.child, "command", command)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("time.sleep(600)", "took longer than the bound"),
        ("hoard = bytearray(300 << 20); time.sleep(600)", "of memory, more than the bound"),
        ("sys.exit(3)", "exit 3"),
        ("os.kill(os.getpid(), 40)", "signal 40"),
        ("open(folder + '/outcome', 'w').write('{'); sys.exit(0)", "cannot be read"),
    ],
)
def test_a_child_that_crashes_hangs_or_hoards_costs_one_candidate(
    code, said, tmp_path, monkeypatch
):
    monkeypatch.setattr(measurement, "_CHECK_SECONDS", 5.0)
    monkeypatch.setattr(measurement, "available_memory", lambda: 500 << 20)
    child_does(monkeypatch, code)
    found, _told = measured(candidates(tmp_path), tmp_path)
    assert said in found["odd"].error
    assert found["good"].p50 > 0


def test_one_that_crashes_only_beside_others_is_found_by_measuring_each_alone(
    tmp_path, monkeypatch
):
    crash = "os.kill(os.getpid(), signal.SIGKILL)"
    child_does(monkeypatch, crash, when="'odd' in names and len(names) > 1")
    found, told = measured(candidates(tmp_path), tmp_path)
    assert "SIGKILL" in found["odd"].error
    assert found["good"].p50 > 0
    assert "measuring good alone" in told


def test_it_stops_when_it_is_told_to_and_leaves_no_process(tmp_path):
    bundle = candidates(tmp_path)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(MeasurementStopped):
        measured(bundle, tmp_path, stop.is_set)


def test_one_run_of_golden_samples():
    rows = {"x": np.arange(12.0, dtype=np.float32).reshape(3, 4)}
    assert one_run(rows, INPUTS)["x"].shape == (1, 4)
    fixed = (TensorSpec("x", "float32", (3, 4)),)
    assert one_run(rows, fixed)["x"].shape == (3, 4)
    assert one_run({}, fixed)["x"].shape == (3, 4)


# -- orders ---------------------------------------------------------------------------------------


class TrustOf:
    """The director's keys, without a network."""

    def __init__(self, repository):
        self.keys = DirectorKeys((repository.director_signer.public_key,))

    def director_keys(self):
        return self.keys

    def refresh(self):
        pass


class Blobs:
    """Brings blobs from a bundle on this machine."""

    def __init__(self, bundle):
        self.bundle = bundle
        self.error = None

    def blob(self, digest, size, path, *, progress=lambda _n: None, stopped=lambda: False):
        if self.error is not None:
            raise self.error
        source = self.bundle.path / "blobs" / "sha256" / digest.removeprefix("sha256:")
        assert source.stat().st_size == size
        path.write_bytes(source.read_bytes())


class Case:
    """One measurer with everything real but the network."""

    def __init__(self, folder):
        self.bundle = candidates(folder, names=("base", "good"))
        self.folder = folder / "measure"
        self.signer = TrustRepository.create(folder / "trust").director_signer
        self.fetcher = Blobs(self.bundle)
        self.unquiet = ""
        self.answers, self.events = [], []
        self.open()

    def open(self):
        around = Surroundings(
            "f", "dev1", DeviceFacts("x86_64", "Linux", cpu="Toaster"),
            lambda: self.unquiet, lambda: 7,
        )  # fmt: skip
        trust = TrustOf(type("R", (), {"director_signer": self.signer}))
        self.measurer = Measurer(
            self.folder, around, self.fetcher, trust, Clock(), self.answers.append,
            lambda *event: self.events.append(event),
        )  # fmt: skip
        self.thread = threading.Thread(target=self.measurer.run, daemon=True)
        self.thread.start()

    def close(self):
        self.measurer.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()

    def send(self, **more):
        text = sign(order(self.bundle, **more), self.signer).decode()
        self.measurer.call(Rpc(id="job", method="measure", params={"envelope": text}))
        return text

    def wait(self, state, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for answer in self.answers:
                if answer.result is not None and answer.result.state == state:
                    return answer.result
            time.sleep(0.02)
        raise AssertionError([a.result and a.result.state for a in self.answers])


@pytest.fixture
def case(tmp_path):
    made = Case(tmp_path)
    yield made
    made.close()


def test_an_order_is_done_once_and_its_outcome_is_told_again(case):
    case.send()
    done = case.wait("done")
    assert done.facts.cpu == "Toaster"
    assert done.figures["good"].p50 > 0
    assert done.conditions.requests == 0
    states = [a.result.state for a in case.answers]
    assert states.index("fetching") < states.index("measuring")
    case.answers.clear()
    case.send()  # the fleet repeats it until it has the outcome
    assert case.wait("done", 5) == done
    assert len(case.answers) == 1
    assert any(kind == "measured" for kind, _severity, _told in case.events)
    assert not (case.folder / "work").exists()


def test_the_outcome_outlasts_the_agent(case):
    case.send()
    done = case.wait("done")
    case.close()
    case.answers.clear()
    case.open()
    case.send()
    assert case.wait("done", 5) == done


def test_what_was_begun_goes_on_after_a_restart(case):
    case.unquiet = "slot kws is in fetch"
    case.send()
    case.wait("waiting")
    case.close()
    case.unquiet = ""
    case.open()
    assert case.wait("done").figures["good"].p50 > 0


def test_an_update_cuts_it_off_and_it_is_begun_anew(case):
    case.send()
    case.wait("measuring")
    case.unquiet = "slot kws is in trial"
    time.sleep(0.3)
    case.answers.clear()
    case.unquiet = ""
    done = case.wait("done")
    assert done.conditions.cut_off >= 0


def test_one_that_never_comes_to_its_end_is_given_up(case, monkeypatch):
    def never(*_args):
        raise MeasurementStopped("cut off")

    monkeypatch.setattr(measurer.measurement, "run", never)
    case.send()
    assert "never came to its end" in case.wait("failed").detail


def test_a_cancelled_one_ends(case):
    case.send()
    case.wait("measuring")
    case.measurer.call(Rpc(id="job", method="measure_cancel", params={"id": "job"}))
    case.wait("cancelled")
    case.answers.clear()
    case.send(number=6)  # and the next one is taken
    case.wait("done")


def test_the_fleet_that_does_not_answer_is_waited_for(case, monkeypatch):
    monkeypatch.setattr(measurer, "_PAUSE", 0.1)
    case.fetcher.error = UnreachableError("the fleet does not answer")
    case.send()
    case.wait("fetching")
    case.fetcher.error = None
    case.wait("done")


@pytest.mark.parametrize(
    "error", [DeviceError("3 MiB free, expected 60 MiB"), OSError(errno.ENOSPC, "No space left")]
)
def test_a_full_disk_is_a_clean_refusal(case, error):
    case.fetcher.error = error
    case.send()
    assert "free" in case.wait("refused").detail or "No space" in case.wait("refused").detail
    case.close()  # what waits to be removed is removed by the next start at the latest
    case.open()
    end = time.monotonic() + 10
    while (case.folder / "store").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not (case.folder / "store").exists()


def test_an_order_that_ran_out_while_the_device_was_busy_fails(case):
    case.unquiet = "busy"
    case.send(not_after=time.time() + 1.0)
    assert "ran out" in case.wait("failed").detail


def test_what_nobody_may_order_is_refused(case, tmp_path):
    stranger = TrustRepository.create(tmp_path / "other").director_signer
    text = sign(order(case.bundle), stranger).decode()
    case.measurer.call(Rpc(id="job", method="measure", params={"envelope": text}))
    end = time.monotonic() + 10
    while not case.answers and time.monotonic() < end:
        time.sleep(0.02)
    assert "not trusted" in case.answers[0].error
    assert case.events[0][0] == "not_trusted"
    case.measurer.call(Rpc(id="job", method="measure"))
    assert "no envelope" in case.answers[-1].error


def test_verify(tmp_path):
    bundle = candidates(tmp_path)
    signer = TrustRepository.create(tmp_path / "trust").director_signer
    keys = DirectorKeys((signer.public_key,))
    good = order(bundle, not_after=100.0)
    context = {"fleet": "f", "device": "dev1", "seen": 4, "now": 50.0}
    assert verify(sign(good, signer), keys, **context) == good
    assert verify(sign(good, signer), keys, **{**context, "seen": 5}) is None
    assert verify(sign(good, signer), keys, **{**context, "now": None}) == good
    for change, said in (
        ({"seen": 6}, "expected more than 6"),
        ({"device": "dev2"}, "we are 'f/dev2'"),
        ({"fleet": "g"}, "we are 'g/dev1'"),
        ({"now": 101.0}, "was to be begun"),
    ):
        with pytest.raises(NotTrustedError, match=said):
            verify(sign(good, signer), keys, **{**context, **change})
    other = desired.sign(DesiredState("f", "dev1", 9, {}), signer)
    with pytest.raises(NotTrustedError, match="envelope holds"):  # signed, but for something else
        verify(other, keys, **context)
    newer = msgspec.structs.replace(good, schema=99)
    with pytest.raises(NotTrustedError, match="schema 99"):
        verify(sign(newer, signer), keys, **context)


def test_the_outcome_of_a_child_is_tolerant_of_new_fields():
    told = b'{"figures":{"a":{"p50":1.5,"new":true}},"more":1}'
    assert msgspec.json.decode(told, type=Outcome).figures["a"].p50 == 1.5
