"""Who sends too much, too slowly or too little is told so, and keeps nothing of the server."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any

import msgspec
import pytest
from litestar import Request, get, post
from litestar.datastructures import State
from litestar.params import JSONBody
from litestar.types import Scope

import common.doors
import common.problems
from common.doors import HEAD_BYTES, HEADERS, URL_BYTES, Door, proxies
from common.headers import EVERYWHERE
from common.http import create_app
from common.runtime import Service
from common.settings import BadSetting, Settings, load
from services.cli.system import listen, server_of
from tests.harness import eventually

HOST = b"Host: localhost\r\n"
SECONDS = 20.0
COUNTED = 'boxoffice_refused_requests_total{status="400"}'
LONG = 5_000.0


class Patient(Door):
    """As it is, but that no test waits for its patience to end, or runs into it."""

    head_seconds = body_seconds = slow_seconds = LONG


class NoTimeForHeads(Patient):
    head_seconds = 0.05


class NoTimeForBodies(Patient):
    body_seconds = 0.05


class NoTimeForReaders(Patient):
    slow_seconds = 0.05


class Note(msgspec.Struct):
    """A small body."""

    text: str


class Handlers:
    """What the doors lead to, and what they saw."""

    def __init__(self) -> None:
        self.seen: list[Scope] = []
        self.go_on = asyncio.Event()
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

        @get("/look", sync_to_thread=False)
        def look(request: Request[Any, Any, State]) -> str:
            self.seen.append(request.scope)
            return "seen"

        @get("/wait")
        async def wait() -> str:
            self.begun.set()
            await self.go_on.wait()
            return "waited"

        @get("/large", sync_to_thread=False)
        def large() -> bytes:
            return b"x" * 64_000_000

        @post("/note", status_code=200)
        async def note(data: JSONBody[Note]) -> str:
            return data.text

        @post("/file", status_code=200, request_max_body_size=None)
        async def file(request: Request[Any, Any, State]) -> int:
            self.begun.set()
            size = 0
            try:
                async for part in request.stream():
                    size += len(part)
            finally:
                self.ended.set()
            self.seen.append(request.scope)
            return size

        self.routes = [look, wait, large, note, file]


class Client:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def send_for_ever(self) -> None:
        """Raises ConnectionError when it is cut."""
        while True:
            await self.send(b"\r\n")
            await asyncio.sleep(0.01)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: its status, headers and body."""
        async with asyncio.timeout(SECONDS):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self._reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, body

    async def refused(self, status: int, why: str) -> None:
        """It is told so as a problem, with all that every answer has, and then it is over."""
        found, headers, body = await self.answer()
        problem = json.loads(body)
        assert (found, problem["status"]) == (status, status), problem
        assert why in problem["detail"]
        assert headers["content-type"] == "application/problem+json"
        assert {name.decode() for name, _ in EVERYWHERE} <= set(headers)
        assert headers["connection"] == "close"
        await self.is_over()

    async def is_over(self) -> None:
        async with asyncio.timeout(SECONDS):
            assert await self._reader.read() == b""


