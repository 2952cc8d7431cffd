"""What earlier runs left: taken by content, bounded, shared, and never half there."""

import os
import subprocess
import sys

import pytest

from edgeml_converters.cache import Attempt, Cache, code_digest, default_folder, key_of
from tests.support.bounded import killed_after


def entry(tmp_path, name, size=1000):
    file = tmp_path / name
    file.write_bytes(name.encode() * size)
    return file


def test_what_was_kept_is_taken_with_its_files(tmp_path):
    cache = Cache(tmp_path / "cache")
    into = tmp_path / "into"
    into.mkdir()
    assert cache.take(key_of("a"), into) is None
    cache.keep(key_of("a"), b"outcome", [entry(tmp_path, "x"), entry(tmp_path, "y")])
    assert cache.take(key_of("a"), into) == b"outcome"
    assert sorted(p.name for p in into.iterdir()) == ["x", "y"]
    assert (into / "x").read_bytes() == (tmp_path / "x").read_bytes()
    assert cache.take(key_of("b"), into) is None


def test_without_a_folder_nothing_is_kept(tmp_path):
    cache = Cache(None)
    cache.keep(key_of("a"), b"outcome")
    assert cache.take(key_of("a"), tmp_path) is None
    attempt = Attempt(cache, "run")
    attempt.keep("k", b"1")
    attempt.finish()
    assert attempt.take("k") is None
    assert not Attempt(cache, "run", resume=True).found


def test_the_entries_that_were_not_used_for_longest_go(tmp_path):
    cache = Cache(tmp_path / "cache", limit_bytes=3500)
    for position, name in enumerate("abc"):
        cache.keep(name, b"", [entry(tmp_path, name)])
        os.utime(tmp_path / "cache" / "entries" / name, (position, position))
    into = tmp_path / "into"
    into.mkdir()
    assert cache.take("a", into) is not None  # used just now
    cache.keep("d", b"", [entry(tmp_path, "d")])
    (into / "a").unlink()
    assert [name for name in "abcd" if cache.take(name, into) is not None] == ["a", "c", "d"]


def test_an_entry_that_lost_a_file_is_a_miss_and_leaves_nothing(tmp_path):
    cache = Cache(tmp_path / "cache")
    cache.keep("a", b"outcome", [entry(tmp_path, "x")])
    (tmp_path / "cache" / "entries" / "a" / "outcome").unlink()
    into = tmp_path / "into"
    into.mkdir()
    assert cache.take("a", into) is None
    assert list(into.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = Cache(tmp_path / "cache")
    cache.keep("a", b"outcome", [entry(tmp_path, "x")])
    assert cache.take("a", tmp_path) is None
    attempt = Attempt(cache, "run")
    attempt.keep("k", b"1")
    attempt.finish()


def test_many_processes_use_one_cache_at_once(tmp_path):
    code = (
        "import sys, pathlib, random, tempfile\n"
        "from edgeml_converters.cache import Cache\n"
        "folder, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2])\n"
        "dice, cache = random.Random(seed), Cache(folder / 'cache', limit_bytes=30_000)\n"
        "for _ in range(150):\n"
        "    name = str(dice.randrange(12))\n"
        "    with tempfile.TemporaryDirectory(dir=folder) as place:\n"
        "        place = pathlib.Path(place)\n"
        "        known = cache.take(name, place)\n"
        "        if known is None:\n"
        "            (place / 'f').write_bytes(name.encode() * 4000)\n"
        "            cache.keep(name, name.encode(), [place / 'f'])\n"
        "        else:\n"
        "            assert known == name.encode()\n"
        "            assert (place / 'f').read_bytes() == name.encode() * 4000, name\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(seed)]) for seed in (1, 2)
    ]
    with killed_after(running[0]), killed_after(running[1]):
        assert [one.wait() for one in running] == [0, 0]
    left = list((tmp_path / "cache" / "entries").iterdir())
    assert sum((p / "files" / "f").stat().st_size for p in left if p.name[0] != ".") <= 34_000


@pytest.mark.parametrize(
    ("finished", "fresh", "resume", "found"),
    [
        (True, False, False, True),
        (True, True, False, False),
        (True, False, True, True),
        (False, False, False, False),
        (False, False, True, True),
    ],
)
def test_measurements_are_taken_of_a_run_that_ended_or_is_resumed(
    tmp_path, finished, fresh, resume, found
):
    cache = Cache(tmp_path)
    first = Attempt(cache, "run")
    first.keep("k", b"1")
    if finished:
        first.finish()
    second = Attempt(cache, "run", fresh, resume)
    assert second.found == found
    assert second.take("k") == (b"1" if found else None)
    assert second.interrupted == (not finished)
    assert not Attempt(cache, "another", resume=True).found


def test_a_fresh_run_that_is_interrupted_never_mixes_with_the_old_one(tmp_path):
    cache = Cache(tmp_path)
    old = Attempt(cache, "run")
    old.keep("first", b"old")
    old.keep("final", b"old")
    old.finish()
    Attempt(cache, "run", fresh=True).keep("first", b"new")
    resumed = Attempt(cache, "run", resume=True)
    assert (resumed.take("first"), resumed.take("final")) == (b"new", None)


def test_keys_and_the_place_of_the_cache(monkeypatch, tmp_path):
    assert key_of("a", 1) == key_of("a", 1) != key_of("a", 2)
    assert len(code_digest()) == 64
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "edgeml" / "convert"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says: ignore it
    assert default_folder().is_absolute()
