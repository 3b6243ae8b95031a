"""Notifications to 2,000 open WebSockets of one process, against a bare server of the `websockets` library."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count
from statistics import median, quantiles
from time import perf_counter
from typing import Any, Self
from uuid import UUID

import msgspec
from websockets.asyncio.client import connect

from common.clock import new_id, now
from common.events import Event, NotificationRaised
from common.runtime import Platform
from common.settings import Settings
from services.cli.servers import free_port
from services.notification.api import Told
from services.notification.domain import inbox_id_of
from services.notification.read_model import Notification
from tests.benchmarks.broadcast import AT, CURSOR, TICK, Send
from tests.benchmarks.crowd import Await, Crowd, Heard
from tests.benchmarks.events import fill
from tests.benchmarks.process import HERE, Served, serving, started
from tests.benchmarks.row import Measured, Row, Scene, Target, alternate, at_least

PER_SECOND = 2_000
TOGETHER = 20
"""Notifications of the fan-out that are under way at a time."""
WITHIN = 60.0

OURS = ("services.cli.main", "serve", "notification")
BARE = ("tests.benchmarks.broadcast",)
SOCKET = "/api/notifications/ws"
AGAINST = "bare `websockets` server"


def raised(user_id: str) -> tuple[UUID, NotificationRaised]:
    """Somebody is told of an order, now."""
    facts: dict[str, str | int] = {"ticket_id": str(new_id()), "quantity": 2, "total": 5000, "currency": "EUR"}
    text = "You hold 2 of Opening night until 12:05:58 UTC."
    event = NotificationRaised(new_id(), user_id, "order.created", new_id(), text, facts, now())
    return inbox_id_of(user_id), event


def bare_text() -> str:
    """The same as it is sent, but for the cursor and the time."""
    _, event = raised("user-0")
    text = msgspec.json.encode(Told(Notification.of(0, event), 1)).decode()
    at = msgspec.json.encode(event.at).decode()
    return text.replace('"cursor":0', f'"cursor":{CURSOR}').replace(at, f'"{AT}"')


class Listeners:
    """A crowd in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def of(cls, crowd: Crowd) -> AsyncIterator[Self]:
        """Once all are connected."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.benchmarks.crowd"), cwd=HERE, stdin=pipe, stdout=pipe
        )
        listeners = cls(process)
        try:
            await listeners._ask(crowd)
            yield listeners
        finally:
            process.kill()
            await process.wait()

    async def hear(self, messages: int) -> Heard:
        """Wait until so many have come and all are connected. Raises RuntimeError if they do not come."""
        return await self._ask(Await(messages, WITHIN))

    async def _ask(self, question: msgspec.Struct) -> Heard:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(msgspec.json.encode(question) + b"\n")
        heard = msgspec.json.decode(await self._process.stdout.readline(), type=Heard)
        if heard.wrong:
            raise RuntimeError(heard.wrong)
        return heard


class Side:
    """A server, its listeners, and what is told about each round."""

    def __init__(self, served: Served, listeners: Listeners) -> None:
        self.served = served
        self.listeners = listeners
        self.told: dict[str, list[float]] = {}

    async def hear(self, messages: int) -> Heard:
        """Wait until so many have come; tells what they cost."""
        used = self.served.cpu_seconds
        heard = await self.listeners.hear(messages)
        self.tell(cpu_us_per_message=1e6 * (self.served.cpu_seconds - used) / messages, load_cpu=heard.cpu)
        return heard

    def tell(self, **figures: float) -> None:
        for name, figure in figures.items():
            self.told.setdefault(name, []).append(figure)

    @property
    def middle(self) -> dict[str, float]:
        return {name: median(figures) for name, figures in self.told.items()}


@asynccontextmanager
async def both(scene: Scene, platform: Platform, crowd: Crowd) -> AsyncIterator[tuple[Side, Side]]:
    """Our service and the bare server, with as many sockets open to each."""
    async with AsyncExitStack() as stack:
        sides = []
        for module, path in ((OURS, SOCKET), (BARE, "/")):
            more = {"BOXOFFICE_CONNECTIONS_PER_USER": str(crowd.sockets)}
            served = await stack.enter_async_context(serving(module, platform.settings, scene.home, **more))
            scene.tell(f"opening {crowd.sockets:,} sockets")
            there = msgspec.structs.replace(crowd, port=served.port, path=path)
            sides.append(Side(served, await stack.enter_async_context(Listeners.of(there))))
        yield sides[0], sides[1]


async def ask(side: Side, messages: int, per_second: int) -> None:
    """Let the bare server send."""
    async with connect(f"ws://127.0.0.1:{side.served.port}/control") as control:
        await control.send(msgspec.json.encode(Send(messages, per_second, bare_text())).decode())


async def notify(scene: Scene) -> Measured:
    """The 99th percentile of the time from before the append to the socket, in milliseconds."""
    sockets, seconds = scene.size(2_000, 200), scene.size(3, 1)
    messages = seconds * PER_SECOND
    users = map("user-{}".format, (n % sockets for n in count()))

    async def raise_at_rate(platform: Platform) -> None:
        loop, portion = asyncio.get_running_loop(), round(PER_SECOND * TICK)
        began, appends = loop.time(), []
        for first in range(0, messages, portion):
            await asyncio.sleep(max(0, began + TICK * first / portion - loop.time()))
            events, at = [raised(next(users)) for _ in range(portion)], perf_counter()
            await fill(platform.client, "notifications", events)
            appends.append(1000 * (perf_counter() - at))
        percentiles = quantiles(appends, n=100)
        ours.tell(append_p50_ms=percentiles[49], append_p99_ms=percentiles[98])  # the part of the disk, and of others

    async def latency(side: Side, sending: Any) -> float:
        _, heard = await asyncio.gather(sending, side.hear(messages))
        side.tell(p50_ms=heard.p50_ms, longest_ms=heard.longest_ms)
        return heard.p99_ms

    async with scene.system() as platform:
        crowd = Crowd(0, "", sockets, sockets, timed=True, acknowledges=True)
        async with both(scene, platform, crowd) as (ours, bare):
            figures = await alternate(
                scene,
                lambda: latency(ours, raise_at_rate(platform)),
                lambda: latency(bare, ask(bare, messages, PER_SECOND)),
            )
    details = {"sockets": sockets, "per_second": PER_SECOND, "ours": ours.middle, "reference": bare.middle}
    return Measured("ms", *figures, details=details)


async def fan_out(scene: Scene) -> Measured:
    """Messages per second to all sockets together, which are all of one user: what is raised goes to each."""
    sockets, turns = scene.size(2_000, 200), scene.size(2, 1)
    messages = TOGETHER * sockets

    async def deliver(side: Side, send: Any) -> float:
        took = 0.0
        for _ in range(turns):
            (_, heard) = await asyncio.gather(send(), side.hear(messages))
            took += heard.seconds
        return turns * messages / took

    async with scene.system() as platform:
        crowd = Crowd(0, "", sockets, 1, timed=False, acknowledges=True)
        async with both(scene, platform, crowd) as (ours, bare):

            async def tell_all() -> None:
                await fill(platform.client, "notifications", [raised("user-0") for _ in range(TOGETHER)])

            figures = await alternate(
                scene, lambda: deliver(ours, tell_all), lambda: deliver(bare, lambda: ask(bare, TOGETHER, 0))
            )
    details = {"sockets": sockets, "together": TOGETHER, "ours": ours.middle, "reference": bare.middle}
    return Measured("/s", *figures, details=details)


async def memory(scene: Scene) -> Measured:
    """Kilobytes of the process for each socket that is open and idle."""
    sockets = scene.size(2_000, 200)

    async def idle(module: Sequence[str], path: str, settings: Settings) -> float:
        async with serving(module, settings, scene.home) as served:
            crowd = Crowd(served.port, path, 20, 20, timed=False, acknowledges=False)
            async with Listeners.of(crowd):
                pass  # what is loaded and kept since the first
            before = served.memory
            async with Listeners.of(msgspec.structs.replace(crowd, sockets=sockets, users=sockets)):
                return (served.memory - before) / sockets / 1024

    async with scene.system() as platform:
        figures = await alternate(
            scene,
            lambda: idle(OURS, SOCKET, platform.settings),
            lambda: idle(BARE, "/", platform.settings),
            rounds=3,
        )
    return Measured("KB", *figures, details={"sockets": sockets})


async def reconnect(scene: Scene) -> Measured:
    """Milliseconds from kill -9 of the process, which is started again at once, until all have what they missed."""
    sockets = scene.size(2_000, 200)

    async def killed(module: Sequence[str], path: str, platform: Platform, missed: int) -> float:
        port = free_port()
        start = partial(started, module, platform.settings, scene.home, port)
        served = await start()
        try:
            crowd = Crowd(port, path, sockets, sockets, timed=False, acknowledges=True)
            async with Listeners.of(crowd) as listeners:
                began = asyncio.get_running_loop().time()
                await served.kill()
                served, _ = await asyncio.gather(start(), fill(platform.client, "notifications", everybody(missed)))
                heard = await listeners.hear(missed)
                if heard.repeated:
                    raise RuntimeError(f"{heard.repeated} came twice")
                return 1000 * (asyncio.get_running_loop().time() - began)
        finally:
            await served.end()

    async with scene.system() as platform:
        figures = await alternate(
            scene,
            lambda: killed(OURS, SOCKET, platform, sockets),
            lambda: killed(BARE, "/", platform, 0),
            rounds=2,
        )
    return Measured("ms", *figures, details={"sockets": sockets, "missed": sockets})


def everybody(users: int) -> Iterator[tuple[UUID, Event]]:
    """Each is told once."""
    return (raised(f"user-{number}") for number in range(users))


def at_most(limit: float, text: str) -> Target:
    """Our own figure is no more than `limit`."""
    return Target(text, lambda measured: median(measured.ours) <= limit)


NOTIFY = Row(
    "notify",
    "append to socket, 2,000 sockets, 2,000/s (p99)",
    f"{AGAINST}, as many to as many",
    at_most(100, "p99 <= 100 ms"),
    notify,
)
FAN_OUT = Row(
    "fan-out",
    "one user's notifications to 2,000 sockets",
    f"{AGAINST}, `broadcast` of the same bytes",
    at_least(0.2),
    fan_out,
)
SOCKETS = Row("sockets", "memory of an idle socket", AGAINST, at_most(60, "<= 60 KB"), memory)
RECONNECT = Row(
    "reconnect",
    "2,000 dropped by kill -9, back and caught up",
    f"{AGAINST}, back",
    at_most(10_000, "<= 10 s"),
    reconnect,
)
