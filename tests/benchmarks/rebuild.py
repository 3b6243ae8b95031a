"""A read model made anew, against reading and decoding the same events and doing nothing with them."""

import asyncio
from contextlib import aclosing
from time import perf_counter

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from common.events import decode
from common.projector import rebuild
from services.orders.read_model import READ_MODEL
from tests.benchmarks.events import fill, sale
from tests.benchmarks.row import Measured, Row, Scene, alternate, at_least

STREAM = "ORDERS"
TICKETS = 500
WITHIN = 300.0


async def decode_only(client: Client, count: int) -> float:
    """Events of ORDERS per second that an ordered consumer of nats-py reads and decodes, all `count` of them."""
    seen = 0
    all_in = asyncio.Event()

    async def receive(message: Msg) -> None:
        nonlocal seen
        decode((message.headers or {})["ce-type"], message.data)
        seen += 1
        if seen == count:
            all_in.set()

    began = perf_counter()
    subscription = await client.jetstream().subscribe(
        "orders.*",
        stream=STREAM,
        cb=receive,
        ordered_consumer=True,
        pending_msgs_limit=0,  # without limits, or it drops what came too fast
        pending_bytes_limit=0,
    )
    await asyncio.wait_for(all_in.wait(), WITHIN)
    took = perf_counter() - began
    await subscription.unsubscribe()
    return count / took


async def measure(scene: Scene) -> Measured:
    """Events per second."""
    count = scene.size(200_000, 20_000)
    async with scene.system() as platform, await nats.connect(platform.settings.nats_url) as client:
        log, url = platform.event_log, platform.settings.database_url
        scene.tell(f"{count:,} events to project")
        await fill(platform.client, "orders", sale(count, TICKETS))

        async def ours() -> float:
            began = perf_counter()
            events = await rebuild(READ_MODEL, log, url)
            assert events == count
            return count / (perf_counter() - began)

        async def follow_only() -> float:
            seen = 0
            began = perf_counter()
            async with asyncio.timeout(WITHIN), aclosing(log.follow(STREAM)) as batches:
                async for batch in batches:
                    seen += len(batch)
                    if seen == count:
                        break
            return count / (perf_counter() - began)

        figures = await alternate(scene, ours, lambda: decode_only(client, count))
        scene.tell("our own follow, decoding only")
        follow = await follow_only()
    return Measured("/s", *figures, details={"events": count, "our_follow_decoding_only": follow})


REBUILD = Row("rebuild", "rebuild of a read model", "ordered consumer, decoding only", at_least(0.45), measure)
