"""`boxoffice demo`: a whole sale over HTTP, told step by step."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
from rich.console import Console

from common.errors import Unavailable
from services.cli.who import Who

HOLD_SECONDS = 5
LONG_ID = re.compile(r"[0-9a-f-]{30}([0-9a-f]{6})")


class Unexpected(Exception):
    """The system answered something else than it should."""


class Shop:
    """The shop as one person after the other uses it."""

    def __init__(self, http: httpx.AsyncClient, console: Console) -> None:
        self._http = http
        self._console = console

    async def ask(self, who: str, method: str, path: str, expect: int, **body: object) -> dict[str, Any]:
        """One request, told in a line. Raises Unexpected, Unavailable where names are not believed."""
        began = time.perf_counter()
        answer = await self._http.request(method, path, json=body or None, headers=Who(who).headers)
        took = (time.perf_counter() - began) * 1000
        colour = "green" if answer.status_code < 400 else "yellow"
        said = " ".join(f"{key}={value}" for key, value in body.items() if key != "ticket_id")
        short = LONG_ID.sub(r"…\1", path)
        self._console.print(
            f"  [bold]{who:<5}[/] {method:<5} {short} [dim]{said}[/]"
            f" → [{colour}]{answer.status_code}[/] [dim]{took:.0f} ms[/]",
            soft_wrap=True,
        )
        told: dict[str, Any] = answer.json()
        if answer.status_code >= 400:
            self._console.print(f"        [{colour}]{told['detail']}[/]")
        if answer.status_code == 401:
            raise Unavailable(
                f"The demo plays {who} and others, whose names are not believed here: it needs a system that runs with "
                "BOXOFFICE_AUTH=dev, as `make up` starts it where no provider to log in with is set."
            )
        if answer.status_code != expect:
            raise Unexpected(f"{method} {path} answered {answer.status_code} instead of {expect}: {told}")
        return told

    def say(self, line: str) -> None:
        """What happens next."""
        self._console.print(f"\n[bold cyan]{line}[/]")


@asynccontextmanager
async def shop_at(url: str, console: Console) -> AsyncIterator[Shop]:
    """The shop at `url`. Raises Unavailable when nobody answers there."""
    async with httpx.AsyncClient(base_url=url, timeout=10) as http:
        try:
            ready = await http.get("/health/ready")
        except httpx.TransportError as error:
            raise Unavailable(f"Nothing answers at {url}. Start it with `make up`, or name it with --url.") from error
        if ready.status_code != 200:
            raise Unavailable(f"{url} is not ready: {ready.text}")
        yield Shop(http, console)


async def demo(url: str, console: Console) -> None:
    """List, reserve, pay, let expire. Raises Unavailable, Unexpected."""
    async with shop_at(url, console) as shop:
        shop.say("Sam sells three seats.")
        seats = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 3}
        ticket = await shop.ask("sam", "POST", "/api/tickets", 201, **seats)
        here = f"/api/tickets/{ticket['id']}"

        shop.say("Ada reserves two; Bob takes the last one, and has a few seconds to pay.")
        wanted = {"ticket_id": ticket["id"]}
        adas = await shop.ask("ada", "POST", "/api/orders", 201, **wanted, quantity=2)
        bobs = await shop.ask("bob", "POST", "/api/orders", 201, **wanted, quantity=1, hold_seconds=HOLD_SECONDS)

        shop.say("Cleo comes too late.")
        await shop.ask("cleo", "POST", "/api/orders", 409, **wanted, quantity=1)

        shop.say("Ada's first card is declined; the second one pays. The money is captured once the log says sold.")
        await shop.ask("ada", "POST", f"/api/orders/{adas['id']}/payment", 402, token="tok_declined")  # noqa: S106
        await shop.ask("ada", "POST", f"/api/orders/{adas['id']}/payment", 200, token="tok_ok")  # noqa: S106

        shop.say("Bob does not pay. JetStream's delayed redelivery is the clock.")
        await countdown(datetime.fromisoformat(bobs["expires_at"]), console)
        lost = await until_over(shop, bobs["id"])
        late = datetime.fromisoformat(lost["closed_at"]) - datetime.fromisoformat(lost["expires_at"])
        console.print(
            f"        {lost['status']} ({lost['reason']}), {late.total_seconds() * 1000:.0f} ms after its time"
        )
        await shop.ask("bob", "POST", f"/api/orders/{bobs['id']}/payment", 409, token="tok_ok")  # noqa: S106

        shop.say("So Cleo gets the seat after all.")
        await shop.ask("cleo", "POST", "/api/orders", 201, **wanted, quantity=1)
        left = await shop.ask("cleo", "GET", here, 200)
        console.print(f"        {left['title']}: {left['available']} of {left['quantity']} left")
        console.print("\n[bold green]That was a sale.[/]")


async def countdown(deadline: datetime, console: Console) -> None:
    """Show the seconds that are left."""
    with console.status("") as status:
        while (left := (deadline - datetime.now(UTC)).total_seconds()) > 0:
            status.update(f"Bob's seat is held for {left:.0f} s more")
            await asyncio.sleep(min(left, 0.2))


async def until_over(shop: Shop, order_id: str) -> dict[str, Any]:
    """Bob looks at his order until it has ended."""
    for _ in range(50):
        order = await shop.ask("bob", "GET", f"/api/orders/{order_id}", 200)
        if order["closed_at"] is not None:
            return order
        await asyncio.sleep(0.1)
    raise Unexpected("the order did not expire within 5 s of its time")
