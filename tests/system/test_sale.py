"""A whole sale, over HTTP, with every service as a process of its own."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from common.clock import now
from common.runtime import Platform
from tests.harness import ServiceProcess, eventually

SELLER = {"Authorization": "Bearer dev:sam"}
ADA = {"Authorization": "Bearer dev:ada"}
BOB = {"Authorization": "Bearer dev:bob"}
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 3}


@pytest.fixture
async def shop(platform: Platform, home: Path) -> AsyncIterator[tuple[str, str]]:
    """The addresses of tickets and orders."""
    async with AsyncExitStack() as stack:
        names = ("tickets", "orders", "expiration")
        running = [await stack.enter_async_context(ServiceProcess(name, platform.settings, home)) for name in names]
        yield running[0].url, running[1].url


async def test_one_buyer_pays_and_another_lets_it_expire(shop: tuple[str, str]) -> None:
    tickets, orders = shop
    async with httpx.AsyncClient(timeout=10) as http:
        listed = await http.post(f"{tickets}/api/tickets", json=SHOW, headers=SELLER)
        assert listed.status_code == 201
        ticket = f"{tickets}{listed.headers['location']}"
        ticket_id = listed.json()["id"]

        bought = await http.post(f"{orders}/api/orders", json={"ticket_id": ticket_id, "quantity": 2}, headers=ADA)
        assert bought.status_code == 201
        too_many = await http.post(f"{orders}/api/orders", json={"ticket_id": ticket_id, "quantity": 2}, headers=BOB)
        assert (too_many.status_code, too_many.json()["available"]) == (409, 1)
        short = {"ticket_id": ticket_id, "quantity": 1, "hold_seconds": 1}
        held = await http.post(f"{orders}/api/orders", json=short, headers=BOB)
        assert held.status_code == 201
        await eventually(lambda: available(http, ticket), 0)

        payment = f"{orders}{bought.headers['location']}/payment"
        declined = await http.post(payment, json={"token": "tok_declined"}, headers=ADA)
        assert declined.status_code == 402
        paid = await http.post(payment, json={"token": "tok_ok"}, headers=ADA)
        assert (paid.status_code, paid.json()["status"]) == (200, "complete")
        again = await http.post(payment, json={"token": "tok_ok"}, headers=ADA)
        assert again.status_code == 409

        await eventually(lambda: available(http, ticket), 1)
        lost = (await http.get(f"{orders}{held.headers['location']}", headers=BOB)).json()
        assert (lost["status"], lost["reason"]) == ("cancelled", "expired")
        assert lost["expires_at"] <= lost["closed_at"] <= now().isoformat()
        assert (await http.get(f"{orders}{held.headers['location']}", headers=ADA)).status_code == 404


async def available(http: httpx.AsyncClient, ticket: str) -> int:
    return int((await http.get(ticket)).json()["available"])
