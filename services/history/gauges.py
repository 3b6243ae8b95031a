"""How the log, who hears it and the read models are, as figures for whoever scrapes this service: it alone may ask."""

import asyncio
from collections.abc import Awaitable, Sequence
from time import time
from typing import TypeVar

from prometheus_client import Gauge

from common.errors import Unavailable
from common.projector import ReadModel
from common.runtime import Platform
from common.status import Roll, Stats, status_of_consumer, status_of_stream
from common.topology import CONSUMER, CONSUMERS, SERVICES, STREAMS
from services.history.letters import Letters
from services.history.overview import StreamView, read_model_of, service_of

T = TypeVar("T")


LOOK_SECONDS = 5.0
"""How often it is looked. A look is 26 questions to NATS and one to all services, whoever scrapes and how often."""

LOOKED_AT = Gauge("boxoffice_system_looked_at_seconds", "When all of the system was last looked at, in Unix time")
LOG_LIMIT = Gauge("boxoffice_log_limit_bytes", "What NATS may store (BOXOFFICE_LOG_BYTES); 0: nobody said")
MESSAGES = Gauge("boxoffice_stream_messages", "Messages in a stream", ["stream"])
BYTES = Gauge("boxoffice_stream_bytes", "Bytes that a stream takes on each server that has it", ["stream"])
LEADER = Gauge("boxoffice_stream_leader", "Whether a stream has a leader, which answers", ["stream"])
THERE = Gauge("boxoffice_listener_there", "Whether the durable consumer of a listener exists", ["listener"])
PENDING = Gauge("boxoffice_listener_pending", "Events that were not delivered to a listener yet", ["listener"])
ACK_PENDING = Gauge(
    "boxoffice_listener_ack_pending", "Events delivered and not done with, also those put back", ["listener"]
)
DEAD_OPEN = Gauge("boxoffice_dead_letters_open", "Dead letters about which nothing was done yet", ["listener"])
LAG = Gauge("boxoffice_read_model_lag_events", "Events that are not in a read model yet", ["read_model", "stream"])
STOPPED = Gauge(
    "boxoffice_read_model_stopped",
    "Whether nobody writes a read model, or who does cannot go on",
    ["read_model", "stream"],
)
PROCESSES = Gauge("boxoffice_service_processes", "Processes that answer for a service", ["service"])

OTHER = "other"
"""Whose dead letter it is when no listener has that name any more: anybody who may bury one could make up names."""


async def answered(question: Awaitable[T]) -> T | Unavailable:
    """The answer, or that there was none."""
    try:
        return await question
    except Unavailable as error:
        return error


class Gauges:
    """Looks at the system now and then."""

    name = "history.gauges"

    def __init__(self, platform: Platform, letters: Letters, read_models: Sequence[ReadModel]) -> None:
        self.problem: str | None = None
        self._client = platform.client
        self._letters = letters
        self._read_models = read_models
        self._roll = Roll(platform.client)
        LOG_LIMIT.set(platform.settings.log_bytes)

    async def run(self) -> None:
        """Look until cancelled. What NATS does not tell is not told here either."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Look once, and tell all of it together: what nobody answered to is not told of."""
        answering, streams, consumers = await asyncio.gather(
            answered(self._roll.call()),
            asyncio.gather(*(answered(status_of_stream(self._client, each)) for each in STREAMS)),
            asyncio.gather(*(answered(status_of_consumer(self._client, each)) for each in CONSUMERS)),
        )
        for gauge in (MESSAGES, BYTES, THERE, PENDING, ACK_PENDING, DEAD_OPEN, LAG, STOPPED, PROCESSES):
            gauge.clear()
        ends: dict[str, int] = {}
        for stream, told in zip(STREAMS, streams, strict=True):
            there = told is not None and not isinstance(told, Unavailable)
            LEADER.labels(stream.name).set(there)
            if told is not None and not isinstance(told, Unavailable):
                ends[stream.name] = told.state.last_seq
                MESSAGES.labels(stream.name).set(told.state.messages)
                BYTES.labels(stream.name).set(told.state.bytes)
        for consumer, status in zip(CONSUMERS, consumers, strict=True):
            if isinstance(status, Unavailable):
                continue
            THERE.labels(consumer.durable).set(status is not None)
            if status is not None:
                PENDING.labels(consumer.durable).set(status.num_pending)
                ACK_PENDING.labels(consumer.durable).set(status.num_ack_pending)
        if (dead := self._letters.open_by_listener()) is not None:
            DEAD_OPEN.labels(OTHER).set(sum(count for name, count in dead.items() if name not in CONSUMER))
            for durable in CONSUMER:
                DEAD_OPEN.labels(durable).set(dead.get(durable, 0))
        if not isinstance(answering, Unavailable):
            for name in SERVICES:
                if (service := service_of(name, answering)).state != "unasked":
                    PROCESSES.labels(name).set(service.processes)
            for model in self._read_models:
                for name in model.sources:
                    self._tell_read_model(model, name, ends.get(name), answering)
            if len(ends) == len(STREAMS):
                LOOKED_AT.set(time())

    @staticmethod
    def _tell_read_model(model: ReadModel, name: str, end: int | None, answering: list[tuple[Stats, bool]]) -> None:
        stream = StreamView(name=name, subjects=(), writers=(), readers=(), there=end is not None, sequence=end or 0)
        view = read_model_of(model, stream, answering)
        STOPPED.labels(model.name, name).set(bool(view.problem) or view.sequence is None)
        if view.lag is not None:
            LAG.labels(model.name, name).set(view.lag)
