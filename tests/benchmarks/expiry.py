"""How late an order expires while 100,000 are held, against delayed jobs of BullMQ on Redis."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from statistics import quantiles
from typing import Any
from uuid import UUID

import msgspec
from nats.aio.msg import Msg

from common.clock import new_id, now
from common.events import ExpirationCompleted, OrderCreated, decode
from common.runtime import Platform
from services.cli.servers import free_port
from tests.benchmarks.events import fill, order
from tests.benchmarks.process import Child, run, serving
from tests.benchmarks.row import Measured, Row, Scene, Target, until

PER_SECOND = 1_600
LATER = timedelta(hours=1)
PROMISED_MS = 25.0
CONSUMER = "expiration-hold-orders"


class Lateness(msgspec.Struct, frozen=True):
    """In milliseconds; negative would be early."""

    p50: float
    p99: float
    longest: float
    earliest: float

    @classmethod
    def of(cls, late: Sequence[float]) -> "Lateness":
        percentiles = quantiles(late, n=100)
        return cls(percentiles[49], percentiles[98], max(late), min(late))


class Load(msgspec.Struct, frozen=True):
    """`held` orders of which `due` come due, 1,600 a second from `first` on; the others an hour later."""

    held: int
    due: int
    first: datetime

    def orders(self) -> Iterator[tuple[UUID, OrderCreated]]:
        """The orders, those that come due first among the others."""
        apart = self.held // self.due
        for number in range(self.held):
            place, rest = divmod(number, apart)
            soon = rest == 0 and place < self.due
            expires_at = self.first + (timedelta(seconds=place / PER_SECOND) if soon else LATER)
            ticket_id = new_id()
            yield ticket_id, msgspec.structs.replace(order(ticket_id), expires_at=expires_at)


async def measure(scene: Scene) -> Measured:
    """The 99th percentile of lateness, in milliseconds."""
    held, seconds = scene.size(100_000, 10_000), scene.size(12, 3)
    due = seconds * PER_SECOND
    lead = scene.size(60, 15)
    scene.tell(f"ours: holding {held:,} orders")
    ours = await our_lateness(scene, Load(held, due, now() + timedelta(seconds=lead)))
    scene.tell(f"reference: holding {held:,} jobs")
    missing = [name for name in ("redis-server", "node", "npm") if shutil.which(name) is None]
    details: dict[str, Any] = {"held": held, "due": due, "per_second": PER_SECOND, "ours": ours}
    if missing:
        return Measured(
            "ms", [ours.p99], missing=f"not measured: there is no {', '.join(missing)} here", details=details
        )
    reference = await bullmq_lateness(scene, held, due, lead)
    details["reference"] = reference
    return Measured("ms", [ours.p99], [reference.p99], details=details)


async def our_lateness(scene: Scene, load: Load) -> Lateness:
    """From `expires_at` to the time that JetStream gave the ExpirationCompleted when it stored it."""
    async with scene.system() as platform:
        async with serving(["services.cli.main", "serve", "expiration"], platform.settings, scene.home):
            await fill(platform.client, "orders", load.orders())
            js = platform.client.jetstream()

            async def all_held() -> bool:
                info = await js.consumer_info("ORDERS", CONSUMER)
                return bool(info.num_pending == 0)

            async def all_told() -> bool:
                return (await platform.event_log.end("EXPIRATION")).sequence >= load.due

            await until(all_held, f"{load.held} orders held", within=120)
            if now() > load.first - timedelta(seconds=5):
                raise RuntimeError("the orders were not held before the first came due")
            left = (load.first - now()).total_seconds()
            scene.tell(f"ours: {load.due:,} orders expire, the first in {left:.0f} s")
            await until(all_told, "every expiration told", within=left + load.due / PER_SECOND + 60)
        late = await told(platform, load.due)
    return Lateness.of(late)


async def told(platform: Platform, count: int) -> list[float]:
    """The lateness of each expiration in the log."""
    late: list[float] = []
    all_in = asyncio.Event()

    async def receive(message: Msg) -> None:
        event = decode((message.headers or {})["ce-type"], message.data)
        assert isinstance(event, ExpirationCompleted)
        late.append(1000 * (message.metadata.timestamp - event.expires_at).total_seconds())
        if len(late) == count:
            all_in.set()

    await platform.client.jetstream().subscribe("expiration.*", stream="EXPIRATION", cb=receive, ordered_consumer=True)
    await asyncio.wait_for(all_in.wait(), 60)
    return late


async def bullmq_lateness(scene: Scene, held: int, due: int, lead: int) -> Lateness:
    """From the time a job is due to the moment that its worker begins with it."""
    folder = scene.home / "bullmq"
    folder.mkdir()
    scene.tell("reference: npm install bullmq@6")
    await run("npm", "install", "--no-audit", "--no-fund", "--prefix", folder, "bullmq@6", "ioredis@5", cwd=folder)
    async with redis(folder) as port:
        scene.tell(f"reference: {held:,} jobs held, {due:,} come due")
        first = int((now() + timedelta(seconds=lead)).timestamp() * 1000)
        script = Path(__file__).with_name("bullmq.mjs")
        answer = await run("node", script, *map(str, (port, held, due, PER_SECOND, first)), cwd=folder)
    return Lateness.of(msgspec.json.decode(answer, type=dict[str, list[float]])["late"])


@asynccontextmanager
async def redis(folder: Path) -> AsyncIterator[int]:
    """The port of a Redis that keeps what it is told, as BullMQ's documentation wants it."""
    port = free_port()
    kept = ("--appendonly", "yes", "--maxmemory-policy", "noeviction", "--save", "")
    where = ("--port", str(port), "--bind", "127.0.0.1", "--dir", folder)
    server = await Child.start(["redis-server", *where, *kept], folder / "redis.log", {})
    try:

        async def answers() -> bool:
            server.check()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            return True

        await until(answers, "Redis answers", within=10)
        yield port
    finally:
        await server.end()


def in_time(measured: Measured) -> bool:
    """None early, and 99 of 100 within the promise."""
    ours = measured.details["ours"]
    return bool(ours.earliest >= 0 and ours.p99 <= PROMISED_MS)


EXPIRY = Row(
    "expiry",
    "lateness of expiry, 100,000 held, 1,600 due/s (p99)",
    "BullMQ 6 delayed jobs on Redis",
    Target(f"p99 <= {PROMISED_MS:.0f} ms, none early", in_time),
    measure,
)
