"""Nobody misses a notification, whatever is killed and however they listen."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from common.events import NotificationRaised
from common.runtime import Platform
from services.cli.servers import NatsServer
from tests.facts import whole
from tests.harness import ServiceProcess, eventually

ORDERS = 240
SEED = 4
SAM = {"Authorization": "Bearer dev:sam"}
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 1_000_000, "max_per_order": 2}


class Listener:
    """Somebody on a bad connection: each lasts a moment, and each may be of another kind."""

    def __init__(self, number: int, url: str, http: httpx.AsyncClient) -> None:
        self.user = f"user{number}"
        self.heard: list[int] = []  # cursors, without repeats
        self.missed = 0  # times that it was told that it missed something
        self._rng = random.Random(f"{SEED} {number}")  # noqa: S311
        self._url = url
        self._http = http
        self._headers = {"Authorization": f"Bearer dev:{self.user}"}
        self._after = 0

    async def listen(self) -> None:
        """Until cancelled."""
        while True:
            way = self._rng.choice([self._socket, self._stream, self._poll])
            with suppress(OSError, httpx.HTTPError, WebSocketException, TimeoutError):
                async with asyncio.timeout(self._rng.uniform(0.5, 3)):
                    async with aclosing(way()) as messages:
                        async for message in messages:
                            self._take(message)
            await asyncio.sleep(self._rng.uniform(0, 0.3))

    def _take(self, message: dict[str, Any]) -> None:
        if "recovered" in message:
            self.missed += not message["recovered"]
            self._after = max(self._after, message["cursor"])
        elif "notification" in message and (cursor := message["notification"]["cursor"]) > self._after:
            self.heard.append(cursor)
            self._after = cursor

    async def _socket(self) -> AsyncGenerator[dict[str, Any], None]:
        address = f"ws{self._url.removeprefix('http')}/api/notifications/ws?after={self._after}"
        async with connect(address, additional_headers=self._headers, open_timeout=5, close_timeout=0.1) as socket:
            async for text in socket:
                yield msgspec.json.decode(text)
                if self._rng.random() < 0.5:
                    await socket.send(msgspec.json.encode({"ack": self._after}).decode())

    async def _stream(self) -> AsyncGenerator[dict[str, Any], None]:
        headers = self._headers | {"Last-Event-ID": str(self._after)}
        async with self._http.stream("GET", "/api/notifications/stream", headers=headers) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    yield msgspec.json.decode(line.removeprefix("data: "))

    async def _poll(self) -> AsyncGenerator[dict[str, Any], None]:
        while True:
            params = {"after": self._after, "wait": 2}
            answer = await self._http.get("/api/notifications", params=params, headers=self._headers)
            if answer.status_code != 200:
                return
            news = answer.json()
            for item in news["items"]:
                yield {"notification": item}
            yield {"recovered": news["recovered"], "cursor": news["cursor"]}


async def buy(shop: httpx.AsyncClient, ticket_id: str, people: int) -> None:
    """Orders of so many people, and each is given back."""
    rng = random.Random(SEED)  # noqa: S311

    async def one(number: int) -> None:
        user = {"Authorization": f"Bearer dev:user{rng.randrange(people)}", "Idempotency-Key": str(number)}
        wanted = {"ticket_id": ticket_id, "quantity": 1}
        while True:
            with suppress(httpx.HTTPError):
                placed = await shop.post("/api/orders", json=wanted, headers=user)
                if placed.status_code == 201:
                    break
            await asyncio.sleep(0.2)
        while True:
            with suppress(httpx.HTTPError):
                back = await shop.delete(f"/api/orders/{placed.json()['id']}", headers=user)
                if back.status_code == 200:
                    break
            await asyncio.sleep(0.2)

    for number in range(0, ORDERS, 8):
        await asyncio.gather(*(one(number + n) for n in range(8)))
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("people", [50, pytest.param(200, marks=pytest.mark.faults)])
async def test_whoever_listens_misses_nothing_whatever_is_killed(
    platform: Platform, nats: NatsServer, home: Path, people: int
) -> None:
    shop = ServiceProcess("tickets orders expiration", platform.settings, home)
    teller = ServiceProcess("notification", platform.settings, home)
    limits = httpx.Limits(max_connections=None)
    async with (
        shop,
        teller,
        httpx.AsyncClient(base_url=shop.url, timeout=30) as at_shop,
        httpx.AsyncClient(base_url=teller.url, timeout=10, limits=limits) as at_teller,
    ):
        made = await at_shop.post("/api/tickets", json=SHOW, headers=SAM)
        listeners = [Listener(number, teller.url, at_teller) for number in range(people)]
        listening = [asyncio.create_task(listener.listen()) for listener in listeners]
        buying = asyncio.create_task(buy(at_shop, made.json()["id"], people))
        for turn in range(4):
            await asyncio.sleep(1.5)
            if turn == 2:
                nats.kill()
                await nats.start()
            else:
                await teller.kill()
                await teller.start()
        await asyncio.wait_for(buying, 120)

        async def told() -> dict[str, list[int]]:
            """Everything that was raised, by user."""
            by_user: dict[str, list[int]] = defaultdict(list)
            for recorded in await whole(platform.event_log, "NOTIFICATIONS"):
                if isinstance(recorded.event, NotificationRaised):
                    by_user[recorded.event.user_id].append(recorded.sequence)
            return by_user

        async def count() -> int:
            return sum(map(len, (await told()).values()))

        await eventually(count, 2 * ORDERS, within=60)
        raised = await told()

        async def unheard() -> int:
            return sum(each.heard != raised[each.user] for each in listeners)

        await eventually(unheard, 0, within=60)
        for task in listening:
            task.cancel()
        await asyncio.wait(listening)
        assert all(task.cancelled() for task in listening), "none of them failed"
        assert sum(listener.missed for listener in listeners) == 0
