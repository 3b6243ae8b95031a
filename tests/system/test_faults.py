"""Buyers after scarce tickets, while every process is killed in turn: afterwards the log has to be beyond reproach."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import asyncpg
import httpx
import pytest

from common.events import OrderCancelled
from common.runtime import Platform, connect
from common.settings import Settings
from common.topology import CONSUMERS
from services.cli import system
from services.cli.embedded import make_roles
from services.cli.servers import NatsServer, PostgresServer, free_port
from tests.harness import PASSWORDS, ServiceProcess, eventually, nats_in
from tests.system.checker import Promises, check, collect

BUYERS = 16
ON_SALE = 3  # tickets at a time
SEATS = 12  # of each
ANSWER_SECONDS = 90.0  # in which every request finds its answer, whatever is down meanwhile
REQUEST_SECONDS = 30.0  # one try of it: to read, to append and to wait for the read model take 5, 5 and 2 s at most
SETTLE_SECONDS = 180.0  # a killed listener's events come again after 30 s, a failed one's after up to a minute
GRACE = timedelta(seconds=30)

SELLER = {"Authorization": "Bearer dev:sam"}
TRY_AGAIN = {502, 503, 504}


class Killable(Protocol):
    """A process of the system."""

    async def kill(self) -> None: ...

    async def start(self) -> None: ...


class Place(Protocol):
    """Where a service is asked."""

    url: str


class KillableServer:
    """An embedded server, whose kill waits for the process to be gone."""

    def __init__(self, server: NatsServer | PostgresServer) -> None:
        self._server = server

    async def kill(self) -> None:
        await asyncio.to_thread(self._server.kill)

    async def start(self) -> None:
        await self._server.start()


class Town:
    """The running system, and everything that its clients were answered."""

    def __init__(
        self, settings: Settings, tickets: Place, orders: Sequence[Place], processes: Mapping[str, Killable]
    ) -> None:
        self.settings = settings
        self.processes = processes
        self.promises = Promises()
        self.on_sale: list[UUID] = []
        self.answers: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.open, self.closing = asyncio.Event(), asyncio.Event()
        self._tickets = tickets
        self._orders = orders
        self._acknowledged = asyncio.Condition()
        self._http = httpx.AsyncClient(timeout=REQUEST_SECONDS, limits=httpx.Limits(max_connections=None))

    async def ask(self, rng: random.Random, method: str, path: str, **request: Any) -> httpx.Response:
        """Ask, on any replica, until there is an answer: a lost connection or a 503 tells nothing of the outcome."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while True:
                at = self._tickets if path.startswith("/api/tickets") else rng.choice(self._orders)
                try:
                    response = await self._http.request(method, at.url + path, **request)
                except httpx.TransportError as error:
                    self.answers[type(error).__name__] += 1
                    await asyncio.sleep(rng.uniform(0.01, 0.1))
                    continue
                self.answers[f"{method} {response.status_code}"] += 1
                assert response.status_code != 500, response.text
                if response.status_code not in TRY_AGAIN:
                    return response
                await asyncio.sleep(rng.uniform(0.05, 0.2))

    async def acknowledge(self, order_id: UUID, order: tuple[UUID, str, int]) -> None:
        """Note what a client was promised, the same each time."""
        assert self.promises.placed.setdefault(order_id, order) == order
        async with self._acknowledged:
            self._acknowledged.notify_all()

    async def more_acknowledged(self, count: int) -> None:
        """Wait until so many more orders were acknowledged."""
        wanted = len(self.promises.placed) + count
        async with asyncio.timeout(ANSWER_SECONDS), self._acknowledged:
            await self._acknowledged.wait_for(lambda: len(self.promises.placed) >= wanted)

    async def close(self) -> None:
        await self._http.aclose()


async def sell(town: Town, rng: random.Random) -> None:
    """Keep some tickets on sale: list new ones, change how many seats they have, withdraw the oldest."""
    while not town.closing.is_set():
        listing = {"title": "Opening night", "price": 2500, "currency": "EUR", "quantity": SEATS, "max_per_order": 4}
        listed = await town.ask(rng, "POST", "/api/tickets", json=listing, headers=SELLER)
        assert listed.status_code == 201, listed.text
        town.on_sale.append(UUID(listed.json()["id"]))
        town.open.set()
        if len(town.on_sale) <= ON_SALE:
            continue
        oldest, *_, newest = town.on_sale
        seats = {"quantity": rng.randint(1, 2 * SEATS)}
        changed = await town.ask(
            rng, "PATCH", f"/api/tickets/{newest}", json=seats, headers={**SELLER, "If-Match": "*"}
        )
        assert changed.status_code == 200, changed.text
        withdrawn = await town.ask(rng, "DELETE", f"/api/tickets/{oldest}", headers=SELLER)
        assert withdrawn.status_code == 200, withdrawn.text
        town.on_sale.remove(oldest)
        await pause(town, rng.uniform(1, 3))


