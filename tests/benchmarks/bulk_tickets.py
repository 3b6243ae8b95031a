"""Tickets listed by a file, from its upload until all are on sale, against one POST /api/tickets for each."""

import asyncio
from time import perf_counter

import asyncpg
import httpx
import msgspec

from tests.benchmarks.bulk import ADA, WITHIN, submit
from tests.benchmarks.process import serving
from tests.benchmarks.row import Measured, Row, Scene, alternate, at_least, until

BATCH = ("services.cli.main", "serve", "batch")
TICKETS = ("services.cli.main", "serve", "tickets")
CLIENTS = 16
LISTED = "select count(*) from tickets.tickets where title like $1"


class Seller:
    """One keep-alive connection, so lean that the service is what is measured."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def sell(self, titles: list[str]) -> None:
        """Put tickets on sale, one after the other. Raises RuntimeError for an answer that is not 201."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        for title in titles:
            body = msgspec.json.encode({"title": title, "price": 2500, "currency": "EUR", "quantity": 10})
            writer.write(
                b"POST /api/tickets HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer dev:ada\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            if not head.startswith(b"http/1.1 201"):
                raise RuntimeError(f"a ticket was not put on sale: {head.decode()}")
        writer.close()


async def measure(scene: Scene) -> Measured:
    """Tickets per second."""
    count, sample = scene.size(20_000, 1_000), scene.size(2_000, 200)
    turns = iter(range(100))
    async with (
        scene.system() as platform,
        serving(BATCH, platform.settings, scene.home) as batch,
        serving(TICKETS, platform.settings, scene.home) as tickets,
        asyncpg.create_pool(platform.settings.database_url, min_size=1, max_size=1) as pool,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{tickets.port}", headers=ADA, timeout=WITHIN) as http,
    ):

        def titles_of(turn: int, many: int) -> list[str]:
            return [f"Show {turn}-{number}." for number in range(many)]

        async def see_all(turn: int, titles: list[str]) -> None:
            """Wait until all of a turn are listed, and look at its last one as a buyer would."""

            async def listed() -> bool:
                return bool(await pool.fetchval(LISTED, f"Show {turn}-%") == len(titles))

            await until(listed, "tickets listed", WITHIN)
            page = (await http.get("/api/tickets", params={"q": titles[-1]})).json()
            if [ticket["title"] for ticket in page["items"]] != titles[-1:]:
                raise RuntimeError(f"the last ticket is not on sale: {page}")

        async def ours() -> float:
            turn = next(turns)
            titles = titles_of(turn, count)
            lines = ["title,price,currency,quantity", *(f"{title},2500,EUR,10" for title in titles)]
            began = perf_counter()
            await submit(batch, "tickets.create", lines)
            await see_all(turn, titles)
            return count / (perf_counter() - began)

        async def one_by_one() -> float:
            turn = next(turns)
            titles = titles_of(turn, sample)
            began = perf_counter()
            await asyncio.gather(*(Seller(tickets.port).sell(titles[n::CLIENTS]) for n in range(CLIENTS)))
            await see_all(turn, titles)
            return sample / (perf_counter() - began)

        figures = await alternate(scene, ours, one_by_one)
    return Measured("/s", *figures, details={"tickets": count, "one_by_one": sample, "clients": CLIENTS})


BULK_TICKETS = Row(
    "bulk-tickets",
    "tickets.create, CSV upload to listed",
    f"one POST /api/tickets for each, {CLIENTS} clients",
    at_least(1),
    measure,
)
