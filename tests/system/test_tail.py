"""`boxoffice notifications tail`, whatever happens to the server that it listens to."""

import asyncio
import io
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
from rich.console import Console
from websockets.asyncio.server import ServerConnection, serve

from common.errors import Unavailable
from common.runtime import Platform
from services.cli.notifications import notifications
from tests.harness import ServiceProcess

SAM, ADA = ({"Authorization": f"Bearer dev:{name}"} for name in ("sam", "ada"))
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 1000, "max_per_order": 100}


class Tail:
    """The command, and what it prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout
        return (await asyncio.wait_for(self.process.stdout.readline(), 30)).decode().strip()

    async def told(self) -> str:
        """The next line that is no word about the connection."""
        while "You hold" not in (line := await self.line()):
            assert "connect" in line, line
        return line.partition("  ")[2].strip().partition(" until")[0]


@asynccontextmanager
async def tail(url: str, *more: str) -> AsyncIterator[Tail]:
    command = (sys.executable, "-m", "services.cli.main", "notifications", "tail", "--url", url, *more)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        yield Tail(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_tail_misses_nothing_while_its_server_is_killed_or_stopped(platform: Platform, home: Path) -> None:
    shop = ServiceProcess("tickets orders expiration", platform.settings, home)
    teller = ServiceProcess("notification", platform.settings, home)
    async with shop, teller, httpx.AsyncClient(base_url=shop.url, timeout=30) as http, tail(teller.url + "/") as ada:
        ticket_id = (await http.post("/api/tickets", json=SHOW, headers=SAM)).json()["id"]
        quantity = 0

        async def order() -> None:
            nonlocal quantity
            quantity += 1
            placed = await http.post("/api/orders", json={"ticket_id": ticket_id, "quantity": quantity}, headers=ADA)
            assert placed.status_code == 201, placed.text

        assert await ada.line() == "what ada is told; Ctrl-C ends it"
        for end in (teller.kill, teller.stop, teller.kill):
            await order()
            assert await ada.told() == f"You hold {quantity} of Opening night"
            await end()
            await order()
            await order()
            await teller.start()
            for expected in (quantity - 1, quantity):
                assert await ada.told() == f"You hold {expected} of Opening night"


async def test_a_tail_says_why_it_is_not_let_in(platform: Platform, home: Path) -> None:
    async with ServiceProcess("notification", platform.settings, home, BOXOFFICE_AUTH="off") as teller:
        events = notifications(teller.url, "ada", None, Console(file=io.StringIO()))
        with pytest.raises(Unavailable, match="does not let ada in: Nobody can log in here: BOXOFFICE_AUTH is off"):
            await anext(events)


async def test_a_tail_shows_each_once_and_comes_back_when_it_was_asked_to() -> None:
    came: list[tuple[str, float]] = []
    loop = asyncio.get_running_loop()

    async def teller(socket: ServerConnection) -> None:
        assert socket.request
        came.append((socket.request.path.rpartition("/")[2], loop.time()))

        async def say(**message: object) -> None:
            await socket.send(msgspec.json.encode(message).decode())

        async def tell(cursor: int) -> None:
            await say(type="notification", notification={"cursor": cursor}, attempt=1)
            assert msgspec.json.decode(await socket.recv())["ack"] >= cursor

        await say(type="resumed", recovered=True, cursor=4 if len(came) == 1 else 6)
        await say(type="ping")
        for cursor in (5, 6, 5) if len(came) == 1 else (6, 7):
            await tell(cursor)
        await say(type="ended", reason="Stopping.", retry_ms=900)

    async with serve(teller, "127.0.0.1", 0) as server:
        (door,) = server.sockets
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
        async with aclosing(notifications(url, "ada", None, Console(file=io.StringIO()))) as events:
            assert [(await anext(events))["cursor"] for _ in range(3)] == [5, 6, 7]
    assert [place for place, _ in came] == ["ws", "ws?after=6"]
    assert came[1][1] - came[0][1] >= 0.9, "as long as it was asked to wait"
