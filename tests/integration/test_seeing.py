"""Spans of listeners and requests, and figures of the whole system, on a real NATS."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from common import tracing
from common.errors import Retry
from common.event_log import Draft
from common.metrics import Process, registry_of, scraped_at
from common.projector import Projector
from common.requests import Answering, Endpoint, Requester, Responder
from common.runtime import Platform, Service, running
from common.settings import Settings
from common.telemetry import Cause, cause
from common.topology import CONSUMERS, STREAMS
from services.cli.servers import NatsServer, free_port
from services.cli.system import READ_MODELS
from services.history.gauges import Gauges
from services.history.letters import Letters
from tests.collector import Collector
from tests.facts import fact
from tests.harness import eventually
from tests.integration.test_dead_letters import bury, reading
from tests.integration.test_listener import DURABLE, Hear, listening
from tests.integration.test_overview import answering

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CAUSE = Cause("conversation", "request", f"00-{TRACE}-{PARENT}-01")
MODELS = [*READ_MODELS.values()]


@asynccontextmanager
async def traced() -> AsyncIterator[Collector]:
    """What is done in here is traced; the collector has all of it afterwards."""
    async with Collector() as collector, tracing.collecting(Settings(otlp_endpoint=collector.url)) as tracers:
        with tracing.acting_as("orders", tracers):
            yield collector


async def test_every_delivery_has_waited_and_is_heard(streams: Platform) -> None:
    hear = Hear()
    hear.errors[1] = [Retry(0.1), ValueError("of no interest")]
    async with traced() as collector:
        draft = Draft.of(fact(1), CAUSE)
        await streams.event_log.append("expiration.1", [draft], expected=0)
        async with listening(streams, hear):

            async def heard() -> list[int]:
                return hear.done

            await eventually(heard, [1])
    spans = sorted((span for span in collector.spans if "append" not in span.name), key=lambda span: span.ended)
    assert [(span.name, span.told["boxoffice.delivery"], span.told.get("boxoffice.outcome")) for span in spans] == [
        (f"{what} {DURABLE}", delivery, outcome if what == "hear" else None)
        for delivery, outcome in ((1, "retry"), (2, "error"), (3, "done"))
        for what in ("wait", "hear")
    ]
    assert {(span.trace, span.parent, span.told["messaging.message.id"]) for span in spans} == {
        (TRACE, PARENT, draft.id)
    }
    waits, hears = spans[::2], spans[1::2]
    assert len({wait.began for wait in waits}) == 1, "each since the event was stored"
    assert all(wait.ended <= span.began for wait, span in zip(waits, hears, strict=True))
    assert [(span.failed, span.told.get("error.type")) for span in hears] == [
        (False, None),
        (True, "ValueError"),
        (False, None),
    ]


class Nothing(msgspec.Struct):
    """A question and an answer."""


async def test_a_question_and_its_answer_are_of_one_trace(streams: Platform) -> None:
    asked: list[Cause | None] = []

    async def answer(_: Nothing) -> Nothing:
        asked.append(cause.get())
        return Nothing()

    endpoint = Endpoint("orders", "x", Nothing, Nothing)
    async with traced() as collector, running([Responder("orders", [Answering(endpoint, answer)], streams.client)]):
        token = cause.set(CAUSE)
        await Requester(streams.client).ask(endpoint, Nothing())
        cause.reset(token)
    server, client = sorted(collector.of(TRACE), key=lambda span: span.kind)
    assert (client.name, client.kind, client.parent) == ("requests.orders.x", 3, PARENT)
    assert (server.name, server.kind, server.parent) == ("requests.orders.x", 2, client.id)
    assert [each and each.traceparent for each in asked] == [f"00-{TRACE}-{server.id}-01"]


def figures(name: str) -> dict[str, float]:
    """A metric of this process, by the values of its labels."""
    found = (sample for family in REGISTRY.collect() for sample in family.samples)
    return {"/".join(each.labels.values()): each.value for each in found if each.name == name}


@pytest.fixture
async def letters(streams: Platform) -> AsyncIterator[Letters]:
    async with reading(streams) as letters:
        yield letters


async def test_the_whole_system_is_told_in_figures(streams: Platform, letters: Letters, database_url: str) -> None:
    await streams.event_log.append("expiration.1", [Draft.of(fact(1), CAUSE)], expected=0)
    await bury(streams, "one", "two")
    await bury(streams, "of a listener that is no more", **{"dead-listener": "orders-made-up"})

    async def dead() -> int:
        return sum((letters.open_by_listener() or {}).values())

    await eventually(dead, 3)
    await streams.client.jetstream().delete_consumer("TICKETS", "orders-keep-book")
    gauges = Gauges(streams, letters, MODELS)
    stuck = Projector(READ_MODELS["orders"], "ORDERS", streams.event_log, database_url)  # there are no tables
    async with answering(streams, "orders", stuck):
        await gauges.look()
    assert figures("boxoffice_stream_leader") == {stream.name: 1 for stream in STREAMS}
    assert figures("boxoffice_stream_messages")["EXPIRATION"] == 1
    assert figures("boxoffice_stream_bytes")["EXPIRATION"] > 100
    there = {consumer.durable: 1 for consumer in CONSUMERS} | {"orders-keep-book": 0}
    assert figures("boxoffice_listener_there") == there
    assert figures("boxoffice_listener_pending")["orders-cancel-expired"] == 1
    assert "orders-keep-book" not in figures("boxoffice_listener_pending")
    of_dead = figures("boxoffice_dead_letters_open")
    assert {name: count for name, count in of_dead.items() if count} == {DURABLE: 2, "other": 1}
    assert figures("boxoffice_read_model_stopped")["orders/ORDERS"] == 1
    assert figures("boxoffice_read_model_lag_events") == {}
    assert figures("boxoffice_service_processes")["orders"] == 1
    assert figures("boxoffice_service_processes")["tickets"] == 0
    assert figures("boxoffice_system_looked_at_seconds")[""] > 0


async def test_without_an_answer_there_is_no_leader_and_no_figure(
    streams: Platform, letters: Letters, nats: NatsServer
) -> None:
    gauges = Gauges(streams, letters, MODELS)
    await gauges.look()
    at = figures("boxoffice_system_looked_at_seconds")
    await nats.stop()

    async def gone() -> bool:
        return streams.client.is_connected

    await eventually(gone, False)
    await gauges.look()
    assert figures("boxoffice_stream_leader") == {stream.name: 0 for stream in STREAMS}
    assert figures("boxoffice_stream_bytes") == figures("boxoffice_listener_pending") == {}
    assert figures("boxoffice_system_looked_at_seconds") == at


class Worker:
    """One that has a problem."""

    name = "orders.ORDERS"

    def __init__(self, problem: str | None) -> None:
        self.problem = problem

    async def run(self) -> None: ...


@pytest.mark.parametrize(
    ("problem", "stopped", "away"),
    [(None, 0, 0), ("the read model is catching up", 1, 0), ("Postgres does not answer: OSError; it goes on", 1, 1)],
)
def test_a_process_tells_how_its_workers_are(problem: str | None, stopped: int, away: int) -> None:
    services = [Service("orders", workers=[Worker(problem)]), Service("tickets")]
    registry = CollectorRegistry()
    registry.register(Process(services, lambda: False))
    told = registry.get_sample_value
    assert told("boxoffice_nats_connected") == 0
    assert told("boxoffice_worker_problem", {"service": "orders", "worker": "orders.ORDERS"}) == stopped
    assert told("boxoffice_postgres_away", {"service": "orders"}) == away
    assert told("boxoffice_postgres_away", {"service": "tickets"}) == 0


async def test_a_port_of_its_own_tells_the_metrics_until_it_is_closed() -> None:
    port, registry = free_port(), registry_of([], lambda: True)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        with scraped_at("127.0.0.1", port, registry):
            assert "boxoffice_nats_connected 1.0" in (await http.get("/metrics")).text
            taken = rf"in use: 127\.0\.0\.1:{port} \(BOXOFFICE_METRICS_PORT\)"
            with pytest.raises(OSError, match=taken), scraped_at("127.0.0.1", port, registry):
                pass
    with socket.socket() as door:
        assert door.connect_ex(("127.0.0.1", port)) != 0
