"""The streams and durable consumers that exist, with their settings; created by `boxoffice migrate` and nobody else."""

from collections.abc import Callable, Mapping, Sequence

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import NotFoundError

from common.errors import Unavailable


class Stream(msgspec.Struct, frozen=True):
    """A service's log. History is never dropped: no age or size limit, no delete, no purge."""

    name: str
    subjects: tuple[str, ...]

    def config(self, replicas: int) -> StreamConfig:
        """The settings on the server."""
        return StreamConfig(
            name=self.name,
            subjects=list(self.subjects),
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,
            storage=StorageType.FILE,
            num_replicas=replicas,
            deny_delete=True,
            deny_purge=True,
            allow_direct=True,
            allow_atomic=True,
            duplicate_window=120,
        )


class Consumer(msgspec.Struct, frozen=True):
    """A durable consumer: the place in a stream up to which one Listener of one service has heard.

    `ack_wait` is in seconds. `max_ack_pending` counts delivered and unsettled messages, also those put back with a
    delay; -1 is without limit. Giving up is the Listener's decision, so the server never does (`max_deliver` -1).
    """

    durable: str
    stream: str
    service: str
    ack_wait: float = 30
    max_ack_pending: int = 1000

    def config(self) -> ConsumerConfig:
        """The settings on the server."""
        return ConsumerConfig(
            durable_name=self.durable,
            name=self.durable,
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self.ack_wait,
            max_deliver=-1,
            max_ack_pending=self.max_ack_pending,
        )


STREAMS = (
    Stream("TICKETS", ("tickets.*",)),
    Stream("ORDERS", ("orders.*",)),
    Stream("EXPIRATION", ("expiration.*",)),
    Stream("DEAD", ("dead.>",)),
)

CONSUMERS = (
    Consumer("orders-keep-book", "TICKETS", "orders"),
    Consumer("orders-cancel-expired", "EXPIRATION", "orders"),
    Consumer("orders-capture-payment", "ORDERS", "orders"),
    Consumer("orders-void-payments", "ORDERS", "orders"),
    # A delayed message stays pending, and a crash of the server falls back to ack_wait: no limit, and soon.
    Consumer("expiration-hold-orders", "ORDERS", "expiration", ack_wait=10, max_ack_pending=-1),
)

CONSUMER: Mapping[str, Consumer] = {consumer.durable: consumer for consumer in CONSUMERS}


def trouble_with_stream(there: StreamConfig, wanted: StreamConfig) -> str:
    """In what a stream differs from what it should be; empty if in nothing that matters."""
    names = ("subjects", "num_replicas", "allow_atomic", "allow_direct", "deny_delete", "deny_purge")
    return _differences(there, wanted, names)


def trouble_with_consumer(there: ConsumerConfig, wanted: ConsumerConfig) -> str:
    """The same of a consumer."""
    return _differences(there, wanted, ("ack_wait", "max_ack_pending", "max_deliver"))


def _differences(there: object, wanted: object, names: Sequence[str]) -> str:
    pairs = [(name, getattr(there, name), getattr(wanted, name)) for name in names]
    return ", ".join(f"{name} is {is_now}, not {should}" for name, is_now, should in pairs if is_now != should)


async def inspect(client: Client, *, replicas: int = 1) -> dict[str, str]:
    """Every stream and consumer by name, with what is wrong with it (empty: nothing). Raises Unavailable."""
    js = client.jetstream(timeout=5)
    found = {}
    try:
        for stream in STREAMS:
            try:
                there = (await js.stream_info(stream.name)).config
                found[f"stream {stream.name}"] = trouble_with_stream(there, stream.config(replicas))
            except NotFoundError:
                found[f"stream {stream.name}"] = "missing"
        for consumer in CONSUMERS:
            name = f"consumer {consumer.durable}"
            try:
                settings = (await js.consumer_info(consumer.stream, consumer.durable)).config
                found[name] = trouble_with_consumer(settings, consumer.config())
            except NotFoundError:
                found[name] = "missing"
    except (nats.errors.Error, OSError) as error:
        raise Unavailable(f"JetStream does not answer: {error!r}") from error
    return found


async def migrate(client: Client, *, replicas: int = 1, report: Callable[[str], None] = lambda _: None) -> None:
    """Make the server's streams and consumers what this page says; safe to repeat. Raises Unavailable.

    `report` is told each thing created or changed.
    """
    js = client.jetstream(timeout=10)
    try:
        for stream in STREAMS:
            wanted = stream.config(replicas)
            try:
                there = (await js.stream_info(stream.name)).config
            except NotFoundError:
                await js.add_stream(wanted)
                report(f"created stream {stream.name}")
            else:
                if trouble_with_stream(there, wanted):
                    await js.update_stream(wanted)
                    report(f"updated stream {stream.name}")
        for consumer in CONSUMERS:
            try:
                settings = (await js.consumer_info(consumer.stream, consumer.durable)).config
            except NotFoundError:
                await js.add_consumer(consumer.stream, consumer.config())
                report(f"created consumer {consumer.durable} on {consumer.stream}")
            else:
                if trouble_with_consumer(settings, consumer.config()):
                    await js.add_consumer(consumer.stream, consumer.config())
                    report(f"updated consumer {consumer.durable} on {consumer.stream}")
    except (nats.errors.Error, OSError) as error:
        raise Unavailable(f"JetStream does not take the topology: {error}") from error
