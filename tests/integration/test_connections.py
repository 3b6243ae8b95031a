"""Whoever comes and goes, however they go, leaves nothing behind."""

import asyncio
import gc
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, closing

import httpx
import msgspec
import pytest
from nats.aio.subscription import Subscription
from websockets.asyncio.client import connect

from common.doors import Door
from common.http import create_app
from common.live import WebSockets
from common.runtime import Platform
from services.cli.system import listen, server_of, url_of
from services.notification import app as notification
from services.notification.feed import Session
from services.notification.settings import NotificationSettings
from services.tickets import app as tickets
from services.tickets.live import Page
from tests.harness import eventually, figure

VISITS, AT_ONCE, SEED = 1_000, 50, 4
OF_A_VISIT = (Session, Page, WebSockets, Door)
HEAD = "GET {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer dev:{}\r\n{}\r\n"
UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
DOORS = {
    "/api/notifications/ws": (UPGRADE, b'"resumed"'),
    "/api/notifications/stream": ("", b'"recovered"'),
    "/api/tickets/stream": ("", b"retry: 1000"),
    "/api/notifications?after=0&wait=60": ("", None),
}
"""The doors that stay open: what they want to be told, and what they answer at once."""


@pytest.fixture
async def url(platform: Platform) -> AsyncIterator[str]:
    """Where notifications and tickets are served by this very process."""
    settings = msgspec.convert(msgspec.structs.asdict(platform.settings), NotificationSettings)
    settings = msgspec.structs.replace(settings, connections_per_user=100)
    async with AsyncExitStack() as stack:
        services = [
            await stack.enter_async_context(notification.create_service(platform, settings)),
            await stack.enter_async_context(tickets.create_service(platform, settings)),
        ]
        server = server_of(create_app(services, settings, connections=platform.connections))
        with closing(listen("127.0.0.1", 0)) as door:
            serving = asyncio.create_task(server.serve(sockets=[door]))
            async with httpx.AsyncClient(base_url=url_of(door)) as http:

                async def status() -> int:
                    return (await http.get("/health/ready")).status_code

                await eventually(status, 200)
            yield url_of(door)
            server.should_exit = True
            await serving


class Visitor:
    """Somebody who opens connections, and leaves in every way there is."""

    def __init__(self, number: int, url: str, http: httpx.AsyncClient) -> None:
        self._user = f"user{number % 20}"
        self._rng = random.Random(f"{SEED} {number}")  # noqa: S311
        self._address = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._url = url
        self._http = http

    async def visit(self) -> str:
        """One connection; what sort it was."""
        ways = [self.leaves_by_the_door, self.is_cut, self.leaves_at_once, self.asks_again_meanwhile]
        way = self._rng.choices(ways, weights=[3, 4, 2, 1])[0]
        return f"{way.__name__} {await way()}"

    async def leaves_by_the_door(self) -> str:
        """With the good-bye of its transport."""
        headers = {"Authorization": f"Bearer dev:{self._user}"}
        path = self._rng.choice(list(DOORS))
        if path.endswith("/ws"):
            address = f"ws{self._url.removeprefix('http')}{path}"
            async with connect(address, additional_headers=headers) as websocket:
                await websocket.recv()
                await websocket.send('{"ack": 0}')
        elif path.endswith("stream"):
            async with self._http.stream("GET", path, headers=headers) as stream:
                await anext(stream.aiter_lines())
        else:
            await self._http.get(path.replace("wait=60", "wait=0"), headers=headers)
        return path

    async def is_cut(self) -> str:
        """By a reset, once it has been let in."""
        return await self._cut(wait=True)

    async def leaves_at_once(self) -> str:
        """By a reset, maybe before anybody has looked."""
        return await self._cut(wait=False)

    async def asks_again_meanwhile(self) -> str:
        """Says something that makes no sense, and is cut."""
        return await self._cut(wait=True, more=b"\x81\x82\0\0\0\0{}" if self._rng.random() < 0.5 else b"\xff" * 40)

    async def _cut(self, *, wait: bool, more: bytes = b"") -> str:
        path = self._rng.choice(list(DOORS))
        wants, answer = DOORS[path]
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            writer.write(HEAD.format(path, self._user, wants).encode())
            if wait and answer:
                await reader.readuntil(answer)
            writer.write(more)
            await writer.drain()
            # A linger of nothing: the close is a reset.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            writer.transport.abort()
        return path


def kept(*sorts: type) -> Callable[[], Counter[str]]:
    """What there is of each sort."""

    def look() -> Counter[str]:
        gc.collect()
        return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, sorts))

    return look


def tasks() -> Counter[str]:
    """What runs, by what it is."""
    return Counter(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())


def seen(look: Callable[[], Counter[str]]) -> Callable[[], Awaitable[Counter[str]]]:
    async def looked() -> Counter[str]:
        return look()

    return looked


async def open_connections(http: httpx.AsyncClient) -> int:
    """How many connections stay open, as the metrics have it."""
    return int(figure((await http.get("/metrics")).text, "boxoffice_open_connections"))


async def test_a_thousand_that_come_and_go_leave_nothing_behind(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as http:
        await asyncio.gather(
            *(Visitor(number, url, http).visit() for number in range(AT_ONCE))
        )  # what is kept for good
        await eventually(lambda: open_connections(http), 0)
    nobody: Counter[str] = Counter()
    await eventually(seen(kept(*OF_A_VISIT)), nobody)

    async def acknowledging() -> int:
        return tasks()["Receipts.acknowledge"]

    await eventually(acknowledging, 0)  # which outlives the visit that it is of
    subscriptions, running = kept(Subscription)(), tasks()
    ways: Counter[str] = Counter()
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as http:
        for first in range(0, VISITS, AT_ONCE):
            visitors = [Visitor(number, url, http) for number in range(first, first + AT_ONCE)]
            ways.update(await asyncio.gather(*(visitor.visit() for visitor in visitors)))
        await eventually(lambda: open_connections(http), 0)
    assert len(ways) == 4 * len(DOORS), f"not every way was taken: {ways}"
    await eventually(seen(tasks), running)
    await eventually(seen(kept(*OF_A_VISIT)), nobody)
    await eventually(seen(kept(Subscription)), subscriptions)
    assert "Traceback" not in capfd.readouterr().err
