"""A listener that does nothing, against FastStream's pull subscriber that does nothing, on the same messages."""

import asyncio
from time import perf_counter

from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from nats.aio.client import Client

from common.clock import new_id
from common.events import Event, OrderCreated, decode
from common.listener import Listener, Subscription
from common.topology import CONSUMER
from tests.benchmarks.events import fill, order
from tests.benchmarks.row import Measured, Row, Scene, alternate, at_least, until

FASTSTREAM_BATCH = 1_000
"""Messages of one pull request: as many as the consumer may have pending. It was slower with fewer, with the parameter
`max_workers`, and when it decoded by itself."""

WITHIN = 300.0


class Arrivals:
    """Counts what a handler was given."""

    def __init__(self, wanted: int) -> None:
        self.left = wanted
        self.all_in = asyncio.Event()

    def one(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.all_in.set()


class DoNothing(Listener[OrderCreated]):
    """Stands in for a listener of orders, on its durable consumer."""

    durable = "orders-settle-payments"

    def __init__(self, arrivals: Arrivals) -> None:
        self.arrivals = arrivals

    async def on(self, event: OrderCreated) -> None:  # noqa: ARG002 (it does nothing)
        self.arrivals.one()


async def measure(scene: Scene) -> Measured:
    """Events per second, decoded, handled and acknowledged."""
    count = scene.size(50_000, 5_000)
    consumer = CONSUMER[DoNothing.durable]
    async with scene.system() as platform:
        client, url = platform.client, platform.settings.nats_url
        scene.tell(f"{count:,} events to hear")
        tickets = [new_id() for _ in range(1_000)]
        await fill(client, "orders", ((tickets[n % 1_000], order(tickets[n % 1_000])) for n in range(count)))
        js = client.jetstream()

        async def anew() -> Arrivals:
            await js.delete_consumer(consumer.stream, consumer.durable)
            await js.add_consumer(consumer.stream, consumer.config())
            return Arrivals(count)

        async def ours() -> float:
            arrivals = await anew()
            began = perf_counter()
            running = asyncio.create_task(Subscription(DoNothing(arrivals), client).run())
            await asyncio.wait_for(arrivals.all_in.wait(), WITHIN)
            await client.flush()
            took = perf_counter() - began
            running.cancel()
            await asyncio.wait([running])
            await settled(client)
            return count / took

        async def faststream() -> float:
            arrivals = await anew()
            # Told to leave out what it does for others: no validation, no logging; the decoder is ours.
            broker = NatsBroker(url, logger=None, apply_types=False)

            @broker.subscriber(
                "orders.*",
                durable=consumer.durable,
                stream=JStream(consumer.stream, declare=False),
                pull_sub=PullSub(batch_size=FASTSTREAM_BATCH),
                decoder=to_event,
                ack_policy=AckPolicy.ACK,
            )
            async def on(_: Event) -> None:
                arrivals.one()

            await broker.connect()
            began = perf_counter()
            await broker.start()
            await asyncio.wait_for(arrivals.all_in.wait(), WITHIN)
            await broker.ping(5)
            took = perf_counter() - began
            await broker.stop()
            await settled(client)
            return count / took

        async def settled(client: Client) -> None:
            async def look() -> bool:
                info = await client.jetstream().consumer_info(consumer.stream, consumer.durable)
                return bool(info.num_ack_pending == 0 and info.num_pending == 0)

            await until(look, "every event acknowledged", within=10)

        figures = await alternate(scene, ours, faststream)
    return Measured("/s", *figures, details={"events": count})


async def to_event(message: NatsMessage) -> Event:
    """The event in a message, as our listener decodes it."""
    return decode(message.headers["ce-type"], message.body)


LISTENER = Row("listener", "Listener, no-op handler", "FastStream 0.7 pull subscriber", at_least(3), measure)
