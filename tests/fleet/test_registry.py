"""The registry: what is taken in is checked, and a version never changes."""

import pytest

from edgeml.digest import sha256_bytes
from edgeml.errors import InputError, NotTrustedError, UsageError
from edgeml.messages.payloads import BlockRequest
from edgeml.trust import bundle_target
from tests.support.fleet_simulator import SimFleet
from tests.support.fleetlet import tiny_bundle


@pytest.fixture
def fleet(tmp_path):
    made = SimFleet(tmp_path, devices=1)
    yield made
    made.close()


def blobs(fleet):
    return sorted(p.name for p in (fleet.folder / "registry" / "blobs" / "sha256").iterdir())


def test_blobs_lie_by_their_digest(fleet):
    ref = fleet.push("1.0.0")
    folder = fleet.folder / "registry" / "blobs" / "sha256"
    for name in blobs(fleet):
        assert sha256_bytes((folder / name).read_bytes()) == f"sha256:{name}"
    assert ref.digest.removeprefix("sha256:") in blobs(fleet)
    newest = max(fleet.folder.glob("trust/metadata/*.targets.json"))
    assert bundle_target("kws", "1.0.0") in newest.read_text()


def test_the_same_version_twice_is_fine_and_another_is_refused(fleet):
    first = fleet.push("1.0.0", seed=1)
    before = blobs(fleet)
    again = fleet.services.push(fleet.folder / "made-1.0.0-1" / "kws-1.0.0", "tests")
    assert again.digest == first.digest
    with pytest.raises(UsageError, match="a version never changes|with digest"):
        fleet.push("1.0.0", seed=2)
    assert blobs(fleet) == before
    assert len(fleet.services.versions()) == 1


def test_a_damaged_bundle_leaves_nothing(fleet, tmp_path):
    bundle = tiny_bundle(tmp_path / "bad", "kws", "1.0.0", seed=1)
    victim = max((bundle.path / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[3] ^= 1
    victim.write_bytes(data)
    with pytest.raises(NotTrustedError):
        fleet.services.push(bundle.path, "tests")
    assert blobs(fleet) == []
    assert fleet.services.versions() == []


def test_aliases_and_lineage(fleet):
    fleet.push("1.0.0")
    fleet.push("1.1.0")
    row = fleet.services.set_alias("kws", "prod", "1.0.0")
    assert (row.version, row.aliases) == ("1.0.0", ("prod",))
    fleet.services.set_alias("kws", "prod", "1.1.0")
    assert fleet.services.version("kws", "@prod").row.version == "1.1.0"
    detail = fleet.services.version("kws", "1.0.0")
    assert detail.source == "tiny.bin"
    assert [v.id for v in detail.variants] == ["cpu.tiny"]
    for model, version in (("kvs", "1.0.0"), ("kws", "1.0.1"), ("kws", "@stage")):
        with pytest.raises(InputError) as caught:
            fleet.services.version(model, version)
        assert "did you mean" in caught.value.hint or "known" in caught.value.hint
    with pytest.raises(UsageError, match="not a name"):
        fleet.services.set_alias("kws", "a/b", "1.0.0")


def test_devices_get_blobs_in_pieces(fleet):
    ref = fleet.push("1.0.0")
    whole, offset = b"", 0
    while True:
        reply = fleet.blocks.answer(BlockRequest(1, "blob", ref.digest, offset, 100))
        whole += reply.data
        offset += len(reply.data)
        if offset == reply.total:
            break
    assert sha256_bytes(whole) == ref.digest
