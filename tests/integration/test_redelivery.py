"""An event that a listener hears once more because somebody asks for it: in its turn, once, and with a true answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from nats.aio.client import Client

from common.errors import Invalid, NotFound, Retry, Unavailable
from common.event_log import Draft, Stored
from common.events import ExpirationCompleted, TicketWithdrawn, encode
from common.listener import Listener, Subscription
from common.requests import Requester, Responder, redelivery
from common.requests.redelivery import Redelivered, Redelivery, answering, endpoint_of, service_of
from common.runtime import Platform, connect, running
from common.settings import Settings
from common.telemetry import Cause, current_cause
from common.topology import CONSUMER
from services.cli.embedded import with_login
from services.cli.servers import NatsServer
from tests.facts import AT, STREAM, draft, drafts, fact, number_of
from tests.harness import PASSWORDS, eventually
from tests.integration.test_listener import Hear, until

DURABLE = Hear.durable
SUBJECT = "expiration.a"


class HearCauses(Hear):
    """Hears facts, and why they are told."""

    def __init__(self) -> None:
        super().__init__()
        self.causes: list[Cause] = []

    async def on(self, event: ExpirationCompleted) -> None:
        self.causes.append(current_cause())
        await super().on(event)


@asynccontextmanager
async def serving(client: Client, listener: Listener[ExpirationCompleted]) -> AsyncIterator[Subscription]:
    """The orders service with this listener alone."""
    subscription = Subscription(listener, client)
    async with running([subscription, Responder("orders", [answering("orders", [subscription])], client)]):
        yield subscription


def again(stored: Stored, listener: str = DURABLE, **changes: object) -> Redelivery:
    """What is asked for: that event once more."""
    given = {"subject": stored.subject, "headers": stored.headers, "body": stored.body, **changes}
    return Redelivery(listener, stored.stream, sequence=stored.sequence, **given)  # type: ignore[arg-type]  # they are


async def stored(platform: Platform, sequence: int) -> Stored:
    found = await platform.event_log.stored(STREAM, sequence)
    assert found
    return found


@pytest.fixture
def ask(streams: Platform) -> "Ask":
    return Ask(streams)


class Ask:
    """Asks for an event of the stream once more."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._requester = Requester(platform.client)

    async def __call__(self, sequence: int, *, within: float = 10, **changes: object) -> Redelivered:
        question = again(await stored(self._platform, sequence), **changes)  # type: ignore[arg-type]  # they are
        return await self._requester.ask(endpoint_of("orders"), question, within=within)


