"""What it costs to look: an aggregate shown event by event, and a tail beside a sale."""

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from time import perf_counter
from uuid import UUID

import httpx
import msgspec
import psutil  # type: ignore[import-untyped]  # psutil ships no types

from common.clock import new_id, now
from common.events import BookEvent, BookListing, BookOpened, OrderCompleted, PaymentStarted
from common.runtime import connect
from common.settings import Settings
from services.cli import system
from services.cli.servers import Server
from tests.benchmarks.events import SEATS, fill, order
from tests.benchmarks.orders import MANY_TICKETS, Ours, sell
from tests.benchmarks.process import Child, serving
from tests.benchmarks.row import Measured, Row, Scene, Target, alternate, at_least

OPERATOR = {"Authorization": "Bearer dev:olga:operator"}
EVENTS = 1_000


def book(ticket_id: UUID) -> Iterator[tuple[UUID, BookEvent]]:
    """EVENTS events of one book: every order is paid."""

    def story() -> Iterator[BookEvent]:
        yield BookOpened(ticket_id, BookListing("Opening night", 2500, "EUR", SEATS, 10, True, 1), now())
        while True:
            yield (placed := order(ticket_id))
            payment_id = new_id()
            yield PaymentStarted(placed.order_id, ticket_id, payment_id, now())
            sold = (placed.order_id, ticket_id, placed.buyer_id, placed.quantity, payment_id)
            yield OrderCompleted(*sold, placed.price * placed.quantity, placed.currency, now())

    for version, event in enumerate(islice(story(), EVENTS), start=1):
        yield ticket_id, msgspec.structs.replace(event, version=version)


async def show(scene: Scene) -> Measured:
    """Milliseconds from asking for a history to having all of it."""
    async with scene.system() as platform:
        ticket_id = new_id()
        await fill(platform.client, "orders", book(ticket_id))
        module = ("services.cli.main", "serve", "history")
        async with (
            serving(module, platform.settings, scene.home) as served,
            httpx.AsyncClient(headers=OPERATOR) as http,
        ):
            address = f"http://127.0.0.1:{served.port}/api/events/history/orders/{ticket_id}"

            async def shown() -> float:
                began = perf_counter()
                answer = await http.get(address)
                took = perf_counter() - began
                if len(answer.json()["steps"]) != EVENTS:
                    raise RuntimeError(f"not all of it is shown: {answer.text[:200]}")
                return 1000 * took

            async def read() -> float:
                began = perf_counter()
                if len(await platform.event_log.read(f"orders.{ticket_id}")) != EVENTS:
                    raise RuntimeError("not all of it is there")
                return 1000 * (perf_counter() - began)

            figures = await alternate(scene, shown, read)
    return Measured("ms", *figures, details={"events": EVENTS})


@asynccontextmanager
async def following(settings: Settings, scene: Scene) -> AsyncIterator[Child]:
    """`boxoffice events tail` of everything."""
    servers = {"BOXOFFICE_NATS_URL": settings.nats_url, "BOXOFFICE_DATABASE_URL": settings.database_url}
    command = (sys.executable, "-m", "services.cli.main", "events", "tail", "--json")
    child = await Child.start(command, scene.home / "tail.jsonl", servers)
    try:
        yield child
        child.check()
    finally:
        await child.kill()


def cpu_of(server: Server) -> float:
    """Seconds of a core that a server and its children have used, also those that have ended."""
    process = psutil.Process(server.pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    ended = process.cpu_times()
    return float(sum(each.user + each.system for each in times) + ended.children_user + ended.children_system)


async def tail(scene: Scene) -> Measured:
    """Milliseconds of CPU for each order: of NATS, Postgres and the orders service, but not of who looks."""
    scene.tell("starting the servers")
    tail_cpu: list[float] = []
    async with scene.nats() as nats, scene.postgres() as postgres:
        settings = Settings(nats_url=nats.url, database_url=postgres.url, auth="dev")
        await system.migrate(settings, lambda _: None)
        async with connect(settings, "bench") as platform:
            side = Ours(platform)

            async def sold() -> float:
                before, written = cpu_of(nats) + cpu_of(postgres), await side.written()
                await sell(scene, side, MANY_TICKETS)
                orders = await side.written() - written
                servers = 1000 * (cpu_of(nats) + cpu_of(postgres) - before) / orders
                return servers + side.told["cpu_ms_per_order"][-1]

            async def looked_at() -> float:
                async with following(settings, scene) as follower:
                    written = await side.written()
                    figure = await sold()
                    tail_cpu.append(1000 * follower.cpu_seconds / (await side.written() - written))
                    return figure

            figures = await alternate(scene, looked_at, sold)
    return Measured("ms", *figures, details={"tail_cpu_ms_per_order": tail_cpu})


SHOW = Row(
    "show",
    f"a history of {EVENTS:,} events over HTTP, with what each changed",
    "reading and decoding them",
    Target("<= 150 ms", lambda measured: sorted(measured.ours)[len(measured.ours) // 2] <= 150),
    show,
)
TAIL = Row("tail", "CPU for each order while `events tail` looks on", "the same without it", at_least(0.99), tail)
