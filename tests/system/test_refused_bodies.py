"""Whoever sends a body that is refused reads why, however much is still to come: of a service, and through nginx."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack
from http.client import HTTPResponse
from itertools import product
from pathlib import Path

import msgspec
import pytest

from common.runtime import Platform
from tests.cluster import NGINX, NO_NGINX, Gateway
from tests.harness import ServiceProcess

ANSWER_SECONDS = 60.0
PART = b" " * 65_536
PARTS = 320
"""More than a connection holds that nobody reads from, and more than the service takes."""
ROUNDS = 3
"""Through nginx an answer that may be lost is lost in two of three."""


@pytest.fixture(params=["service", "nginx"])
async def address(request: pytest.FixtureRequest, platform: Platform, home: Path) -> AsyncIterator[tuple[str, int]]:
    """Where a service is asked: itself, or the gateway in front of it."""
    if request.param == "nginx" and not NGINX:
        pytest.skip(NO_NGINX)
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(ServiceProcess("tickets", platform.settings, home))
        port = process.port
        if request.param == "nginx":
            folder = home / "gateway"
            folder.mkdir()
            gateway = await stack.enter_async_context(Gateway(folder, {"tickets": [f"127.0.0.1:{port}"]}))
            port = int(gateway.url.rpartition(":")[2])
        yield "127.0.0.1", port


def chunks(parts: Iterable[bytes]) -> Iterator[bytes]:
    """As `Transfer-Encoding: chunked` has them."""
    for part in parts:
        yield b"%x\r\n%b\r\n" % (len(part), part)
    yield b"0\r\n\r\n"


def told(address: tuple[str, int], *headers: bytes) -> tuple[int, str, bytes]:
    """What somebody is told who reads nothing before all is sent: the status, the kind of the body, and the body."""
    length = b"Content-Length: %d" % (PARTS * len(PART))
    chunked = b"Transfer-Encoding: chunked" in headers
    head = [b"POST /api/tickets HTTP/1.1", b"Host: localhost", b"Content-Type: application/json", *headers]
    parts = [PART] * PARTS
    with socket.create_connection(address, timeout=ANSWER_SECONDS) as connection:
        connection.sendall(b"\r\n".join([*head, *([] if chunked else [length]), b"", b""]))
        for part in chunks(parts) if chunked else parts:
            connection.sendall(part)
        with HTTPResponse(connection) as answer:
            answer.begin()
            return answer.status, answer.headers.get_content_type(), answer.read()


async def test_who_sends_all_of_a_body_that_is_refused_reads_why(address: tuple[str, int]) -> None:
    ada, nobody = (413, b"Authorization: Bearer dev:ada"), (401, b"Authorization: nobody")
    framed = b"X-Framed: by its length", b"Transfer-Encoding: chunked"
    for (status, who), way, kept, _ in product((ada, nobody), framed, (b"keep-alive", b"close"), range(ROUNDS)):
        found, kind, body = await asyncio.to_thread(told, address, who, way, b"Connection: " + kept)
        assert (found, kind) == (status, "application/problem+json"), (body, way, kept)
        assert msgspec.json.decode(body)["status"] == status