@asynccontextmanager
async def served(handlers: Handlers, door: type[Door] = Patient, **settings: Any) -> AsyncIterator[tuple[str, int]]:
    """A server of these handlers; where it is."""
    app = create_app([Service("doors", handlers.routes)], msgspec.structs.replace(Settings(), **settings))
    server = server_of(app, door)
    with closing(listen("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield listening.getsockname()
        finally:
            handlers.go_on.set()
            server.should_exit = True
            await serving


@asynccontextmanager
async def client_of(address: tuple[str, int], **more: Any) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(*address, **more)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def client(door: type[Door] = Patient, **settings: Any) -> AsyncIterator[tuple[Client, Handlers]]:
    """A connection to a server of its own."""
    handlers = Handlers()
    async with served(handlers, door, **settings) as address, client_of(address) as connection:
        yield connection, handlers


def request(*headers: bytes, to: bytes = b"/look", method: bytes = b"GET", body: bytes = b"") -> bytes:
    lines = [b"%b %b HTTP/1.1" % (method, to), b"Host: localhost", *headers]
    return b"\r\n".join([*lines, b"", body])


def headers(count: int) -> Sequence[bytes]:
    return [b"X-%d: a" % number for number in range(count)]


@pytest.mark.parametrize(
    ("sent", "status", "why"),
    [
        (request(*headers(HEADERS)), 431, "100 headers and 32,768 bytes"),
        (request(b"X: " + b"a" * HEAD_BYTES), 431, "32,768 bytes"),
        (request(b"X" * HEAD_BYTES + b": a"), 431, "32,768 bytes"),
        (request(*(b"X: " + b"a" * 700 for _ in range(60))), 431, "32,768 bytes"),
        (request(b"X: " + b"a" * 10_000_000), 431, "32,768 bytes"),
        (request(b"Content-Length: 9", b"X: " + b"a" * HEAD_BYTES, method=b"POST", body=b"123456789"), 431, "32,768"),
        (request(to=b"/" + b"a" * URL_BYTES), 414, "8,192 bytes"),
        (request(to=b"/look?" + b"a" * 10_000_000), 414, "8,192 bytes"),
        (b"\r\n" * HEAD_BYTES, 431, "32,768 bytes"),
        (b"GET" + b" " * HEAD_BYTES * 2, 431, "32,768 bytes"),
        (b"hello\r\n\r\n", 400, "no request"),
        (request(b"Content-Length: 1", b"Content-Length: 2"), 400, "no request"),
        (request(b"Content-Length: 1", b"Transfer-Encoding: chunked"), 400, "no request"),
        (request(b"Upgrade: websocket", b"Connection: Upgrade", *headers(HEADERS)), 431, "100 headers"),
    ],
)
@pytest.mark.parametrize("at_a_time", [None, 5_000])
async def test_a_head_that_is_too_large_or_none_is_refused(
    sent: bytes, status: int, why: str, at_a_time: int | None
) -> None:
    async with client() as (connection, handlers):
        step = at_a_time or len(sent)
        for start in range(0, len(sent), step):
            await connection.send(sent[start : start + step])
        await connection.refused(status, why)
    assert not handlers.seen


async def test_what_is_refused_is_counted() -> None:
    async def count() -> int:
        async with client() as (connection, _):
            await connection.send(request(to=b"/metrics"))
            lines = (await connection.answer())[2].decode().splitlines()
        return next((int(float(line.split()[1])) for line in lines if line.startswith(COUNTED)), 0)

    before = await count()
    for _ in range(3):
        async with client() as (connection, _):
            await connection.send(b"hello\r\n\r\n")
            await connection.refused(400, "no request")
    assert await count() == before + 3


async def test_a_head_within_its_limits_passes_however_it_is_cut() -> None:
    most = request(*headers(HEADERS - 1), to=b"/look?" + b"a" * (URL_BYTES - 6))
    large = request(b"X: " + b"a" * (HEAD_BYTES - 100))
    for sent in (most, large):
        for step in (len(sent), 1_000, 7):
            async with client() as (connection, handlers):
                for _ in range(2):  # also the second on a connection
                    for start in range(0, len(sent), step):
                        await connection.send(sent[start : start + step])
                    assert (await connection.answer())[0] == (400 if sent is most else 200)
            assert len(handlers.seen) == (0 if sent is most else 2)


async def test_trailers_and_extensions_without_end_are_refused_and_are_no_headers() -> None:
    chunked = request(b"Transfer-Encoding: chunked", to=b"/file", method=b"POST")
    for endless in (b"1;" + b"a" * 10_000_000, b"0\r\nX: " + b"a" * 10_000_000):
        async with client() as (connection, handlers):
            await connection.send(chunked)
            await asyncio.wait_for(handlers.begun.wait(), SECONDS)
            await connection.send(endless)
            await connection.refused(431, "32,768 bytes")
    async with client() as (connection, handlers):
        await connection.send(chunked + b"3\r\nabc\r\n0\r\nAuthorization: Bearer dev:eve\r\n\r\n")
        assert (await connection.answer())[2] == b"3"
    assert {name for name, _ in handlers.seen[0]["headers"]} == {b"host", b"transfer-encoding"}


async def test_what_was_asked_before_is_answered_though_what_follows_is_refused() -> None:
    async with client() as (connection, handlers):
        await connection.send(request(to=b"/wait") + request(*headers(HEADERS)))
        await asyncio.wait_for(handlers.begun.wait(), SECONDS)
        handlers.go_on.set()
        assert (await connection.answer())[::2] == (200, b"waited")
        for _ in range(5):
            await connection.send(b"a" * 10_000)
        await connection.is_over()


@pytest.mark.parametrize("sent", [b"GET /look HTTP/1.1\r\nHo", b"G", b"\r\n", request()[:-2]])
async def test_a_head_that_does_not_come_to_its_end_is_refused(sent: bytes) -> None:
    async with client(NoTimeForHeads) as (connection, _):
        await connection.send(sent)
        await connection.refused(408, "The head of the request took over")
    async with client(NoTimeForHeads) as (connection, _):
        await connection.send(request())
        assert (await connection.answer())[0] == 200
        await connection.send(sent)
        await connection.refused(408, "The head of the request took over")


async def test_a_head_that_comes_byte_by_byte_for_ever_is_refused() -> None:
    async with client(NoTimeForHeads) as (connection, _):

        async def drip() -> None:
            await connection.send(b"GET /look HTTP/1.1\r\nX: ")
            while True:
                await connection.send(b"a")
                await asyncio.sleep(0.005)

        dripping = asyncio.create_task(drip())
        await connection.refused(408, "The head of the request took over")
        dripping.cancel()
        await asyncio.wait([dripping])


async def test_who_connects_and_asks_nothing_is_let_go_without_a_word() -> None:
    async with client(NoTimeForHeads) as (connection, _):
        await connection.is_over()


async def test_a_body_that_stops_coming_is_refused() -> None:
    for length in (b"Content-Length: 10", b"Transfer-Encoding: chunked"):
        async with client(NoTimeForBodies) as (connection, handlers):
            await connection.send(request(length, to=b"/file", method=b"POST", body=b"1\r\na\r\n"))
            await connection.refused(408, "No more of the body came for")
            await asyncio.wait_for(handlers.ended.wait(), SECONDS)


async def test_a_body_that_is_none_ends_what_waits_for_it() -> None:
    async with client() as (connection, handlers):
        await connection.send(request(b"Transfer-Encoding: chunked", to=b"/file", method=b"POST", body=b"1\r\na\r\n"))
        await asyncio.wait_for(handlers.begun.wait(), SECONDS)
        await connection.send(b"no length\r\n")
        await connection.refused(400, "no request")
        await asyncio.wait_for(handlers.ended.wait(), SECONDS)


@pytest.mark.parametrize("more", [b"Content-Length: 10", b"Transfer-Encoding: chunked", b"Cookie: " + b"a" * 9_000])
async def test_a_request_for_a_websocket_that_cannot_be_one_is_refused(more: bytes) -> None:
    upgrade = (b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13")
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    async with client() as (connection, _):
        await connection.send(request(*upgrade, key, more))
        await connection.refused(400, "no request for a WebSocket")
    async with client() as (connection, _):
        await connection.send(request())
        assert (await connection.answer())[0] == 200
        await connection.send(request(*upgrade, key, more))
        await connection.refused(400, "no request for a WebSocket")


async def test_the_rest_of_a_body_that_nobody_wants_is_read_and_what_comes_after_it_is_answered() -> None:
    async with client() as (connection, _):
        await connection.send(request(b"Content-Length: 500000", to=b"/nowhere", method=b"POST", body=b"a" * 250_000))
        assert (await connection.answer())[0] == 404
        await connection.send(b"a" * 250_000 + request())
        assert (await connection.answer())[0] == 200


@pytest.mark.parametrize("framed", [b"Content-Length: 500000", b"Transfer-Encoding: chunked"])
async def test_a_connection_that_is_not_kept_is_closed_after_all_that_is_still_sent_was_heard(framed: bytes) -> None:
    async with client() as (connection, handlers):
        part = b"3d090\r\n%b\r\n" % (b"a" * 250_000) if b"chunked" in framed else b"a" * 250_000
        await connection.send(request(b"Connection: close", framed, to=b"/nowhere", method=b"POST", body=part))
        status, headers, _ = await connection.answer()
        assert (status, headers["connection"]) == (404, "close")
        for _ in range(20):
            await connection.send(part + request())  # which is asked after the last answer
        await connection.is_over()
    assert not handlers.seen


@pytest.mark.parametrize(("bound", "most"), [("REST_SECONDS", 0.05), ("REST_BYTES", 100)])
@pytest.mark.parametrize("kept", [b"keep-alive", b"close"])
async def test_a_body_that_nobody_wants_does_not_go_on_for_ever(
    bound: str, most: float, kept: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common.doors, bound, most)
    async with client() as (connection, _):
        length = b"Content-Length: 2000000000"
        await connection.send(request(b"Connection: " + kept, length, to=b"/nowhere", method=b"POST"))
        assert (await connection.answer())[0] == 404
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(connection.send_for_ever(), SECONDS)


async def test_what_one_body_has_too_much_is_not_held_against_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.doors, "REST_BYTES", 1_000)
    async with client() as (connection, _):
        for _ in range(3):
            await connection.send(request(b"Content-Length: 600", to=b"/nowhere", method=b"POST"))
            assert (await connection.answer())[0] == 404
            await connection.send(b"a" * 600)


async def test_a_handler_that_takes_its_time_is_not_taken_for_a_silent_body() -> None:
    async with client(NoTimeForBodies) as (connection, handlers):
        await connection.send(request(to=b"/wait"))
        await asyncio.wait_for(handlers.begun.wait(), SECONDS)
        await asyncio.sleep(5 * NoTimeForBodies.body_seconds)
        handlers.go_on.set()
        assert (await connection.answer())[::2] == (200, b"waited")


async def test_json_has_to_be_whole_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.problems, "BODY_SECONDS", 0.05)
    async with client() as (connection, _):
        head = request(b"Content-Type: application/json", b"Content-Length: 20", to=b"/note", method=b"POST")
        await connection.send(head + b'{"text": "hello')
        await connection.refused(408, "did not come to its end")


async def test_who_does_not_take_the_answer_is_cut() -> None:
    handlers = Handlers()
    async with served(handlers, NoTimeForReaders) as address, client_of(address, limit=1_000) as connection:
        await connection.send(request(to=b"/large"))  # of which nothing is read but what fits into the buffers
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(connection.send_for_ever(), SECONDS)


async def test_one_connection_too_many_is_refused_and_there_is_room_afterwards() -> None:
    handlers = Handlers()
    async with served(handlers, sockets=2) as address:
        async with client_of(address) as one, client_of(address) as two:
            for connection in (one, two):
                await connection.send(request())
                assert (await connection.answer())[0] == 200
            async with client_of(address) as three:
                await three.send(request())
                await three.refused(503, "All 2 connections")

        async def status() -> int:
            async with client_of(address) as connection:
                await connection.send(request())
                return (await connection.answer())[0]

        await eventually(status, 200)


FORWARDED = (b"X-Forwarded-For: 203.0.113.7", b"X-Forwarded-Proto: https")


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client_host"),
    [
        ("", FORWARDED, "127.0.0.1"),
        ("10.0.0.0/8, 127.0.0.2", FORWARDED, "127.0.0.1"),
        ("127.0.0.1", FORWARDED, "203.0.113.7"),
        ("::1,127.0.0.0/8", FORWARDED, "203.0.113.7"),
        ("127.0.0.9/8", FORWARDED, "203.0.113.7"),
        # What a client says of itself stands before what the proxies add.
        ("127.0.0.1", (b"X-Forwarded-For: 198.51.100.1, 203.0.113.7",), "203.0.113.7"),
        ("127.0.0.1, 10.0.0.0/8", (b"X-Forwarded-For: 198.51.100.1, 203.0.113.7, 10.1.1.1",), "203.0.113.7"),
        ("127.0.0.1", (), "127.0.0.1"),
    ],
)
async def test_only_trusted_proxies_are_believed_whom_they_ask_for(
    trusted: str, forwarded: Sequence[bytes], client_host: str
) -> None:
    async with client(trusted_proxies=trusted) as (connection, handlers):
        await connection.send(request(*forwarded))
        assert (await connection.answer())[0] == 200
    (seen,) = handlers.seen
    assert seen["client"]
    assert seen["client"][0] == client_host
    assert seen["scheme"] == ("https" if client_host != "127.0.0.1" and len(forwarded) == 2 else "http")


def test_proxies_are_known_as_a_socket_for_both_kinds_of_addresses_shows_them() -> None:
    assert proxies(" 10.1.2.3/8, fd00::1 ,") == ["10.0.0.0/8", "::ffff:10.0.0.0/104", "fd00::1/128"]
    assert proxies("") == []


def test_what_is_no_proxy_is_told() -> None:
    with pytest.raises(BadSetting, match=r"BOXOFFICE_TRUSTED_PROXIES='300.0.0.1': .* as 10.0.0.0/8"):
        proxies("300.0.0.1")
    with pytest.raises(BadSetting, match="BOXOFFICE_TRUSTED_PROXIES='\\*': Expected addresses and networks"):
        load(Settings, {"BOXOFFICE_TRUSTED_PROXIES": "*"})
