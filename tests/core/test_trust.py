"""TUF repository and client: keys, versions, expiry, crashes, concurrency."""

import shutil
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from tuf.api.metadata import Metadata

from edgeml.digest import sha256_bytes
from edgeml.errors import NotTrustedError, UsageError
from edgeml.messages.payloads import DesiredState
from edgeml.trust import bundle_target
from edgeml.trust.client import TrustClient
from edgeml.trust.desired import sign, verify
from edgeml.trust.files import write_atomic
from edgeml.trust.repository import LIFETIME, TrustRepository


@pytest.fixture
def repository(tmp_path):
    return TrustRepository.create(tmp_path / "server")


def client_of(repository, tmp_path, name="client"):
    return TrustClient(tmp_path / name, repository.root_bytes, repository.metadata)


def version(repository, role):
    return repository._open(role).signed.version


def test_from_a_target_to_a_device(repository, tmp_path):
    path = bundle_target("kws", "1.0.0")
    repository.add_target(path, b"the manifest")
    client = client_of(repository, tmp_path)
    client.refresh()
    assert client.target(path) == (12, sha256_bytes(b"the manifest"))
    envelope = sign(DesiredState("f", "d", 1, {}), repository.director_signer)
    keys = client.director_keys()
    assert verify(envelope, keys, fleet="f", device="d", seen=0, now=None).generation == 1


def test_keys_are_for_the_owner_only(repository, tmp_path):
    keys = list((tmp_path / "server" / "keys").rglob("*.pem"))
    assert len(keys) == 5
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert stat.S_IMODE((tmp_path / "server" / "keys").stat().st_mode) == 0o700


def test_it_opens_again_and_is_not_made_twice(repository, tmp_path):
    repository.add_target("bundles/a/1.0.0", b"a")
    again = TrustRepository(tmp_path / "server")
    again.add_target("bundles/b/1.0.0", b"b")
    client = client_of(again, tmp_path)
    client.refresh()
    assert client.target("bundles/a/1.0.0").length == client.target("bundles/b/1.0.0").length == 1
    with pytest.raises(UsageError, match="already"):
        TrustRepository.create(tmp_path / "server")
    with pytest.raises(UsageError, match="no trust repository"):
        TrustRepository(tmp_path / "elsewhere")


def test_a_broken_off_creation_is_begun_anew(repository, tmp_path):
    (tmp_path / "server" / "metadata" / "timestamp.json").unlink()
    again = TrustRepository.create(tmp_path / "server")
    client_of(again, tmp_path).refresh()
    assert len(list((tmp_path / "server" / "keys").rglob("*.pem"))) == 5


def test_a_version_never_changes(repository):
    repository.add_target("bundles/a/1.0.0", b"a")
    before = version(repository, "targets")
    repository.add_target("bundles/a/1.0.0", b"a")
    assert version(repository, "targets") == before
    with pytest.raises(UsageError, match="other bytes"):
        repository.add_target("bundles/a/1.0.0", b"b")
    with pytest.raises(UsageError, match="director"):
        repository.add_target("director/x", b"b")


@pytest.mark.parametrize("crash", ["targets", "snapshot", "timestamp"])
def test_a_crash_between_two_files_is_mended_by_the_next_change(
    repository, tmp_path, monkeypatch, crash
):
    client = client_of(repository, tmp_path)
    client.refresh()

    def power_cut(path, data, mode=0o644):
        if crash in path.name:
            raise OSError("power cut")
        write_atomic(path, data, mode)

    with monkeypatch.context() as patch:
        patch.setattr("edgeml.trust.repository.write_atomic", power_cut)
        with pytest.raises(OSError, match="power cut"):
            repository.add_target("bundles/a/1.0.0", b"a")
    client.refresh()
    with pytest.raises(NotTrustedError, match="not listed"):
        client.target("bundles/a/1.0.0")
    TrustRepository(tmp_path / "server").add_target("bundles/a/1.0.0", b"a")
    client.refresh()
    assert client.target("bundles/a/1.0.0").length == 1


def test_refresh_signs_what_ages(tmp_path):
    clock = [datetime.now(UTC)]
    repository = TrustRepository.create(tmp_path / "server", lambda: clock[0])
    client = TrustClient(
        tmp_path / "client",
        repository.root_bytes,
        repository.metadata,
        lambda: clock[0].timestamp(),
    )
    end = clock[0] + 3 * LIFETIME["root"]
    while clock[0] < end:
        repository.refresh()
        client.refresh()
        clock[0] += timedelta(days=13)
    assert version(repository, "root") > 3
    assert version(repository, "targets") > version(repository, "root")


