"""The outbox on disk."""

import errno
import os
from pathlib import Path

import pytest

from edgeml.errors import UsageError
from edgeml_agent.spool import Spool


def put(spool, kind, payload):
    sequence = spool.next_sequence()
    spool.put(kind, sequence, payload)
    return sequence


def test_kept_until_applied_over_restarts(tmp_path):
    first = Spool(tmp_path, "00000001-aa")
    a, b = put(first, "telemetry", b"a"), put(first, "event", b"b")
    again = Spool(tmp_path, "00000002-bb")
    put(again, "event", b"c")
    assert again.pending() == [("00000001-aa", a), ("00000001-aa", b), ("00000002-bb", 1)]
    assert [again.read(key) for key in again.pending()] == [
        ("telemetry", b"a"), ("event", b"b"), ("event", b"c")
    ]  # fmt: skip
    again.applied("00000001-aa", [a, 77])
    again.applied("unknown", [b])
    assert Spool(tmp_path, "00000003-cc").pending() == [("00000001-aa", b), ("00000002-bb", 1)]


def test_each_kind_has_its_own_bound(tmp_path):
    spool = Spool(tmp_path, "b", {"telemetry": 3, "event": 2})
    for n in range(10):
        put(spool, "telemetry", b"t%d" % n)
    put(spool, "event", b"e")
    assert spool.counts() == {"telemetry": 3, "event": 1}
    assert [spool.read(key)[1] for key in spool.pending()] == [b"t7", b"t8", b"t9", b"e"]
    assert spool.lost == 7
    assert len(list(tmp_path.iterdir())) == 4


def test_a_full_disk_loses_nothing_that_can_still_be_sent(tmp_path, monkeypatch):
    spool = Spool(tmp_path, "b")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.rename", full)
    sequence = put(spool, "event", b"kept in memory")
    assert spool.read(("b", sequence)) == ("event", b"kept in memory")
    assert list(tmp_path.iterdir()) == []
    spool.applied("b", [sequence])
    assert len(spool) == 0


def test_what_a_power_cut_tore_is_dropped(tmp_path):
    spool = Spool(tmp_path, "b")
    sequence = put(spool, "telemetry", b"x")
    path = next(tmp_path.iterdir())
    os.truncate(path, 0)
    (tmp_path / ".b_0000000009.event.new").write_bytes(b"half")
    (tmp_path / "stranger").write_bytes(b"?")
    again = Spool(tmp_path, "c")
    assert again.read(("b", sequence)) is None
    assert again.pending() == []
    assert list(tmp_path.iterdir()) == []


def test_a_boot_id_that_could_not_be_read_back(tmp_path):
    with pytest.raises(UsageError):
        Spool(tmp_path, "a_b")


def test_a_disk_that_became_read_only_harms_nothing(tmp_path, monkeypatch):
    spool = Spool(tmp_path, "00000001-aa")
    number = put(spool, "event", b"a")

    def refuse(*_arguments, **_options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    other = put(spool, "event", b"b")
    assert spool.read(("00000001-aa", other)) == ("event", b"b")
    spool.applied("00000001-aa", [number, other])
    assert spool.pending() == []
    monkeypatch.undo()
    # It is sent again after the next start, and applied once.
    assert Spool(tmp_path, "00000002-bb").pending() == [("00000001-aa", number)]
