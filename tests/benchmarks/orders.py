"""POST /api/orders, from the request to an order that its buyer can read."""

import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from statistics import median
from typing import Any, ClassVar
from uuid import UUID

import asyncpg
import msgspec

from common.clock import new_id
from common.runtime import Platform
from common.settings import Settings
from tests.benchmarks import reference
from tests.benchmarks.events import SEATS, SEED, fill, listed
from tests.benchmarks.load import Load, Sold
from tests.benchmarks.process import run, serving
from tests.benchmarks.row import Measured, Row, Scene, alternate, at_least, new_database, until

CONNECTIONS = 64
MANY_TICKETS = 500
WAITING = "select count(*) from outbox where published_at is null"
WRITTEN = "select count(*) from orders"


class Side(ABC):
    """A service that sells, and what is told about each round besides its orders per second."""

    module: ClassVar[Sequence[str]]

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.told: dict[str, list[float]] = {}

    @abstractmethod
    async def list(self, tickets: Sequence[UUID]) -> None:
        """Put tickets on sale, with seats for everybody."""

    @abstractmethod
    async def written(self) -> int:
        """How many orders there are, all rounds together."""

    @abstractmethod
    async def settle(self) -> None:
        """Wait for what goes on after the last answer."""

    def tell(self, **figures: float) -> None:
        """Further figures of this round."""
        for name, figure in figures.items():
            self.told.setdefault(name, []).append(figure)


class Ours(Side):
    """`boxoffice serve orders`."""

    module = ("services.cli.main", "serve", "orders")

    def __init__(self, platform: Platform) -> None:
        super().__init__(platform.settings)
        self._platform = platform
        self._books = 0

    async def list(self, tickets: Sequence[UUID]) -> None:
        end = await self._end() + len(tickets)
        await fill(self._platform.client, "tickets", ((ticket_id, listed(ticket_id)) for ticket_id in tickets))
        self._books += len(tickets)

        async def opened() -> bool:
            return await self._end() == end

        await until(opened, "books opened")

    async def written(self) -> int:
        return await self._end() - self._books

    async def settle(self) -> None:
        """An order that is answered is told."""

    async def _end(self) -> int:
        return (await self._platform.event_log.end("ORDERS")).sequence


class Reference(Side):
    """The service in reference.py."""

    module = ("tests.benchmarks.reference",)

    def __init__(self, settings: Settings, pool: asyncpg.Pool) -> None:
        super().__init__(settings)
        self._pool = pool

    @classmethod
    @asynccontextmanager
    async def beside(cls, platform: Platform) -> AsyncIterator["Reference"]:
        """On the same servers, in a database and a stream of its own."""
        url = await new_database(platform.settings.database_url)
        async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
            await reference.migrate(platform, pool)
            yield cls(msgspec.structs.replace(platform.settings, database_url=url), pool)

    async def list(self, tickets: Sequence[UUID]) -> None:
        await self._pool.execute(reference.INSERT_TICKETS, tickets, SEATS)

    async def written(self) -> int:
        return int(await self._pool.fetchval(WRITTEN))

    async def settle(self) -> None:
        self.tell(relay_behind=await self._pool.fetchval(WAITING))

        async def published() -> bool:
            return bool(await self._pool.fetchval(WAITING) == 0)

        await until(published, "outbox published")


async def sell(scene: Scene, side: Side, tickets: int, bearers: Sequence[str] = ()) -> float:
    """Orders per second of a round: it sells new tickets, in a process that has just started. `bearers`: as in Load."""
    async with serving(side.module, side.settings, scene.home) as served:
        ids = [new_id() for _ in range(tickets)]
        load = Load(served.port, ids, CONNECTIONS, scene.size(3, 1), scene.size(8, 2), SEED, list(bearers))
        await side.list(ids)
        before, used = await side.written(), served.cpu_seconds
        sold = await buy(load)
        used = served.cpu_seconds - used
        await side.settle()
        if (written := await side.written() - before) != sold.acknowledged:
            raise RuntimeError(f"{sold.acknowledged} orders were acknowledged, {written} written")
    side.tell(p50_ms=sold.p50_ms, p99_ms=sold.p99_ms, read_back=sold.read_back, load_cpu=sold.load_cpu)
    side.tell(cpu_ms_per_order=1000 * used / sold.acknowledged)
    return sold.orders / load.seconds


async def measure(scene: Scene, tickets: int) -> Measured:
    """Orders per second."""
    async with scene.system() as platform, Reference.beside(platform) as theirs:
        ours = Ours(platform)
        figures = await alternate(scene, lambda: sell(scene, ours, tickets), lambda: sell(scene, theirs, tickets))
    return Measured("/s", *figures, details=details(tickets, ours, theirs))


def details(tickets: int, ours: Side, theirs: Side) -> dict[str, Any]:
    """The further figures of both sides."""
    told: dict[str, Any] = {"connections": CONNECTIONS, "tickets": tickets}
    for name, side in (("ours", ours), ("reference", theirs)):
        told[name] = {figure: median(rounds) for figure, rounds in side.told.items()}
    return told


async def buy(load: Load) -> Sold:
    """Let the buyers in, from a process of their own. Raises RuntimeError if an order was not taken or not read."""
    printed = await run(sys.executable, "-m", "tests.benchmarks.load", told=msgspec.json.encode(load))
    sold = msgspec.json.decode(printed, type=Sold)
    if sold.unexpected:
        raise RuntimeError(f"not every order was taken and could be read: {sold.unexpected}")
    return sold


AGAINST = "one Postgres transaction per order, outbox and relay"
MANY = Row(
    "orders-many",
    "POST /api/orders to readable, 500 tickets",
    AGAINST,
    at_least(1.5),
    lambda scene: measure(scene, MANY_TICKETS),
)
HOT = Row("orders-hot", "the same, everyone after one ticket", AGAINST, at_least(3), lambda scene: measure(scene, 1))
