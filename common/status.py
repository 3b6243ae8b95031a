"""What services, streams and consumers tell of themselves: nothing of what they hold."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from common.errors import Unavailable
from common.rights import STATS
from common.topology import Consumer, Stream

T = TypeVar("T", bound="_Told")

ANSWER_SECONDS = 2.0
"""How long NATS is given to answer."""

HEAR_SECONDS = 0.4
"""How long services are waited for that do not answer; else no longer than until all known ones have."""

MORE_SECONDS = 0.05
"""How long after them others may answer that are not known yet."""

REMEMBERED_SECONDS = 15.0
"""For so long somebody who answers no more is told of; then it is gone."""

NOT_FOUND = 404

AWAY = "NATS does not answer, so nobody knows how the system is."


class ReadModelStats(msgspec.Struct, frozen=True):
    """How far one replica has brought a read model in a stream: up to `sequence`, if it is the one that writes it.

    `problem`: why it does not go on.
    """

    name: str
    stream: str
    sequence: int | None
    problem: str | None


class ServiceStats(msgspec.Struct, frozen=True):
    """What a service of ours tells of itself beside what all of nats.micro do."""

    read_models: list[ReadModelStats] = []


class EndpointStats(msgspec.Struct, frozen=True):
    """An endpoint of a service, and how often it was asked. Times are nanoseconds."""

    name: str
    num_requests: int = 0
    num_errors: int = 0
    average_processing_time: int = 0
    last_error: str | None = None
    data: ServiceStats | None = None


class Stats(msgspec.Struct, frozen=True):
    """What nats.micro tells on `$SRV.STATS` (ADR-32)."""

    name: str
    id: str
    version: str
    started: datetime
    endpoints: list[EndpointStats] = []
    metadata: dict[str, str] | None = None

    @property
    def process(self) -> str:
        """Where it runs; its id, where it does not tell."""
        return (self.metadata or {}).get("process", self.id)

    @property
    def read_models(self) -> list[ReadModelStats]:
        """Those that it tells of; each of its endpoints tells the same."""
        return next((each.data.read_models for each in self.endpoints if each.data), [])


class StreamState(msgspec.Struct, frozen=True):
    """What a stream holds."""

    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0
    first_ts: datetime | None = None
    last_ts: datetime | None = None


class Cluster(msgspec.Struct, frozen=True):
    """Who leads, where there are several servers."""

    leader: str | None = None


class StreamSettings(msgspec.Struct, frozen=True):
    """On how many servers it is."""

    num_replicas: int = 1


class Place(msgspec.Struct, frozen=True):
    """How far a consumer is, in its deliveries and in its stream."""

    consumer_seq: int = 0
    stream_seq: int = 0
    last_active: datetime | None = None


class ApiError(msgspec.Struct, frozen=True):
    """What JetStream says is wrong."""

    description: str = ""
    code: int = 0


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    error: ApiError | None = None


class StreamStatus(_Told, frozen=True, kw_only=True):
    """A stream, as JetStream tells."""

    state: StreamState = StreamState()
    config: StreamSettings = StreamSettings()
    cluster: Cluster | None = None


class ConsumerStatus(_Told, frozen=True, kw_only=True):
    """A consumer, as JetStream tells."""

    delivered: Place = Place()
    ack_floor: Place = Place()
    num_ack_pending: int = 0
    num_redelivered: int = 0
    num_pending: int = 0


async def status_of_stream(client: Client, stream: Stream) -> StreamStatus | None:
    """None for one that is missing. Raises Unavailable."""
    return await _ask(client, f"STREAM.INFO.{stream.name}", StreamStatus)


async def status_of_consumer(client: Client, consumer: Consumer) -> ConsumerStatus | None:
    """None for one that is missing. Raises Unavailable."""
    return await _ask(client, f"CONSUMER.INFO.{consumer.stream}.{consumer.durable}", ConsumerStatus)


async def _ask(client: Client, what: str, kind: type[T]) -> T | None:
    try:
        reply = await client.request(f"$JS.API.{what}", timeout=ANSWER_SECONDS)
    except (nats.errors.Error, OSError) as error:
        raise Unavailable(AWAY) from error
    told = msgspec.json.decode(reply.data, type=kind)
    if told.error is None:
        return told
    if told.error.code == NOT_FOUND:
        return None
    raise Unavailable(f"JetStream does not tell how it is: {told.error.description}.")


class Roll:
    """Calls the services, and remembers who answered: how many there are, nobody knows."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[str, tuple[Stats, float]] = {}  # by id; when it last answered

    async def call(self) -> list[tuple[Stats, bool]]:
        """Who answers, or did a moment ago, and whether it has just done so. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        began, heard, complete = loop.time(), set[str](), asyncio.Event()
        expected = set(self._known)

        async def hear(message: Msg) -> None:
            with suppress(msgspec.MsgspecError):
                told = msgspec.json.decode(message.data, type=Stats)
                self._known[told.id] = (told, loop.time())
                heard.add(told.id)
                if expected and expected <= heard:
                    complete.set()

        inbox = self._client.new_inbox()
        try:
            subscription = await self._client.subscribe(inbox, cb=hear)
            try:
                await self._client.publish(STATS, reply=inbox)
                with suppress(TimeoutError):
                    async with asyncio.timeout(HEAR_SECONDS):
                        await complete.wait()
                        await asyncio.sleep(MORE_SECONDS)
            finally:
                await subscription.unsubscribe()
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(AWAY) from error
        self._known = {key: each for key, each in self._known.items() if began - each[1] < REMEMBERED_SECONDS}
        return [(stats, stats.id in heard) for stats, _ in self._known.values()]


def moment(at: datetime | None) -> datetime | None:
    """A time as the server tells it; it has the year 1 for never."""
    return at if at and at > datetime(1970, 1, 2, tzinfo=UTC) else None
