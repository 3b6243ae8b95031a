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
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from common.errors import Invalid
from common.runtime import Platform
from services.cli.notifications import notifications
from services.cli.notifications import tail as follow
from services.cli.who import Refusal, Who
from tests.harness import ServiceProcess, eventually

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
    async with ServiceProcess("notification", platform.settings, home, BOXOFFICE_AUTH="on") as teller:
        events = notifications(teller.url, Who("ada"), None, Console(file=io.StringIO()))
        with pytest.raises(Refusal, match="does not let ada in: Authorization: Expected") as refusal:
            await anext(events)
        assert "put an API key into BOXOFFICE_API_KEY" in refusal.value.detail


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

        await say(type="resumed", recovered=True, cursor=4 if len(came) == 1 else 6, log="19a")
        await say(type="ping")
        for cursor in (5, 6, 5) if len(came) == 1 else (6, 7):
            await tell(cursor)
        await say(type="ended", reason="Stopping.", retry_ms=900)

    async with serve(teller, "127.0.0.1", 0) as server:
        (door,) = server.sockets
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
        async with aclosing(notifications(url, Who("ada"), None, Console(file=io.StringIO()))) as events:
            assert [(await anext(events))["cursor"] for _ in range(3)] == [5, 6, 7]
    assert [place for place, _ in came] == ["ws", "ws?after=6&log=19a"]
    assert came[1][1] - came[0][1] >= 0.9, "as long as it was asked to wait"


class Heard:
    """What a tail says of its connection, line by line."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.console = Console(file=self.file)

    async def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()


async def test_a_tail_says_once_why_there_is_no_room_for_it(
    platform: Platform, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    enough = asyncio.Event()

    async def pause(_: float) -> None:
        nonlocal tries
        tries += 1
        if tries == 3:
            enough.set()
        await asyncio.sleep(0.01)

    monkeypatch.setattr("services.cli.notifications.sleep", pause)
    one = {"BOXOFFICE_CONNECTIONS_PER_USER": "1"}
    async with ServiceProcess("notification", platform.settings, home, **one) as teller:
        heard = Heard()
        address = f"ws{teller.url.removeprefix('http')}/api/notifications/ws"
        async with connect(address, additional_headers=ADA) as socket:
            await asyncio.wait_for(socket.recv(), 20)
            tailing = asyncio.create_task(follow(teller.url, Who("ada"), None, heard.console))
            await asyncio.wait_for(enough.wait(), 20)
        why = "You have 1 connections open here, which is all that you may."
        said = ["what ada is told; Ctrl-C ends it", f"The connection to {teller.url} is lost; trying again: {why}"]
        await eventually(heard.lines, [*said, "connected again"])
        tailing.cancel()
        await asyncio.wait([tailing])


async def test_a_tail_says_what_its_server_says_and_that_the_log_was_replaced() -> None:
    beginnings = [
        {"recovered": False, "cursor": 4, "log": "19a"},
        {"recovered": False, "cursor": 9, "log": "19b"},
        {"recovered": True, "cursor": 9, "log": "19b"},
    ]
    left = list(beginnings)

    async def teller(socket: ServerConnection) -> None:
        messages: list[dict[str, object]] = [{"type": "resumed"} | left.pop(0)]
        messages += [{"type": "wrong", "detail": "ack: No [such]"}] * 2
        messages += [{"type": "ended", "reason": "Too slow [13].", "retry_ms": 1}] if left else []
        for message in messages:
            await socket.send(msgspec.json.encode(message).decode())
        if not left:
            notification = {"cursor": 10}
            await socket.send(msgspec.json.encode({"type": "notification", "notification": notification}).decode())
            await socket.wait_closed()
        elif len(left) == 1:
            await socket.close(1013, "Too slow [13].")

    async with serve(teller, "127.0.0.1", 0) as server:
        (door,) = server.sockets
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
        heard = Heard()
        async with aclosing(notifications(url, Who("ada"), None, heard.console)) as events:
            assert (await anext(events))["cursor"] == 10
    lost = [f"The connection to {url} is lost; trying again: Too slow [13].", "connected again"]
    replaced = "The log was replaced: what the new one has had until now is in the inbox."
    missed = ["Some were missed: they are in the inbox.", f"{url} says: ack: No [such]"]
    assert await heard.lines() == [*missed, *lost, replaced, *lost]


@pytest.mark.parametrize("url", ["ftp://x", "x", "127.0.0.1:8080", "http://", "http://x:port", "http://[x", ""])
async def test_a_tail_needs_an_address_that_is_one(url: str) -> None:
    with pytest.raises(Invalid, match=r"--url: An address as .* is needed, not"):
        await anext(notifications(url, Who("ada"), None, Console(file=io.StringIO())))
