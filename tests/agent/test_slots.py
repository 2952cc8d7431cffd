"""Blobs and bundles on the disk."""

import shutil

import pytest

from edgeml.bundle import Bundle
from edgeml.errors import BundleError, DeviceError, NotTrustedError
from edgeml.messages.payloads import Ref
from edgeml_agent import slots
from edgeml_agent.slots import BundleStore, DamagedBlobError
from tests.support.fleetlet import PROFILE, tiny_bundle


def ref_of(bundle):
    return Ref(bundle.manifest.name, bundle.manifest.version, bundle.digest)


def bring(store, bundle):
    """Fetch by copying; return what was asked for."""
    asked = []
    while wanted := store.wanted(bundle.digest, len(bundle.oci_manifest)):
        for digest, _size in wanted:
            name = digest.removeprefix("sha256:")
            shutil.copyfile(bundle.path / "blobs/sha256" / name, store.blob_path(digest))
            asked.append(digest)
    return asked


@pytest.fixture
def store(tmp_path):
    return BundleStore(tmp_path / "state", PROFILE)


def install(store, bundle):
    asked = bring(store, bundle)
    store.verify(bundle.digest)
    store.assemble(ref_of(bundle))
    return asked


def test_bring_verify_assemble_collect(store, tmp_path):
    one, two = (tiny_bundle(tmp_path, version=v) for v in ("1.0.0", "2.0.0"))
    install(store, one)
    install(store, two)
    assert Bundle.open(store.path(one.digest)).manifest == one.manifest
    store.collect([two.digest])
    assert not store.path(one.digest).exists()
    assert Bundle.open(store.path(two.digest)).manifest == two.manifest
    assert install(store, two) == []
    assert len(install(store, one)) == 3


def test_a_blob_that_is_shared_is_fetched_once(store, tmp_path):
    one = tiny_bundle(tmp_path, version="1.0.0", seed=1)
    two = tiny_bundle(tmp_path, version="2.0.0", seed=1)
    assert len(install(store, one)) == 3
    assert len(install(store, two)) == 2
    store.collect([two.digest])
    store.verify(two.digest)


def test_damage_is_found_removed_and_fetched_again(store, tmp_path):
    bundle = tiny_bundle(tmp_path, size=5000)
    install(store, bundle)
    model = bundle.manifest.variants[0].files[0]
    path = store.blob_path(model.digest)
    data = bytearray(path.read_bytes())
    data[2500] ^= 1
    path.write_bytes(data)  # the same file as in the bundle's folder
    with pytest.raises(DamagedBlobError, match="damaged"):
        store.verify(bundle.digest)
    assert install(store, bundle) == [model.digest]
    Bundle.open(store.path(bundle.digest)).read(model)


@pytest.mark.parametrize("size", [0, 1, 999])
def test_a_short_blob_is_damaged(store, tmp_path, size):
    bundle = tiny_bundle(tmp_path)
    bring(store, bundle)
    model = bundle.manifest.variants[0].files[0]
    store.blob_path(model.digest).write_bytes(b"x" * size)
    with pytest.raises(DamagedBlobError):
        store.verify(bundle.digest)


def test_no_variant_for_this_device(tmp_path):
    store = BundleStore(tmp_path / "state", "gpu-nvidia")
    with pytest.raises(BundleError, match=r"no variant for 'gpu-nvidia', only for: cpu-x86-64"):
        bring(store, tiny_bundle(tmp_path))


def test_another_name_than_ordered(store, tmp_path):
    bundle = tiny_bundle(tmp_path)
    bring(store, bundle)
    with pytest.raises(BundleError, match=r"tiny 1\.0\.0, expected tiny 9\.0\.0"):
        store.assemble(Ref("tiny", "9.0.0", bundle.digest))


def test_what_is_no_manifest_is_refused(store):
    from edgeml.digest import sha256_bytes

    data = b"{}"
    digest = sha256_bytes(data)
    store.blob_path(digest).write_bytes(data)
    with pytest.raises((BundleError, NotTrustedError)):
        store.wanted(digest, 2)
    with pytest.raises(BundleError, match="expected at most"):
        store.wanted(digest, 1 << 30)
    with pytest.raises(BundleError, match="is not a digest"):
        store.path("sha256:../../etc")


def test_space_is_asked_for_before_a_download(store, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _p: usage._replace(free=slots.MARGIN + 100))
    store.check_space([("sha256:" + "0" * 64, 50)])
    with pytest.raises(DeviceError, match="MiB free"):
        store.check_space([("sha256:" + "0" * 64, 51)])
    monkeypatch.setattr(shutil, "disk_usage", lambda _p: usage._replace(free=0))
    store.check_space([])


def test_a_file_system_without_links(store, tmp_path, monkeypatch):
    def no_links(*_args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", no_links)
    bundle = tiny_bundle(tmp_path)
    install(store, bundle)
    store.collect([bundle.digest])
    assert Bundle.open(store.path(bundle.digest)).manifest == bundle.manifest
