"""HTTP/1.1 over a real socket: order, limits, slow clients, and bytes that are no HTTP."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_agent.serve.http import MAX_PIPELINED, Connection, Limits, Peers


class Server:
    """A server on a free port that echoes method, path and body; ``/later`` waits for release."""

    def __init__(self, limits=None, most=50):
        self.limits = limits or Limits(max_body=1000, request_seconds=30, idle_seconds=30)
        self.most = most
        self.held = []
        self.gone = 0

    def handle(self, exchange):
        if exchange.path == "/later":
            self.held.append(exchange)
            exchange.on_gone = self.lost
            return
        answer = {"method": exchange.method, "path": exchange.path, "size": len(exchange.body)}
        exchange.send(200, json.dumps(answer).encode())

    def lost(self):
        self.gone += 1

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self.peers = Peers(loop, self.most)
        self.server = await loop.create_server(
            lambda: Connection(self.handle, self.limits, loop, self.peers), "127.0.0.1", 0
        )
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc):
        self.server.close()
        await self.peers.drain(5)

    async def open(self):
        return await asyncio.open_connection("127.0.0.1", self.port)


async def reply(reader, head=False):
    """Read one reply: status, headers, body."""
    status = int((await reader.readline()).split()[1])
    headers = {}
    while line := (await reader.readline()).strip():
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    body = b"" if head else await reader.readexactly(int(headers.get("content-length", 0)))
    return status, headers, body


def run(main, **options):
    async def whole():
        async with Server(**options) as server:
            return await asyncio.wait_for(main(server), 20)

    return asyncio.run(whole())


async def exchange(server, data, head=False):
    reader, writer = await server.open()
    writer.write(data)
    answer = await reply(reader, head)
    writer.close()
    return answer


def get(path="/", *headers):
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def test_keep_alive_and_replies_in_the_order_of_the_requests():
    async def main(server):
        reader, writer = await server.open()
        writer.write(get("/later") + get("/a") + get("/later") + get("/b?q=1"))
        while len(server.held) < 2:
            await asyncio.sleep(0.001)
        server.held[1].send(200, b"second")
        server.held[0].send(200, b"first")
        bodies = [(await reply(reader))[2] for _ in range(4)]
        writer.write(get("/c"))
        bodies.append((await reply(reader))[2])
        writer.close()
        return bodies

    bodies = run(main)
    assert bodies[0] == b"first" and bodies[2] == b"second"
    assert [json.loads(bodies[i])["path"] for i in (1, 3, 4)] == ["/a", "/b", "/c"]


def test_bodies_by_length_and_in_chunks():
    async def main(server):
        sized = await exchange(
            server, b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
        )
        reader, writer = await server.open()
        writer.write(b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc")
        await writer.drain()
        writer.write(b"\r\n4\r\ndefg\r\n0\r\n\r\n")
        chunked = await reply(reader)
        writer.close()
        return sized, chunked

    sized, chunked = run(main)
    assert json.loads(sized[2])["size"] == 5 and json.loads(chunked[2])["size"] == 7


def test_head_is_get_without_a_body_and_continue_is_said():
    async def main(server):
        reader, writer = await server.open()
        writer.write(b"HEAD /x HTTP/1.1\r\nHost: x\r\n\r\n" + get("/y"))
        head = await reply(reader, head=True)
        after = await reply(reader)
        writer.write(
            b"POST /x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        go_on = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"ok")
        last = await reply(reader)
        writer.close()
        return head, after, go_on, last

    head, after, go_on, last = run(main)
    assert head[0] == 200 and int(head[1]["content-length"]) > 0
    assert json.loads(after[2])["path"] == "/y"
    assert go_on.startswith(b"HTTP/1.1 100") and json.loads(last[2])["size"] == 2


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n", 413),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + b"x" * 1024
         + b"\r\n0\r\n\r\n", 413),
        (get("/" + "x" * 9000), 414),
        (get("/", *[f"h{i}: {'v' * 900}" for i in range(50)]), 431),
        (b"nonsense\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
    ],
)  # fmt: skip
def test_what_is_too_much_or_wrong_is_answered_and_closed(data, status):
    async def main(server):
        reader, writer = await server.open()
        writer.write(data)
        answer = await reply(reader)
        rest = await reader.read()
        writer.close()
        return answer, rest

    answer, rest = run(main)
    assert answer[0] == status and "error" in json.loads(answer[2])
    assert rest == b"" and answer[1]["connection"] == "close"


def test_an_upgrade_is_not_taken_and_the_request_is_answered():
    upgrade = b"GET /u HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    status, headers, body = run(lambda server: exchange(server, upgrade + b"\x81\x00"))
    assert status == 200 and headers["connection"] == "close"
    assert json.loads(body)["path"] == "/u"


def test_a_refusal_comes_after_the_replies_before_it():
    async def main(server):
        reader, writer = await server.open()
        writer.write(get("/later") + b"bad\r\n\r\n")
        while not server.held:
            await asyncio.sleep(0.001)
        server.held[0].send(200, b"first")
        return await reply(reader), await reply(reader)

    first, second = run(main)
    assert first[2] == b"first" and second[0] == 400


def test_slow_clients_are_ended():
    limits = Limits(max_body=1000, request_seconds=0.2, idle_seconds=0.2)

    async def main(server):
        slow = await server.open()
        slow[1].write(b"GET / HTT")
        idle = await server.open()
        answer = await reply(slow[0])
        return answer, await idle[0].read()

    answer, rest = run(main, limits=limits)
    assert answer[0] == 408 and rest == b""


def test_a_client_that_never_reads_is_cut():
    limits = Limits(max_body=1000, request_seconds=30, idle_seconds=0.2)

    async def main(server):
        server.handle = lambda exchange: exchange.send(200, b"x" * 500_000)
        reader, writer = await server.open()
        reader._transport.pause_reading()
        writer.write(get() * 60)
        while server.peers._all:
            await asyncio.sleep(0.05)

    run(main, limits=limits)


def test_a_client_that_goes_away_is_noticed():
    async def main(server):
        _, writer = await server.open()
        writer.write(get("/later"))
        while not server.held:
            await asyncio.sleep(0.001)
        writer.transport.abort()
        while not server.gone:
            await asyncio.sleep(0.001)
        server.held[0].send(200, b"nobody")

    run(main)


def test_the_token_is_asked_of_every_request():
    limits = Limits(max_body=1000, request_seconds=30, idle_seconds=30, token="secret")

    async def main(server):
        return [
            (await exchange(server, get("/", *headers)))[0]
            for headers in ([], ["Authorization: Bearer wrong"], ["Authorization: Bearer secret"],
                            ["authorization: bearer secret"], ["Authorization: Basic secret"])
        ]  # fmt: skip

    assert run(main, limits=limits) == [401, 401, 200, 200, 401]


def test_too_many_connections_and_too_deep_a_pipeline():
    async def main(server):
        kept = [await server.open() for _ in range(2)]
        kept[0][1].write(get("/a"))
        await reply(kept[0][0])
        third, _ = await server.open()
        refused = await reply(third)
        reader, writer = kept[1]
        writer.write(get("/later") + get("/a") * (3 * MAX_PIPELINED))
        while not server.held:
            await asyncio.sleep(0.001)
        server.held[0].send(200, b"first")
        bodies = [await reply(reader) for _ in range(3 * MAX_PIPELINED + 1)]
        return refused, bodies

    refused, bodies = run(main, most=2)
    assert refused[0] == 503 and len(bodies) == 3 * MAX_PIPELINED + 1


def test_drain_answers_what_is_in_flight_and_closes():
    async def main(server):
        reader, writer = await server.open()
        idle, _ = await server.open()
        writer.write(get("/later"))
        while not server.held:
            await asyncio.sleep(0.001)
        draining = asyncio.create_task(server.peers.drain(5))
        assert await idle.read() == b""
        server.held[0].send(200, b"last")
        answer = await reply(reader)
        assert await reader.read() == b""
        await draining
        return answer

    assert run(main)[2] == b"last"


_LINES = st.sampled_from([
    b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\n", b"Host: a\r\n", b"Content-Length: 3\r\n",
    b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n", b"abc", b"3\r\nabc\r\n",
    b"0\r\n\r\n", b"Expect: 100-continue\r\n", b"GET /\r\n", b"HTTP/1.1 200 OK\r\n", b"\x00\xff",
    b"ffffffffffffffff\r\n", b"Connection: close\r\n", b"Upgrade: h2c\r\n", b"PRI * HTTP/2.0\r\n",
])  # fmt: skip


class _Wire(asyncio.Transport):
    """A transport in memory."""

    def __init__(self):
        super().__init__()
        self.out = b""
        self.closed = False

    def write(self, data):
        self.out += data

    def can_write_eof(self):
        return True

    def write_eof(self):
        pass

    def close(self):
        self.closed = True

    abort = close

    def pause_reading(self):
        pass

    resume_reading = pause_reading


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(_LINES, st.binary(max_size=40)), max_size=12), st.integers(1, 50))
def test_any_bytes_end_in_replies_or_a_close(pieces, step):
    async def main():
        loop = asyncio.get_running_loop()
        server = Server()
        peers = Peers(loop, 5)
        connection = Connection(server.handle, server.limits, loop, peers)
        wire = _Wire()
        connection.connection_made(wire)
        data = b"".join(pieces)
        for start in range(0, len(data), step):
            connection.data_received(data[start : start + step])
        connection.connection_lost(None)
        await peers.drain(1)
        return wire.out

    out = asyncio.run(main())
    assert out == b"" or out.startswith(b"HTTP/1.1 ")
