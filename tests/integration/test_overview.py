"""What operators are told of the system that runs: what the topology names, as it really is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import timedelta

import msgspec
import pytest

from common import status
from common.clock import new_id, now
from common.errors import Unavailable
from common.event_log import Draft
from common.events import ExpirationCompleted
from common.projector import Projector
from common.requests import Answering, Endpoint, Responder
from common.runtime import Platform, running
from common.status import EndpointStats, ReadModelStats, ServiceStats, Stats
from common.topology import CONSUMERS, SERVICES, STREAMS
from services.cli.servers import NatsServer
from services.cli.system import READ_MODELS, tell_read_models
from services.history import overview
from services.history.letters import Letters
from services.history.overview import Overview, StreamView, read_model_of
from tests.facts import draft
from tests.harness import eventually, held
from tests.integration.test_dead_letters import DURABLE, bury, reading

MODELS = [*READ_MODELS.values()]

Found = tuple[int | None, int | None, str]
"""How far a read model is, how far behind, and what is wrong."""


class Nothing(msgspec.Struct):
    """A question and an answer."""


async def say_nothing(_: Nothing) -> Nothing:
    return Nothing()


@asynccontextmanager
async def answering(platform: Platform, service: str, *projectors: Projector) -> AsyncIterator[Responder]:
    """Somebody answers for a service, and writes its read models."""
    responder = Responder(service, [Answering(Endpoint(service, "x", Nothing, Nothing), say_nothing)], platform.client)
    responder.also([Answering(Endpoint(service, "y", Nothing, Nothing), say_nothing)])
    tell_read_models([responder, *projectors])
    async with running([responder, *projectors]):
        yield responder


@pytest.fixture
async def letters(streams: Platform) -> AsyncIterator[Letters]:
    async with reading(streams) as letters:
        yield letters


async def test_it_is_drawn_from_the_topology(streams: Platform, letters: Letters) -> None:
    system = await Overview(streams, letters, MODELS).view()
    assert [(each.name, each.subjects, each.readers) for each in system.streams] == [
        (each.name, each.subjects, each.readers) for each in STREAMS
    ]
    assert [(each.name, each.service, each.stream, each.subject) for each in system.consumers] == [
        (each.durable, each.service, each.stream, each.subject) for each in CONSUMERS
    ]
    assert [each.name for each in system.services] == [*SERVICES]
    assert [each.name for each in system.streams if not each.there] == []
    assert [each.name for each in system.consumers if not each.there] == []
    assert [(each.name, each.service, each.stream, each.sequence, each.lag) for each in system.read_models] == [
        (model.name, model.service, stream, None, None) for model in MODELS for stream in model.sources
    ]
    writers = {each.name: each.writers for each in system.streams}
    assert all(writers[each.name] == each.writers for each in STREAMS if each.writers)
    assert set(writers["DEAD"]) == {each.service for each in CONSUMERS}


async def test_figures_are_those_of_nats(streams: Platform, letters: Letters) -> None:
    js = streams.client.jetstream()
    await streams.event_log.append("tickets.a", [draft(n) for n in range(3)], expected=0)
    await js.delete_consumer("ORDERS", "notification-tell-buyers")
    waiting = await js.pull_subscribe_bind("orders-keep-book", "TICKETS")
    [first] = await waiting.fetch(1)
    await first.ack_sync()
    [_] = await waiting.fetch(1)
    system = await Overview(streams, letters, MODELS).view()
    [tickets] = [each for each in system.streams if each.name == "TICKETS"]
    assert (tickets.messages, tickets.first_sequence, tickets.sequence, tickets.replicas) == (3, 1, 3, 1)
    assert tickets.bytes > 0
    assert tickets.first_at
    assert tickets.last_at
    assert tickets.first_at <= tickets.last_at <= system.at
    consumers = {each.name: each for each in system.consumers}
    book = consumers["orders-keep-book"]
    assert (book.lag, book.ack_pending, book.delivered, book.settled, book.dead) == (1, 1, 2, 1, 0)
    assert book.last_active
    assert [name for name, each in consumers.items() if not each.there] == ["notification-tell-buyers"]
    assert next(each for each in system.streams if each.name == "ORDERS").last_at is None


async def test_who_answers_is_told_and_who_does_no_more(
    streams: Platform, letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = Overview(streams, letters, MODELS)
    monkeypatch.setattr(overview, "FRESH_SECONDS", 0)

    async def orders() -> tuple[str, int, list[list[str]]]:
        [found] = [each for each in (await looking.view()).services if each.name == "orders"]
        return found.state, found.processes, [[each.name for each in one.endpoints] for one in found.instances]

    assert await orders() == ("away", 0, [])
    async with answering(streams, "orders"):
        await eventually(orders, ("up", 1, [["x", "y"]]))
        async with answering(streams, "orders"):
            await eventually(orders, ("up", 1, [["x", "y"]] * 2))
            await streams.client.request("requests.orders.x", b"{}", timeout=5)
            instances = [one for each in (await looking.view()).services for one in each.instances]
            assert sum(point.requests for one in instances for point in one.endpoints) == 1
    await eventually(orders, ("silent", 0, [["x", "y"]] * 2))
    monkeypatch.setattr(status, "REMEMBERED_SECONDS", 0)
    assert await orders() == ("away", 0, [])


async def test_how_far_read_models_are_is_told_by_who_writes_them(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "FRESH_SECONDS", 0)
    model, url = READ_MODELS["tickets"], platform.settings.database_url

    def replica() -> AbstractAsyncContextManager[Responder]:
        return answering(platform, "tickets", Projector(model, "TICKETS", platform.event_log, url))

    async def tell(ticket: str, count: int) -> None:
        await platform.event_log.append(f"tickets.{ticket}", [draft(n) for n in range(count)], expected=0)

    async with reading(platform) as letters, AsyncExitStack() as first, AsyncExitStack() as second:
        looking = Overview(platform, letters, [model])

        async def found() -> Found:
            [found] = [each for each in (await looking.view()).read_models if each.stream == "TICKETS"]
            return found.sequence, found.lag, found.problem.rpartition("; ")[2]

        async def comes_to(sequence: int | None, lag: int | None, problem: str = "") -> None:
            wanted: Found = sequence, lag, problem
            await eventually(found, wanted)

        await tell("a", 3)
        await comes_to(None, None)
        await first.enter_async_context(replica())
        await comes_to(3, 0)
        await second.enter_async_context(replica())
        async with held(url, model.name):
            await tell("b", 2)
            await comes_to(3, 2)
        await comes_to(5, 0)
        await first.aclose()  # the other takes over
        await tell("c", 1)
        await comes_to(6, 0)
        await platform.client.jetstream().publish("tickets.d", b"{", headers={"ce-type": "ticket_withdrawn"})
        await comes_to(6, 1, "deploy the code that knows this event")
        await second.aclose()
        await comes_to(None, None)


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ([], (None, None, "")),
        ([(None, None), (3, None)], (3, 2, "")),
        ([(4, None), (3, "stuck")], (4, 1, "")),
        ([(4, "stuck"), (4, None)], (4, 1, "")),
        ([(4, "stuck"), (None, None)], (4, 1, "stuck")),
        ([(None, "stuck")], (None, None, "stuck")),
        ([(7, None)], (7, 0, "")),  # it was asked after the stream
    ],
)
def test_of_several_replicas_the_furthest_is_believed(told: list[tuple[int | None, str | None]], seen: Found) -> None:
    model = READ_MODELS["orders"]

    def stats_of(sequence: int | None, problem: str | None) -> Stats:
        data = ServiceStats([ReadModelStats(model.name, "ORDERS", sequence, problem)])
        return Stats("orders", "", "1.0.0", now(), [EndpointStats("x", data=data)])

    stream = StreamView(name="ORDERS", subjects=(), writers=(), readers=(), there=True, sequence=5)
    answering = [(stats_of(9, "silent"), False), *((stats_of(*each), True) for each in told)]
    for order in (answering, answering[::-1]):
        found = read_model_of(model, stream, order)
        assert (found.sequence, found.lag, found.problem) == seen


async def test_what_was_given_up_on_is_counted(streams: Platform, letters: Letters) -> None:
    await bury(streams, "one", "two")

    async def dead() -> list[int | None]:
        system = await Overview(streams, letters, MODELS).view()
        [of] = [each.dead for each in system.consumers if each.name == DURABLE]
        return [system.dead, system.dead_open, of]

    wanted: list[int | None] = [2, 2, 2]
    await eventually(dead, wanted)


async def test_how_late_expirations_were(streams: Platform, letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "FRESH_SECONDS", 0)
    looking, at = Overview(streams, letters, MODELS), now()

    async def expire(number: int) -> None:
        told = ExpirationCompleted(new_id(), new_id(), at, at + timedelta(milliseconds=number))
        await streams.event_log.append(f"expiration.{new_id()}", [Draft.of(told)], expected=0)

    for number in range(overview.EXPIRATIONS + 2):
        await expire(number)
    assert [each.late_ms for each in (await looking.view()).expirations] == [*range(2, overview.EXPIRATIONS + 2)]
    await streams.client.jetstream().publish("expiration.x", b"{", headers={"ce-type": "expiration_completed"})
    await expire(7)
    assert [each.late_ms for each in (await looking.view()).expirations][-2:] == [overview.EXPIRATIONS + 1, 7]


async def test_many_who_look_cost_as_much_as_one(streams: Platform, letters: Letters) -> None:
    looking = Overview(streams, letters, MODELS)
    before = streams.client.stats["out_msgs"]
    first, *others = await asyncio.gather(*(looking.view() for _ in range(100)))
    assert all(each is first for each in others)
    assert streams.client.stats["out_msgs"] - before == 1 + len(STREAMS) + len(CONSUMERS)


async def test_that_nats_is_away_is_told_and_passes(nats: NatsServer, streams: Platform, letters: Letters) -> None:
    looking = Overview(streams, letters, MODELS)
    await looking.view()
    await nats.stop()

    async def told() -> str:
        try:
            await looking.view()
        except Unavailable as error:
            return error.detail
        return ""

    await eventually(told, status.AWAY)
    await nats.start()
    await eventually(told, "")