def test_without_the_root_key_the_rest_goes_on(tmp_path, caplog):
    clock = [datetime.now(UTC)]
    repository = TrustRepository.create(tmp_path / "server", lambda: clock[0])
    for key in (tmp_path / "server" / "keys" / "root").glob("*.pem"):
        key.unlink()
    clock[0] += LIFETIME["root"] * 0.75
    repository.refresh()
    assert "its key is not here" in caplog.text
    client_of(repository, tmp_path).refresh()
    for key in (tmp_path / "server" / "keys" / "targets").glob("*.pem"):
        key.unlink()
    with pytest.raises(NotTrustedError, match="no private key for the role 'targets'"):
        repository.add_target("bundles/a/1.0.0", b"a")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "root.json",
        "../keys/root",
        "01.root.json",
        "99.root.json",
        "1.evil.json",
        "1.root.json/",
    ],
)
def test_only_metadata_is_served(repository, name):
    with pytest.raises(FileNotFoundError):
        repository.metadata(name)


def test_what_is_served_is_metadata(repository):
    for name in ("1.root.json", "1.targets.json", "1.director.json", "timestamp.json"):
        assert Metadata.from_bytes(repository.metadata(name)).signatures


def test_many_threads_may_publish(repository, tmp_path):
    paths = [bundle_target("m", f"1.0.{n}") for n in range(12)]
    threads = [threading.Thread(target=repository.add_target, args=(p, b"x")) for p in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client = client_of(repository, tmp_path)
    client.refresh()
    assert [client.target(path).length for path in paths] == [1] * 12


def test_a_refresh_without_news_writes_nothing_new(repository, tmp_path):
    client = client_of(repository, tmp_path)
    client.refresh()
    before = (tmp_path / "client" / "current").resolve()
    client.refresh()
    assert (tmp_path / "client" / "current").resolve() == before
    assert len(list((tmp_path / "client").iterdir())) == 2


def test_accepted_metadata_works_without_network_and_after_expiry(repository, tmp_path):
    repository.add_target("bundles/a/1.0.0", b"a")
    client_of(repository, tmp_path).refresh()

    def away(name):
        raise AssertionError("no network at start")

    late = datetime.now(UTC).timestamp() + 10 * 365 * 86400
    client = TrustClient(tmp_path / "client", repository.root_bytes, away, lambda: late)
    assert client.target("bundles/a/1.0.0").length == 1
    assert len(client.director_keys().keys) == 1


def test_a_refresh_that_broke_off_is_swept(repository, tmp_path):
    client = client_of(repository, tmp_path)
    client.refresh()
    (tmp_path / "client" / "next-left").mkdir()
    (tmp_path / "client" / ".link-left").symlink_to("next-left")
    again = client_of(repository, tmp_path)
    assert len(list((tmp_path / "client").iterdir())) == 2
    again.refresh()


def test_a_device_without_metadata_trusts_nothing(repository, tmp_path):
    client = client_of(repository, tmp_path)
    with pytest.raises(NotTrustedError, match="no trusted metadata"):
        client.director_keys()
    with pytest.raises(NotTrustedError):
        TrustClient(tmp_path / "x", b"{}", repository.metadata)


def test_an_atomic_write_leaves_the_old_file_or_the_new(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_atomic(path, b"old")

    def no_space(handle):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", no_space)
        with pytest.raises(OSError, match="no space"):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomic(path, b"new", 0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_numbers_after_a_restore_are_above_all_that_was_published(tmp_path):
    made = TrustRepository.create(tmp_path / "server")
    client = TrustClient(tmp_path / "client", made.root_bytes, made.metadata)
    made.add_target("bundles/kws/1.0.0", b"one")
    shutil.copytree(tmp_path / "server", tmp_path / "copy")
    for number in range(2, 5):
        made.add_target(f"bundles/kws/{number}.0.0", b"more")
    client.refresh()
    for restored in range(2):  # the same old copy, a second time
        folder = tmp_path / f"copy-{restored}"
        shutil.copytree(tmp_path / "copy", folder)
        again = TrustRepository(folder)
        late = TrustClient(tmp_path / "client", again.root_bytes, again.metadata)
        with pytest.raises(NotTrustedError, match="version"):
            late.refresh()
        again.outnumber(1_700_000_000 + 1000 * restored)
        late.refresh()
        again.add_target("bundles/kws/9.0.0", b"nine")
        late.refresh()
