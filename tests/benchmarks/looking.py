"""What it costs to look: an aggregate shown event by event, and a tail beside a sale."""

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
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
from tests.benchmarks.events import SEATS, SEED, fill, order
from tests.benchmarks.load import Load
from tests.benchmarks.orders import MANY_TICKETS, Ours, buy
from tests.benchmarks.process import Child, serving
from tests.benchmarks.row import Measured, Row, Scene, Target, alternate, at_least, until
from tests.harness import SIGNING_KEY

OPERATOR = {"Authorization": "Bearer dev:olga:operator"}
EVENTS = 1_000

RATE = 150
"""Orders per second of a sale beside which a tail is measured: less than keeps both cores busy."""


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


class Following:
    """`boxoffice events tail` of everything, as a process of its own."""

    def __init__(self, child: Child, output: Path) -> None:
        self.child = child
        self._output = output

    @classmethod
    @asynccontextmanager
    async def start(cls, settings: Settings, scene: Scene) -> AsyncIterator["Following"]:
        servers = {"BOXOFFICE_NATS_URL": settings.nats_url, "BOXOFFICE_DATABASE_URL": settings.database_url}
        command = (sys.executable, "-m", "services.cli.main", "events", "tail", "--json")
        output = scene.home / f"tail-{new_id()}.jsonl"
        child = await Child.start(command, output, servers)
        try:
            yield cls(child, output)
            child.check()
        finally:
            await child.kill()

    def orders(self) -> int:
        """How many it has told of."""
        return self._output.read_bytes().count(b'"order_created"')


def cpu_of(server: Server) -> float:
    """Seconds of a core that a server and its children have used, also those that have ended."""
    process = psutil.Process(server.pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    ended = process.cpu_times()
    return float(sum(each.user + each.system for each in times) + ended.children_user + ended.children_system)


async def tail(scene: Scene) -> Measured:
    """Milliseconds of CPU for each order, of the whole system at RATE; not of who looks.

    Only NATS is asked by who looks. What Postgres and the services take counts for both halves of a round, as the mean
    of both: their own ups and downs are many times what is looked for.
    """
    nats_cpu: dict[bool, list[float]] = {True: [], False: []}
    rest: dict[bool, list[float]] = {True: [], False: []}
    tail_cpu: list[float] = []
    async with scene.nats() as nats, scene.postgres() as postgres:
        settings = Settings(nats_url=nats.url, database_url=postgres.url, auth="dev")
        await system.migrate(settings, lambda _: None)
        module, key = ("services.cli.main", "serve", *system.SERVICES), {"BOXOFFICE_SIGNING_KEY": SIGNING_KEY}
        async with connect(settings, "bench") as platform, serving(module, settings, scene.home, **key) as served:
            side = Ours(platform)
            tickets = [new_id() for _ in range(MANY_TICKETS)]
            await side.list(tickets)

            def load(warm_up: float, seconds: float) -> Load:
                return Load(served.port, tickets, 16, warm_up, seconds, SEED, rate=RATE)

            async def sold(*, looked_at: bool) -> float:
                nats_before, rest_before = cpu_of(nats), cpu_of(postgres) + served.cpu_seconds
                orders = (await buy(load(0, scene.size(8, 1)))).acknowledged
                nats_cpu[looked_at].append(1000 * (cpu_of(nats) - nats_before) / orders)
                rest[looked_at].append(1000 * (cpu_of(postgres) + served.cpu_seconds - rest_before) / orders)
                return orders

            async def looked_at() -> float:
                async with Following.start(settings, scene) as follower:
                    while not follower.orders():
                        await buy(load(0, 0.1))
                    used = follower.child.cpu_seconds
                    orders = await sold(looked_at=True)

                    async def all_told() -> bool:
                        return follower.orders() > orders

                    await until(all_told, "orders told")
                    tail_cpu.append(1000 * (follower.child.cpu_seconds - used) / orders)
                return orders

            await buy(load(0, scene.size(10, 1)))
            await alternate(scene, looked_at, lambda: sold(looked_at=False), rounds=scene.size(12, 1))
    shared = [sum(halves) / 2 for halves in zip(rest[True], rest[False], strict=True)]
    ours, reference = ([own + both for own, both in zip(nats_cpu[side], shared, strict=True)] for side in (True, False))
    return Measured("ms", ours, reference, details={"rate": RATE, "nats": nats_cpu[False], "tail_cpu": tail_cpu})


SHOW = Row(
    "show",
    f"a history of {EVENTS:,} events over HTTP, with what each changed",
    "reading and decoding them",
    Target("<= 150 ms", lambda measured: sorted(measured.ours)[len(measured.ours) // 2] <= 150),
    show,
)
TAIL = Row(
    "tail",
    f"CPU for each of {RATE} orders/s while `events tail` looks on",
    "the same without it",
    at_least(0.99),
    tail,
)