async def test_an_event_is_heard_once_more_for_the_same_cause_and_the_answer_says_that_it_is_done(
    streams: Platform, ask: Ask
) -> None:
    why = Cause("the conversation", "the request", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    made = Draft.of(fact(7), why)
    await streams.event_log.append(SUBJECT, [made], expected=0)
    listener = HearCauses()
    async with serving(streams.client, listener) as subscription:
        await eventually(subscription.settled, 1)
        assert await ask(1) == Redelivered()
    assert listener.done == [7, 7]
    assert listener.causes == [Cause("the conversation", made.id, why.traceparent)] * 2


async def test_another_body_is_heard_in_place_of_what_was_stored(streams: Platform, ask: Ask) -> None:
    await streams.event_log.append(SUBJECT, [draft(1), draft(2)], expected=0)
    listener = Hear()
    async with serving(streams.client, listener) as subscription:
        await eventually(subscription.settled, 2)
        await ask(1, body=(await stored(streams, 2)).body)
    assert listener.done == [1, 2, 2]


async def test_why_it_failed_is_the_answer_and_nothing_more_becomes_of_it(streams: Platform, ask: Ask) -> None:
    await streams.event_log.append(SUBJECT, [draft(1)], expected=0)
    listener = Hear()
    async with serving(streams.client, listener) as subscription:
        await eventually(subscription.settled, 1)
        failures = [
            Invalid("no\nseats"),
            Unavailable("no gateway"),
            TimeoutError("slow"),
            Retry(12),
            KeyError("x" * 5000),
        ]
        listener.errors[1] = list(failures)
        told = [(await ask(1)).error for _ in failures]
        assert await ask(1) == Redelivered()
    assert told[:4] == [
        "Invalid: no\nseats",
        "Unavailable: no gateway",
        "TimeoutError: slow",
        "Retry: again in 12.000 s",
    ]
    assert told[4] == f"KeyError: '{'x' * 5000}'"[:2000]
    assert listener.given_up == []
    assert (await streams.event_log.end("DEAD")).sequence == 0


async def test_it_waits_for_what_is_being_heard_of_the_same_aggregate_and_others_wait_for_it(
    streams: Platform, ask: Ask
) -> None:
    await streams.event_log.append(SUBJECT, drafts([1, 2]), expected=0)
    await streams.event_log.append("expiration.b", drafts([11]), expected=0)
    listener = Hear()
    gate = listener.hold(2)
    async with serving(streams.client, listener) as subscription:
        await until(lambda: 2 in listener.begun and 11 in listener.done)
        asking = asyncio.create_task(ask(1))
        await ask(3)  # of another aggregate, at once
        await streams.event_log.append(SUBJECT, drafts([3]), expected=2)
        last = asyncio.create_task(ask(2))
        await ask(3)
        assert [number for number in listener.begun if number < 10] == [1, 2]
        gate.set()
        await asyncio.gather(asking, last)
        await eventually(subscription.settled, 4)
    assert [number for number in listener.done if number < 10][:3] == [1, 2, 1]
    assert sorted(number for number in listener.done if number < 10) == [1, 1, 2, 2, 3]
    assert listener.most < 3, "two of one aggregate at once"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"body": b'{"type":"expiration_completed","order_id":7}'}, "cannot be decoded.*order_id"),
        ({"body": b"not even JSON \xff"}, "cannot be decoded"),
        ({"headers": {}}, "cannot be decoded.*no event type ''"),
        ({"headers": {"ce-type": "order_postponed"}}, "cannot be decoded.*no event type 'order_postponed'"),
        (
            {"headers": {"ce-type": "ticket_withdrawn"}, "body": encode(TicketWithdrawn(UUID(int=1), "sam", AT))},
            "is ticket_withdrawn, and orders-cancel-expired hears only expiration_completed",
        ),
    ],
    ids=["wrong field", "no JSON", "no envelope", "unknown type", "another type"],
)
async def test_what_the_listener_would_not_hear_is_refused_and_not_heard(
    streams: Platform, ask: Ask, changes: dict[str, object], says: str
) -> None:
    await streams.event_log.append(SUBJECT, [draft(1)], expected=0)
    listener = Hear()
    async with serving(streams.client, listener) as subscription:
        await eventually(subscription.settled, 1)
        with pytest.raises(Invalid, match=says):
            await ask(1, **changes)  # type: ignore[arg-type]  # they are
    assert listener.done == [1]


async def test_a_listener_that_does_not_run_there_is_unavailable(streams: Platform, ask: Ask) -> None:
    await streams.event_log.append(SUBJECT, [draft(1)], expected=0)
    async with serving(streams.client, Hear()):
        with pytest.raises(Unavailable, match="orders-keep-book does not run in this process of orders"):
            await ask(1, listener="orders-keep-book")