async def buy(town: Town, name: str, rng: random.Random) -> None:
    """Reserve, and then pay, be declined, dither, cancel, or let it expire; until the town closes."""
    me = {"Authorization": f"Bearer dev:{name}"}
    for number in itertools.count():
        if town.closing.is_set():
            return
        ticket_id, quantity = rng.choice(town.on_sale), rng.randint(1, 3)
        wanted = {"ticket_id": str(ticket_id), "quantity": quantity, "hold_seconds": rng.randint(2, 5)}
        headers = {**me, "Idempotency-Key": f"{number}"}
        placed = await town.ask(rng, "POST", "/api/orders", json=wanted, headers=headers)
        assert placed.status_code in (201, 409), placed.text
        if placed.status_code == 409:
            await pause(town, rng.uniform(0.05, 0.3))
            continue
        order_id = UUID(placed.json()["id"])
        await town.acknowledge(order_id, (ticket_id, name, quantity))
        if rng.random() < 0.2:
            again = await town.ask(rng, "POST", "/api/orders", json=wanted, headers=headers)
            assert (again.status_code, again.json().get("id")) == (201, str(order_id)), again.text
        deed = rng.choices([pay, decline, dither, cancel, leave], weights=[3, 1, 1, 4, 4])[0]
        await deed(town, rng, order_id, me)


async def pay(
    town: Town,
    rng: random.Random,
    order_id: UUID,
    me: Mapping[str, str],
    token: str = "tok_ok",  # noqa: S107
) -> None:
    headers = {**me, "Idempotency-Key": f"pay-{token}"}
    paid = await on_order(town, rng, "POST", f"/api/orders/{order_id}/payment", json={"token": token}, headers=headers)
    assert paid.status_code in ((402, 409) if token == "tok_declined" else (200, 409)), paid.text  # noqa: S105
    if paid.status_code == 200:
        town.promises.paid.add(order_id)


async def decline(town: Town, rng: random.Random, order_id: UUID, me: Mapping[str, str]) -> None:
    await pay(town, rng, order_id, me, "tok_declined")


async def dither(town: Town, rng: random.Random, order_id: UUID, me: Mapping[str, str]) -> None:
    """Pay slowly, pay with another card as well, and cancel, all at once."""
    await asyncio.gather(
        pay(town, rng, order_id, me, "tok_slow"), pay(town, rng, order_id, me), cancel(town, rng, order_id, me)
    )


async def cancel(town: Town, rng: random.Random, order_id: UUID, me: Mapping[str, str]) -> None:
    cancelled = await on_order(town, rng, "DELETE", f"/api/orders/{order_id}", headers=me)
    assert cancelled.status_code in (200, 409), cancelled.text
    if cancelled.status_code == 200:
        town.promises.given_back.add(order_id)


async def leave(_: Town, __: random.Random, ___: UUID, ____: Mapping[str, str]) -> None:
    """Let it expire."""


async def on_order(town: Town, rng: random.Random, method: str, path: str, **request: Any) -> httpx.Response:
    """Ask about an order that was acknowledged: whatever was killed meanwhile, it is found."""
    answer = await town.ask(rng, method, path, **request)
    assert answer.status_code != 404, answer.text
    return answer


async def pause(town: Town, seconds: float) -> None:
    """What people do between two requests; it ends when the town closes."""
    try:
        await asyncio.wait_for(town.closing.wait(), seconds)
    except TimeoutError:
        return


async def strike(town: Town, rng: random.Random, seconds: float) -> None:
    """Kill one process after the other under load, each after orders went through again; all of them at least once."""
    deadline = asyncio.get_running_loop().time() + seconds
    for name in itertools.cycle(town.processes):
        if asyncio.get_running_loop().time() > deadline and len(town.kills) == len(town.processes):
            return
        await town.more_acknowledged(3)
        await town.processes[name].kill()
        town.kills[name] += 1
        await asyncio.sleep(rng.uniform(0, 1.5))  # for so long it is down
        await town.processes[name].start()


