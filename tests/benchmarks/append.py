"""Guarded appends, 64 in flight, against the bare client."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter

import nats

from common.clock import new_id
from common.event_log import Draft
from common.events import encode
from tests.benchmarks.events import order
from tests.benchmarks.row import Measured, Row, Scene, alternate, at_least

IN_FLIGHT = 64


async def measure(scene: Scene) -> Measured:
    """Events per second, each first on a subject of its own. The bare client is given everything ready-made."""
    count = scene.size(10_000, 4_000)
    async with scene.system() as platform, await nats.connect(platform.settings.nats_url) as client:
        js = client.jetstream()

        async def ours() -> float:
            events = [order(new_id()) for _ in range(count)]

            async def append(number: int) -> None:
                event = events[number]
                await platform.event_log.append(f"orders.{event.ticket_id}", [Draft.of(event)], expected=0)

            return await rate(append, range(count))

        async def bare() -> float:
            ready = []
            for event in [order(new_id()) for _ in range(count)]:
                subject = f"orders.{event.ticket_id}"
                headers = Draft.of(event).headers("/" + subject) | {"Nats-Expected-Last-Subject-Sequence": "0"}
                ready.append((subject, encode(event), headers))

            async def publish(number: int) -> None:
                subject, body, headers = ready[number]
                await js.publish(subject, body, headers=headers)

            return await rate(publish, range(count))

        await ours()  # the stream's files, the code: warm for whoever comes first
        figures = await alternate(scene, ours, bare)
    return Measured("/s", *figures, details={"events": count, "in_flight": IN_FLIGHT})


async def rate(do: Callable[[int], Awaitable[None]], numbers: Iterable[int]) -> float:
    """How many were done in a second, with 64 in flight."""
    left = iter(numbers)
    done = 0

    async def work() -> None:
        nonlocal done
        for number in left:
            await do(number)
            done += 1

    began = perf_counter()
    async with asyncio.TaskGroup() as workers:
        for _ in range(IN_FLIGHT):
            workers.create_task(work())
    return done / (perf_counter() - began)


APPEND = Row("append", "guarded append, 64 in flight", "bare nats-py js.publish, same headers", at_least(0.9), measure)