async def test_whether_a_slow_one_is_done_is_not_guessed_and_it_is_not_begun_twice_at_once(
    streams: Platform, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    await streams.event_log.append(SUBJECT, [draft(1)], expected=0)
    listener = Hear()
    async with serving(streams.client, listener) as subscription:
        await eventually(subscription.settled, 1)
        gate = listener.hold(1)
        monkeypatch.setattr(redelivery, "DONE_WITHIN", 0.1)
        for _ in range(3):  # the first goes on, the others never begin
            with pytest.raises(Unavailable, match="was not done with it after 0 s"):
                await ask(1)
        assert listener.begun == [1, 1]
        monkeypatch.setattr(redelivery, "DONE_WITHIN", 10)
        last = asyncio.create_task(ask(1))
        gate.set()
        assert await last == Redelivered()
    assert listener.done == [1, 1, 1]


async def test_what_a_stopping_replica_has_not_done_is_asked_of_another(
    streams: Platform, nats: NatsServer, ask: Ask
) -> None:
    class Impatient(Hear):
        patience = 0

    await streams.event_log.append(SUBJECT, drafts([1, 2]), expected=0)
    stopping, other = Impatient(), Hear()
    async with connect(Settings(nats_url=nats.url), "stopping") as platform:
        async with serving(platform.client, stopping) as subscription:
            await eventually(subscription.settled, 2)
            stopping.hold(1)
            asking = [asyncio.create_task(ask(1, within=20))]
            await until(lambda: stopping.begun[2:] == [1])
            asking.append(asyncio.create_task(ask(2, within=20)))
        async with serving(streams.client, other):
            assert await asyncio.gather(*asking) == [Redelivered()] * 2
    assert (sorted(stopping.done), sorted(other.done)) == ([1, 2], [1, 2])


async def test_nobody_there_is_told_as_unavailable(streams: Platform, ask: Ask) -> None:
    await streams.event_log.append(SUBJECT, [draft(1)], expected=0)
    with pytest.raises(Unavailable, match="Nobody answers for orders"):
        await ask(1, within=0.2)


async def test_only_the_service_of_history_can_ask_and_the_others_can_answer(
    streams: Platform, nats: NatsServer
) -> None:
    def url(user: str) -> Settings:
        return Settings(nats_url=with_login(nats.url, user, PASSWORDS[user]))

    await streams.event_log.append(SUBJECT, [draft(1)], expected=0)
    question, listener = again(await stored(streams, 1)), Hear()
    async with (
        connect(url("orders"), "orders") as orders,
        connect(url("history"), "history") as history,
        serving(orders.client, listener) as subscription,
    ):
        await eventually(subscription.settled, 1)
        assert await Requester(history.client).ask(endpoint_of("orders"), question) == Redelivered()
        for user in ("batch", "orders", "tickets"):
            async with connect(url(user), user) as another:
                with pytest.raises(Unavailable):
                    await Requester(another.client).ask(endpoint_of("orders"), question, within=0.3)
    assert listener.done == [1, 1]


def test_a_consumer_hears_what_its_part_of_the_stream_takes() -> None:
    whole, one, work = CONSUMER["orders-keep-book"], CONSUMER["batch-release"], CONSUMER["batch-work-high"]
    assert whole.hears("TICKETS", "tickets.a")
    assert not whole.hears("ORDERS", "tickets.a")
    assert one.hears("BATCH", "batch.a")
    assert not one.hears("BATCH", "batch.high.a")
    assert work.hears("BATCH", "batch.high.a")
    assert not work.hears("BATCH", "batch.low.a")
    assert service_of("batch-release") == "batch"
    with pytest.raises(NotFound, match="there are orders-keep-book"):
        service_of("nobodys")


async def test_a_part_of_a_stream_that_is_anothers_is_refused(streams: Platform) -> None:
    one = Subscription(Hear(), streams.client)
    with pytest.raises(Invalid, match=r"does not hear tickets\.a of TICKETS, but all of EXPIRATION"):
        one.understood("TICKETS", "tickets.a", {}, b"")
    assert number_of(one.understood(STREAM, SUBJECT, {"ce-type": "expiration_completed"}, BODY)) == 3


BODY = (
    b'{"type":"expiration_completed","order_id":"00000000-0000-0000-0000-000000000003",'
    b'"ticket_id":"00000000-0000-0000-0000-000000000003","expires_at":"2030-01-01T00:00:00Z","at":"2030-01-01T00:00:00Z"}'
)
