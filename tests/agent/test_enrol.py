"""From an enrolment file to a configured agent."""

from pathlib import Path

import msgspec
import pytest

from edgeml.errors import EdgemlError, InputError, NotTrustedError, UsageError
from edgeml.messages.enrolment import Enrolment, decode_enrolment
from edgeml.trust.repository import TrustRepository
from edgeml_agent import config, enrol
from edgeml_agent.state import FolderLock, StateStore
from edgeml_agent.transitions import DeviceState


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folders = [tmp_path_factory.mktemp(name) for name in "ab"]
    return [TrustRepository.create(folder).root_bytes.decode() for folder in folders]


def made(root, device="dev1", **more):
    return Enrolment("plant", device, "broker", 1883, root, tags={"a": "b c"}, **more)


def test_it_writes_what_run_reads(tmp_path, roots):
    found = enrol.enrol(made(roots[0]), tmp_path / "d", http="127.0.0.1:0")
    assert found == config.load(tmp_path / "d" / "agent.toml", {})
    assert (found.device, found.fleet, found.tags) == ("dev1", "plant", {"a": "b c"})
    assert found.serve.http == "127.0.0.1:0"
    assert Path(found.root).read_text() == roots[0]
    assert (tmp_path / "d").stat().st_mode & 0o077 == 0


def test_a_second_time_needs_force_and_keeps_what_is_remembered(tmp_path, roots):
    found = enrol.enrol(made(roots[0]), tmp_path / "d")
    state = tmp_path / "d" / "state"
    state.mkdir()
    StateStore(state).update(lambda _s: DeviceState(generation=7))
    with pytest.raises(UsageError, match="is enrolled already"):
        enrol.enrol(made(roots[0]), tmp_path / "d")
    again = enrol.enrol(made(roots[0], profile="cpu-x86-64"), tmp_path / "d", force=True)
    assert again.profile == "cpu-x86-64" != found.profile
    assert StateStore(state).state.generation == 7
    # Another device, or another root of trust, begins anew; the old state is put aside.
    enrol.enrol(made(roots[1]), tmp_path / "d", force=True)
    assert not state.exists()
    assert StateStore(tmp_path / "d" / "state.1").state.generation == 7


def test_a_running_agent_is_left_alone(tmp_path, roots):
    enrol.enrol(made(roots[0]), tmp_path)
    (tmp_path / "state").mkdir()
    lock = FolderLock(tmp_path / "state")
    with pytest.raises(UsageError, match="an agent runs"):
        enrol.enrol(made(roots[0]), tmp_path, force=True)
    lock.close()


@pytest.mark.parametrize("root", ["", "{}", "not json"])
def test_a_root_that_is_none_writes_nothing(tmp_path, root):
    with pytest.raises(NotTrustedError):
        enrol.enrol(made(root), tmp_path / "d")
    assert not list((tmp_path / "d").glob("*"))


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[" * 100_000, b"\xff", b"x" * (2 << 20), b'{"fleet": 1}'],
)
def test_what_is_no_enrolment(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(InputError):
        enrol.read(path)
    with pytest.raises(InputError, match="cannot read"):
        enrol.read(tmp_path / "none")


@pytest.mark.parametrize(
    "change",
    [{"fleet": "a/b"}, {"device": ""}, {"broker_port": 0}, {"broker_port": 70000}, {"schema": 99}],
)
def test_values_that_cannot_be_used(roots, change):
    with pytest.raises(EdgemlError):
        decode_enrolment(msgspec.json.encode(msgspec.structs.replace(made(roots[0]), **change)))
