"""What open pages are told: tickets as they change, over server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import msgspec
import pytest
from websockets.asyncio.client import connect

from common.runtime import Platform
from services.tickets.live import TOLD_AGAIN
from tests.harness import ServiceProcess, eventually, figure

SAM, ADA = ({"Authorization": f"Bearer dev:{name}"} for name in ("sam", "ada"))
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 10, "max_per_order": 10}


@pytest.fixture
async def shop(platform: Platform, home: Path) -> AsyncIterator[httpx.AsyncClient]:
    process = ServiceProcess("tickets orders expiration", platform.settings, home)
    async with process, httpx.AsyncClient(base_url=process.url, timeout=20) as client:
        yield client


async def listed(shop: httpx.AsyncClient) -> str:
    made = await shop.post("/api/tickets", json=SHOW, headers=SAM)
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def reserve(shop: httpx.AsyncClient, ticket_id: str, quantity: int, **more: object) -> dict[str, Any]:
    wanted = {"ticket_id": ticket_id, "quantity": quantity, **more}
    made = await shop.post("/api/orders", json=wanted, headers=ADA)
    assert made.status_code == 201, made.text
    order: dict[str, Any] = made.json()
    return order


async def told(shop: httpx.AsyncClient, *ticket_ids: str) -> AsyncGenerator[dict[str, Any], None]:
    """The tickets that a page is told."""
    async with shop.stream("GET", "/api/tickets/stream", params={"id": list(ticket_ids)}) as stream:
        assert (stream.status_code, stream.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                yield msgspec.json.decode(line.removeprefix("data: "))


async def until(tickets: AsyncIterator[dict[str, Any]], available: int) -> list[int]:
    """What a page is told is available, up to this."""
    seen: list[int] = []
    async with asyncio.timeout(20):
        async for ticket in tickets:
            seen.append(ticket["available"])
            if seen[-1] == available:
                break
    return seen


async def test_a_page_is_told_how_it_is_and_then_each_change(shop: httpx.AsyncClient) -> None:
    ticket_id = await listed(shop)
    async with aclosing(told(shop, ticket_id)) as tickets:
        assert await until(tickets, 10) == [10]
        order = await reserve(shop, ticket_id, 4)
        assert await until(tickets, 6) == [6]
        await shop.delete(f"/api/orders/{order['id']}", headers=ADA)
        assert await until(tickets, 10) == [10]


async def test_a_reservation_that_expires_is_told_as_available_again(shop: httpx.AsyncClient) -> None:
    ticket_id = await listed(shop)
    async with aclosing(told(shop, ticket_id)) as tickets:
        assert await until(tickets, 10) == [10]
        await reserve(shop, ticket_id, 10, hold_seconds=1)
        assert await until(tickets, 0) == [0]
        assert await until(tickets, 10) == [10]


async def test_a_change_of_the_listing_and_its_end_are_told(shop: httpx.AsyncClient) -> None:
    ticket_id = await listed(shop)
    async with aclosing(told(shop, ticket_id)) as tickets:
        first = await anext(tickets)
        headers = SAM | {"If-Match": f'"{first["version"]}"'}
        changed = await shop.patch(f"/api/tickets/{ticket_id}", json={"title": "Matinée"}, headers=headers)
        assert changed.status_code == 200, changed.text
        assert (await anext(tickets))["title"] == "Matinée"
        await shop.delete(f"/api/tickets/{ticket_id}", headers=SAM)
        last = await anext(tickets)
        assert (last["status"], last["available"]) == ("withdrawn", 0)


async def test_many_changes_are_told_as_few_and_the_last_is_among_them(shop: httpx.AsyncClient) -> None:
    ticket_id = await listed(shop)
    async with aclosing(told(shop, ticket_id)) as tickets:
        assert await until(tickets, 10) == [10]
        began = monotonic()
        for _ in range(20):
            order = await reserve(shop, ticket_id, 10)
            await shop.delete(f"/api/orders/{order['id']}", headers=ADA)
        await reserve(shop, ticket_id, 7)
        seen = await until(tickets, 3)
        assert len(seen) <= 1 + (monotonic() - began) / TOLD_AGAIN, "a ticket is told a few times a second at most"


async def test_a_page_is_told_only_of_what_it_shows_and_one_that_shows_nothing_of_all(shop: httpx.AsyncClient) -> None:
    mine, other = await listed(shop), await listed(shop)
    async with aclosing(told(shop, mine)) as tickets, aclosing(told(shop)) as everything:
        assert (await anext(tickets))["id"] == mine
        hearing = asyncio.create_task(until(everything, 9))
        await eventually(lambda: open_connections(shop), 2)
        await reserve(shop, other, 1)
        assert await hearing == [9]
        await reserve(shop, mine, 1)
        assert (await anext(tickets))["id"] == mine


async def test_a_page_shows_several_tickets(shop: httpx.AsyncClient) -> None:
    mine = [await listed(shop) for _ in range(3)]
    await listed(shop)
    async with aclosing(told(shop, *mine)) as tickets:
        assert {(await anext(tickets))["id"] for _ in mine} == set(mine)
        await reserve(shop, mine[1], 1)
        assert (await anext(tickets))["id"] == mine[1]


async def test_pages_leave_room_for_people(platform: Platform, home: Path) -> None:
    process = ServiceProcess("tickets notification", platform.settings, home, BOXOFFICE_CONNECTIONS="5")
    async with process, httpx.AsyncClient(base_url=process.url, timeout=20) as client, AsyncExitStack() as pages:
        ticket_id = await listed(client)
        for _ in range(4):
            await anext(await pages.enter_async_context(aclosing(told(client, ticket_id))))
        assert (await client.get("/api/tickets/stream")).status_code == 503
        address = f"ws{process.url.removeprefix('http')}/api/notifications/ws"
        async with connect(address, additional_headers=ADA) as socket:
            assert msgspec.json.decode(await socket.recv())["type"] == "resumed"


async def test_pages_come_back_at_different_times_when_the_process_stops(platform: Platform, home: Path) -> None:
    process = ServiceProcess("tickets", platform.settings, home)
    async with process, httpx.AsyncClient(base_url=process.url, timeout=20) as client:
        async with client.stream("GET", "/api/tickets/stream") as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == "retry: 1000"
            await process.stop()
            told = [line async for line in lines if line.startswith("retry: ")]
        assert 500 <= int(told[-1].removeprefix("retry: ")) < 3_500


async def open_connections(shop: httpx.AsyncClient) -> int:
    """How many connections stay open, as the metrics have it."""
    return int(figure((await shop.get("/metrics")).text, "boxoffice_open_connections", transport="sse"))


async def test_pages_that_close_leave_nothing_behind(shop: httpx.AsyncClient) -> None:
    ticket_id = await listed(shop)
    for _ in range(20):
        async with aclosing(told(shop, ticket_id)) as tickets:
            await anext(tickets)
    await eventually(lambda: open_connections(shop), 0)


@pytest.mark.parametrize("ids", [["none"], ["01920c3c-7a3e-7cc4-8a3e-3d1f0c5b9a10"] * 101])
async def test_what_is_no_list_of_tickets_is_refused(shop: httpx.AsyncClient, ids: list[str]) -> None:
    refused = await shop.get("/api/tickets/stream", params={"id": ids})
    assert refused.status_code == 400
    assert refused.json()["errors"][0]["field"] == "id"


async def test_no_more_connections_stay_open_than_may(platform: Platform, home: Path) -> None:
    process = ServiceProcess("tickets", platform.settings, home, BOXOFFICE_CONNECTIONS="1")
    async with process, httpx.AsyncClient(base_url=process.url, timeout=20) as client:
        ticket_id = await listed(client)
        async with aclosing(told(client, ticket_id)) as tickets:
            await anext(tickets)
            refused = await client.get("/api/tickets/stream")
            assert (refused.status_code, "may stay open" in refused.json()["detail"]) == (503, True)
        await eventually(lambda: open_connections(client), 0)
        async with aclosing(told(client, ticket_id)) as tickets:
            assert (await anext(tickets))["id"] == ticket_id


async def test_open_pages_end_when_the_service_stops_and_it_stops_cleanly(platform: Platform, home: Path) -> None:
    process = ServiceProcess("tickets", platform.settings, home)
    async with process, httpx.AsyncClient(base_url=process.url, timeout=20) as client:
        ticket_id = await listed(client)
        tickets = told(client, ticket_id)
        assert (await anext(tickets))["available"] == 10
        stopping = asyncio.create_task(process.stop())
        assert [ticket async for ticket in tickets] == []
        assert await stopping == 0
    assert "Traceback" not in process.tail()
