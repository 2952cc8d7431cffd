"""Pieces over a link, with a network that misbehaves."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.digest import sha256_bytes
from edgeml.errors import DeviceError, UnreachableError
from edgeml.link.memory import Faults, MemoryBroker, MemoryLink
from edgeml.messages import topics
from edgeml.messages.payloads import BlockReply, BlockRequest, decode, encode
from edgeml_agent.fetch import BLOCK, WINDOW, BlockFetcher, FetchStopped

DATA = bytes(range(256)) * (BLOCK * 3 // 256) + b"tail"
DIGEST = sha256_bytes(DATA)
FILES = {("blob", DIGEST): DATA, ("tuf", "timestamp.json"): b"{}", ("tuf", "big"): DATA}


class Server:
    """Answers block requests; ``change`` may alter, drop or multiply the replies."""

    def __init__(self, faults=None):
        broker = MemoryBroker(faults) if faults else MemoryBroker()
        self.link, self.device = MemoryLink(broker, "fleet"), MemoryLink(broker, "dev")
        self.asked, self.change = [], lambda reply: [reply]
        self.link.subscribe(topics.up("f", "dev", "block"), self._answer)
        self.link.open()
        self.fetcher = BlockFetcher(self.device, "f", "dev", timeout=0.1, attempts=3)
        self.device.open()

    def _answer(self, message):
        request = decode(message.payload, BlockRequest)
        self.asked.append(request)
        data = FILES.get((request.kind, request.name))
        reply = BlockReply(request.request, request.kind, request.name, request.offset)
        if data is None:
            reply = _with(reply, error="not_found")
        else:
            piece = data[request.offset : request.offset + request.length]
            reply = _with(reply, total=len(data), data=piece)
        for one in self.change(reply):
            payload = one if isinstance(one, bytes) else encode(one)
            self.link.publish(topics.down("f", "dev", "block"), payload, qos=0)


def _with(reply, **change):
    import msgspec

    return msgspec.structs.replace(reply, **change)


def test_a_blob_comes_whole_and_in_a_bounded_number_of_requests(tmp_path):
    server, seen = Server(), []
    server.fetcher.blob(DIGEST, len(DATA), tmp_path / "b", progress=seen.append)
    assert (tmp_path / "b").read_bytes() == DATA
    assert sum(seen) == len(DATA)
    assert sorted(r.offset for r in server.asked) == [0, BLOCK, 2 * BLOCK, 3 * BLOCK]
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_it_goes_on_where_it_stopped(tmp_path):
    server = Server()
    server.change = lambda reply: [reply] if reply.offset < 2 * BLOCK else []
    with pytest.raises(UnreachableError, match="does not answer"):
        server.fetcher.blob(DIGEST, len(DATA), tmp_path / "b")
    assert (tmp_path / "b.part").stat().st_size == 2 * BLOCK
    server.change = lambda reply: [reply]
    server.asked.clear()
    server.fetcher.blob(DIGEST, len(DATA), tmp_path / "b")
    assert min(r.offset for r in server.asked) == 2 * BLOCK
    assert (tmp_path / "b").read_bytes() == DATA


def test_what_is_damaged_is_removed_and_fetched_anew(tmp_path):
    server = Server()
    server.change = lambda reply: [_with(reply, data=b"x" * len(reply.data))]
    with pytest.raises(UnreachableError, match="came damaged"):
        server.fetcher.blob(DIGEST, len(DATA), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
    # Also a part from another life: too long, or wrong.
    for left in (b"y" * 10, b"y" * (len(DATA) + 1)):
        (tmp_path / "b.part").write_bytes(left)
        server.change = lambda reply: [reply]
        for _ in range(2):
            try:
                server.fetcher.blob(DIGEST, len(DATA), tmp_path / "b")
                break
            except UnreachableError:
                continue
        assert (tmp_path / "b").read_bytes() == DATA
        (tmp_path / "b").unlink()


@pytest.mark.parametrize(
    "change",
    [
        lambda r: [_with(r, request=r.request + 1)],
        lambda r: [_with(r, name="other")],
        lambda r: [_with(r, kind="blob" if r.kind == "tuf" else "tuf")],
        lambda r: [_with(r, offset=r.offset + 1)],
        lambda r: [b"", b"\xff" * 9, b"\x80"],
    ],
    ids=["id", "name", "kind", "offset", "garbage"],
)
def test_what_nobody_asked_for_is_dropped(tmp_path, change):
    server = Server()
    server.change = lambda reply: [*change(reply), reply, reply]
    server.fetcher.blob(DIGEST, len(DATA), tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == DATA
    server.change = change
    with pytest.raises(UnreachableError):
        server.fetcher.metadata("timestamp.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda r: [_with(r, total=1 << 40)],
        lambda r: [_with(r, total=0)],
        lambda r: [_with(r, total=-1)],
        lambda r: [_with(r, data=r.data[:-1])],
        lambda r: [_with(r, data=r.data + b"x")],
        lambda r: [_with(r, data=b"")],
        lambda r: [_with(r, error="refused")],
    ],
)
def test_sizes_that_lie_are_refused(tmp_path, change):
    server = Server()
    server.change = change
    with pytest.raises(UnreachableError):
        server.fetcher.metadata("timestamp.json")
    with pytest.raises(UnreachableError):
        server.fetcher.blob(DIGEST, len(DATA), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_metadata_of_several_pieces_and_none():
    server = Server()
    assert server.fetcher.metadata("big") == DATA
    with pytest.raises(FileNotFoundError, match=r"2\.root\.json"):
        server.fetcher.metadata("2.root.json")


def test_stopping(tmp_path):
    server = Server()
    server.change = lambda _reply: []
    with pytest.raises(FetchStopped):
        server.fetcher.blob(DIGEST, len(DATA), tmp_path / "b", stopped=lambda: True)
    threading.Timer(0.05, server.fetcher.stop).start()
    with pytest.raises(FetchStopped):
        server.fetcher.blob(DIGEST, len(DATA), tmp_path / "b")


def test_a_full_disk(tmp_path, monkeypatch):
    server = Server()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DeviceError, match="No space left"):
        server.fetcher.blob(DIGEST, len(DATA), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_the_window_is_kept(tmp_path):
    server = Server()
    big = b"z" * (BLOCK * 20)
    FILES[("blob", sha256_bytes(big))] = big
    server.change = lambda _reply: []
    with pytest.raises(UnreachableError, match="does not answer"):
        server.fetcher.blob(sha256_bytes(big), len(big), tmp_path / "b")
    assert len(server.asked) == 3 * WINDOW  # a whole window, three times
    held = []

    def backwards(reply):
        held.append(reply)
        if len(held) < WINDOW and reply.offset + BLOCK < len(big):
            return []
        out = held[::-1]
        held.clear()
        return out

    server.change = backwards
    server.fetcher.blob(sha256_bytes(big), len(big), tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == big


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_any_weather(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("weather")
    server = Server(Faults(seed=seed, drop=0.2, duplicate=0.2, reorder=0.3))
    for _ in range(50):
        try:
            server.fetcher.blob(DIGEST, len(DATA), folder / "b")
            break
        except UnreachableError:
            continue
    assert (folder / "b").read_bytes() == DATA