async def restless(platform: Platform) -> int:
    """How many orders are open, events a listener is not done with, and events are not projected."""
    connection = await asyncpg.connect(platform.settings.database_url)
    try:
        count: int = await connection.fetchval("select count(*) from orders.orders where closed_at is null")
        for schema in system.READ_MODELS:
            for row in await connection.fetch(f'select stream, sequence from "{schema}".checkpoint'):  # noqa: S608
                count += (await platform.event_log.end(row["stream"])).sequence - row["sequence"]
    finally:
        await connection.close()
    for consumer in (each for each in CONSUMERS if each.service in ("tickets", "orders", "expiration")):
        info = await platform.client.jetstream().consumer_info(consumer.stream, consumer.durable)
        count += (info.num_pending or 0) + (info.num_ack_pending or 0)
    return count


def complaints(home: Path) -> str:
    """The last errors that the services logged."""
    logs = {log: log.read_text(errors="replace").splitlines() for log in sorted(home.glob("*/*.log"))}
    errors = {log: [line for line in lines if '"level": "error"' in line] for log, lines in logs.items()}
    return "\n".join(f"{log.parent.name}: {line}" for log, lines in errors.items() for line in lines[-20:])


@pytest.fixture
async def town(home: Path) -> AsyncIterator[Town]:
    """Every service as a process of its own, orders twice, on servers of their own."""
    nats, postgres = nats_in(home / "nats", free_port()), PostgresServer(home / "postgres")
    async with AsyncExitStack() as stack:
        for server in (nats, postgres):
            await server.start()
            stack.push_async_callback(server.stop)
        await make_roles(postgres.url, PASSWORDS)
        settings = Settings(nats_url=nats.url, database_url=postgres.url, auth="dev")
        await system.migrate(settings, lambda _: None)

        async def serve(service: str, number: int = 1) -> ServiceProcess:
            logs = home / f"{service}-{number}"
            logs.mkdir()
            return await stack.enter_async_context(ServiceProcess(service, settings, logs))

        tickets, expiration = await serve("tickets"), await serve("expiration")
        orders = [await serve("orders", number) for number in (1, 2)]
        town = Town(
            settings,
            tickets,
            orders,
            {
                "tickets": tickets,
                "orders 1": orders[0],
                "orders 2": orders[1],
                "expiration": expiration,
                "nats": KillableServer(nats),
                "postgres": KillableServer(postgres),
            },
        )
        stack.push_async_callback(town.close)
        yield town
        print(complaints(home))  # noqa: T201 (shown when the test failed)


@pytest.mark.parametrize("seconds", [30, pytest.param(600, marks=pytest.mark.faults)])
async def test_nothing_is_lost_doubled_or_oversold_whatever_is_killed(town: Town, seconds: int) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"{seed=}")  # noqa: T201 (whoever reads a failure needs it)

    def rng(who: str) -> random.Random:
        return random.Random(f"{seed} {who}")  # noqa: S311 (a load, no secret)

    async with asyncio.TaskGroup() as people:
        people.create_task(sell(town, rng("seller")))
        await asyncio.wait_for(town.open.wait(), ANSWER_SECONDS)
        for number in range(BUYERS):
            people.create_task(buy(town, f"buyer-{number}", rng(f"buyer {number}")))
        await strike(town, rng("strikes"), seconds)
        town.closing.set()

    async with connect(town.settings, "faults") as platform:
        with suppress(AssertionError):  # the checker says it better
            await eventually(lambda: restless(platform), 0, within=SETTLE_SECONDS)
        evidence = await collect(town.settings)
        assert check(evidence, town.promises, GRACE) == []
        assert await restless(platform) == 0

    expired = sum(event.reason == "expired" for event in evidence.events("ORDERS", OrderCancelled))
    print(f"{town.kills=} {town.answers=}")  # noqa: T201
    print(  # noqa: T201
        f"placed {len(town.promises.placed)}, paid {len(town.promises.paid)}, "
        f"given back {len(town.promises.given_back)}, expired {expired}"
    )
    assert town.kills.keys() == town.processes.keys()
    assert min(len(town.promises.paid), len(town.promises.given_back), expired) >= 3  # there was something to lose
