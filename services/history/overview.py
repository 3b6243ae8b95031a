"""How the running system is, asked once for all who look."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from fnmatch import fnmatch
from typing import Any, Literal, Self

import msgspec

from common.clock import now
from common.event_log import JetStreamLog
from common.events import ExpirationCompleted, UndecodableEvent
from common.projector import ReadModel
from common.runtime import Platform
from common.status import Roll, Stats, moment, status_of_consumer, status_of_stream
from common.topology import ANSWERS, CONSUMERS, LISTENS, SERVICES, STREAMS, Consumer, Stream
from services.history.letters import DEAD, Letters

FRESH_SECONDS = 1.0
"""For so long what was found is told to whoever asks: many who look cost as much as one."""

EXPIRATIONS = 20
"""So many of the last expirations are looked at, each time; of more in a second, the last are told."""

KEPT = 100
"""So many of them are told."""

Standing = Literal["up", "silent", "away", "unasked"]


class EndpointView(msgspec.Struct, frozen=True):
    """Something that a service can be asked, and how often it was, since it started."""

    name: str
    requests: int
    errors: int
    average_ms: float
    last_error: str


class InstanceView(msgspec.Struct, frozen=True):
    """A part of a service that answers, and in which process. `answers`: it has just answered."""

    id: str
    process: str
    version: str
    started: datetime
    answers: bool
    endpoints: list[EndpointView]

    @classmethod
    def of(cls, stats: Stats, *, answers: bool) -> Self:
        endpoints = [
            EndpointView(
                each.name,
                each.num_requests,
                each.num_errors,
                each.average_processing_time / 1e6,
                (each.last_error or "")[:300],
            )
            for each in stats.endpoints
        ]
        return cls(stats.id, stats.process, stats.version, stats.started, answers, endpoints)


class ServiceView(msgspec.Struct, frozen=True):
    """A service: `away` if nobody answers for it, `silent` if who did does no more; `unasked` if it answers nothing."""

    name: str
    state: Standing
    processes: int
    instances: list[InstanceView]


class StreamView(msgspec.Struct, frozen=True, kw_only=True):
    """A stream: who publishes to it and who follows it beside its consumers, by the topology, and what it holds.

    `sequence` is that of its last message. `there`: it exists.
    """

    name: str
    subjects: tuple[str, ...]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    there: bool
    messages: int = 0
    bytes: int = 0
    first_sequence: int = 0
    sequence: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None
    replicas: int = 0
    leader: str | None = None


class ConsumerView(msgspec.Struct, frozen=True, kw_only=True):
    """A durable consumer: who hears what, by the topology, and how far it is.

    `lag`: messages that were not delivered yet; `ack_pending`: delivered and not settled, also those put back with a
    delay; `redelivered`: of those, the ones delivered more than once. `delivered` counts deliveries; up to the sequence
    `settled` of the stream everything is done with. `dead`: open letters of its own.
    """

    name: str
    service: str
    stream: str
    subject: str
    there: bool
    lag: int = 0
    ack_pending: int = 0
    redelivered: int = 0
    delivered: int = 0
    settled: int = 0
    last_active: datetime | None = None
    dead: int | None = None


class ReadModelView(msgspec.Struct, frozen=True):
    """A read model, and how far it is in one of the streams that it is made from.

    `sequence`: up to which; `lag`: how many events come after that. Null where nobody who answers knows: its service is
    away, or nobody of it writes it. `problem`: why whoever writes it does not go on; empty if there is none.
    """

    name: str
    service: str
    stream: str
    sequence: int | None
    lag: int | None
    problem: str


class ExpirationView(msgspec.Struct, frozen=True):
    """An order whose time was over: when that was told, and how many milliseconds too late."""

    sequence: int
    at: datetime
    late_ms: float


class SystemView(msgspec.Struct, frozen=True):
    """The system `at` a moment. `dead`: how many events were given up on, and how many of those are open.

    `expirations` are the last ones, oldest first.
    """

    at: datetime
    services: list[ServiceView]
    streams: list[StreamView]
    consumers: list[ConsumerView]
    read_models: list[ReadModelView]
    dead: int
    dead_open: int | None
    expirations: list[ExpirationView]


class Overview:
    """The system as it was found a moment ago, or is now."""

    def __init__(self, platform: Platform, letters: Letters, read_models: Sequence[ReadModel]) -> None:
        self._client = platform.client
        self._event_log: JetStreamLog = platform.event_log
        self._letters = letters
        self._read_models = read_models
        self._roll = Roll(platform.client)
        self._expirations: deque[ExpirationView] = deque(maxlen=KEPT)
        self._looked_up_to = 0
        self._look: asyncio.Task[SystemView] | None = None
        self._looked_at = 0.0

    async def view(self) -> SystemView:
        """The system, at most FRESH_SECONDS old. Raises Unavailable, which says what does not answer."""
        loop = asyncio.get_running_loop()
        if self._look is None or (self._look.done() and loop.time() - self._looked_at >= FRESH_SECONDS):
            self._look = asyncio.create_task(self._system())
            self._look.add_done_callback(self._looked)
        return await asyncio.shield(self._look)  # whoever goes away takes the answer of no other with them

    def _looked(self, look: asyncio.Task[SystemView]) -> None:
        self._looked_at = asyncio.get_running_loop().time()
        if not look.cancelled():
            look.exception()  # also when nobody is there any more who wants to know

    async def _system(self) -> SystemView:
        dead = self._letters.open_by_listener()
        answering, streams, consumers = await asyncio.gather(
            self._roll.call(),
            asyncio.gather(*(self._stream(stream) for stream in STREAMS)),
            asyncio.gather(*(self._consumer(consumer, dead) for consumer in CONSUMERS)),
        )
        by_name = {stream.name: stream for stream in streams}
        await self._look_at_expirations(by_name["EXPIRATION"].sequence)
        return SystemView(
            now(),
            [service_of(name, answering) for name in SERVICES],
            [*streams],
            [*consumers],
            [read_model_of(each, by_name[name], answering) for each in self._read_models for name in each.sources],
            by_name[DEAD].messages,
            None if dead is None else sum(dead.values()),
            [*self._expirations],
        )

    async def _stream(self, stream: Stream) -> StreamView:
        status = await status_of_stream(self._client, stream)
        told: dict[str, Any] = {}
        if status is not None:
            state = status.state
            told = {
                "messages": state.messages,
                "bytes": state.bytes,
                "first_sequence": state.first_seq,
                "sequence": state.last_seq,
                "first_at": moment(state.first_ts),
                "last_at": moment(state.last_ts),
                "replicas": status.config.num_replicas,
                "leader": status.cluster and status.cluster.leader,
            }
        return StreamView(
            name=stream.name,
            subjects=stream.subjects,
            writers=writers_of(stream),
            readers=stream.readers,
            there=status is not None,
            **told,
        )

    async def _consumer(self, consumer: Consumer, dead: Mapping[str, int] | None) -> ConsumerView:
        status = await status_of_consumer(self._client, consumer)
        told: dict[str, Any] = {}
        if status is not None:
            told = {
                "lag": status.num_pending,
                "ack_pending": status.num_ack_pending,
                "redelivered": status.num_redelivered,
                "delivered": status.delivered.consumer_seq,
                "settled": status.ack_floor.stream_seq,
                "last_active": moment(status.delivered.last_active),
            }
        return ConsumerView(
            name=consumer.durable,
            service=consumer.service,
            stream=consumer.stream,
            subject=consumer.subject,
            there=status is not None,
            dead=None if dead is None else dead.get(consumer.durable, 0),
            **told,
        )

    async def _look_at_expirations(self, end: int) -> None:
        """Read those that came since the last look. Raises Unavailable."""
        if end < self._looked_up_to:  # of another log
            self._expirations.clear()
            self._looked_up_to = 0
        new = range(max(self._looked_up_to, end - EXPIRATIONS) + 1, end + 1)
        for stored in await asyncio.gather(*(self._event_log.stored("EXPIRATION", sequence) for sequence in new)):
            with suppress(UndecodableEvent):
                if stored and isinstance(event := stored.decoded().event, ExpirationCompleted):
                    late = (event.at - event.expires_at).total_seconds() * 1000
                    self._expirations.append(ExpirationView(stored.sequence, event.at, late))
        self._looked_up_to = end


def service_of(name: str, answering: list[tuple[Stats, bool]]) -> ServiceView:
    """A service, by who answers in its name."""
    told = sorted((each for each in answering if each[0].name == name), key=lambda each: each[0].started)
    instances = [InstanceView.of(stats, answers=answers) for stats, answers in told]
    processes = len({each.process for each in instances if each.answers})
    state: Standing = "up" if processes else "silent" if instances else "away"
    if name not in ANSWERS and name not in LISTENS:
        state = "unasked"
    return ServiceView(name, state, processes, instances)


def read_model_of(model: ReadModel, stream: StreamView, answering: list[tuple[Stats, bool]]) -> ReadModelView:
    """How far a read model is in a stream. Its replicas share it, so whoever has come furthest tells the truth."""
    told = [
        each
        for stats, answers in answering
        if answers and stats.name == model.service
        for each in stats.read_models
        if (each.name, each.stream) == (model.name, stream.name)
    ]
    ranked = sorted(told, key=lambda each: (-1 if each.sequence is None else each.sequence, each.problem is None))
    sequence, problem = (ranked[-1].sequence, ranked[-1].problem) if ranked else (None, None)
    lag = max(0, stream.sequence - sequence) if stream.there and sequence is not None else None
    return ReadModelView(model.name, model.service, stream.name, sequence, lag, problem or "")


def writers_of(stream: Stream) -> tuple[str, ...]:
    """Who publishes to a stream: who appends to it, and whose listeners may bury something there."""
    subjects = [subject.replace(">", "*") for subject in stream.subjects]
    burying = {each.service for each in CONSUMERS if any(fnmatch(f"dead.{each.durable}", of) for of in subjects)}
    return (*stream.writers, *sorted(burying - {*stream.writers}))
