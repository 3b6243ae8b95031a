"""How long after a reservation expires an open page is told that its seats are available again."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from statistics import quantiles

import httpx
import msgspec

from common.clock import now
from tests.benchmarks.process import Served, serving
from tests.benchmarks.row import Measured, Row, Scene, Target

SAM, ADA = ({"Authorization": f"Bearer dev:{name}"} for name in ("sam", "ada"))
SHOW = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": 2, "max_per_order": 2}
HOLD_SECONDS = 1
PROMISED_MS = 200.0


async def measure(scene: Scene) -> Measured:
    """The 99th percentile of lateness, in milliseconds, over many tickets and several reservations of each."""
    pages, turns = scene.size(20, 5), scene.size(10, 2)
    async with scene.system() as platform:
        module = ("services.cli.main", "serve", "tickets", "orders", "expiration")
        async with serving(module, platform.settings, scene.home) as served:
            scene.tell(f"{pages} pages, and {turns} reservations on each that expire")
            late = [
                each for page in await asyncio.gather(*(watch(served, turns) for _ in range(pages))) for each in page
            ]
    percentiles = quantiles(late, n=100)
    details = {"expired": len(late), "p50_ms": percentiles[49], "longest_ms": max(late), "pages": pages}
    return Measured("ms", [percentiles[98]], missing="", details=details)


async def watch(served: Served, turns: int) -> Sequence[float]:
    """A page of a ticket whose seats are all reserved, again and again: how late it is told that they are not."""
    late: list[float] = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", timeout=30) as http:
        ticket_id = (await http.post("/api/tickets", json=SHOW, headers=SAM)).json()["id"]
        async with http.stream("GET", "/api/tickets/stream", params={"id": ticket_id}) as page:
            lines = page.aiter_lines()
            await available(lines, 2)
            for _ in range(turns):
                hold = {"ticket_id": ticket_id, "quantity": 2, "hold_seconds": HOLD_SECONDS}
                order = (await http.post("/api/orders", json=hold, headers=ADA)).json()
                await available(lines, 0)
                await available(lines, 2)
                late.append(1000 * (now() - datetime.fromisoformat(order["expires_at"])).total_seconds())
    return late


async def available(lines: AsyncIterator[str], wanted: int) -> None:
    """Wait until the page is told that so many are left."""
    async with asyncio.timeout(20):
        async for line in lines:
            if line.startswith("data: ") and msgspec.json.decode(line[6:])["available"] == wanted:
                return
    raise RuntimeError("the page was told no more")


AVAILABILITY = Row(
    "availability",
    "a reservation expires, to the open page (p99)",
    "-",
    Target(f"p99 <= {PROMISED_MS:.0f} ms", lambda measured: measured.ours[0] <= PROMISED_MS),
    measure,
)
