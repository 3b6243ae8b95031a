"""What a Listener promises: every event done, put back or buried, never lost; in order, and side by side."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import ClassVar, cast
from uuid import UUID

import pytest
from nats.aio.msg import Msg
from prometheus_client import REGISTRY

from common import topology
from common.errors import Invalid, Retry, Unavailable
from common.event_log import Draft
from common.events import (
    UPCASTS,
    BookListing,
    BookOpened,
    ExpirationCompleted,
    OrderCancelled,
    OrderCompleted,
    OrderCreated,
    TicketWithdrawn,
    decode,
    encode,
    type_of,
)
from common.listener import Listener, Subscription
from common.publisher import Publisher
from common.runtime import Platform, connect, running
from common.telemetry import Cause
from common.topology import CONSUMER, Consumer
from services.cli.servers import NatsServer
from tests.facts import AT, STREAM, draft, drafts, fact, number_of, tell
from tests.harness import eventually

DURABLE = "orders-cancel-expired"
SUBJECT = "expiration.a"


class Hear(Listener[ExpirationCompleted]):
    """Hears facts. What it does with one can be changed: a gate to wait at, errors to raise, also as it gives up."""

    durable = DURABLE
    attempts = 2

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.done: list[int] = []
        self.gates: dict[int, asyncio.Event] = {}
        self.errors: dict[int, list[Exception]] = {}
        self.given_up: list[tuple[int, str]] = []
        self.giving_up: list[Exception] = []
        self.now: set[int] = set()
        self.most = 0

    async def on(self, event: ExpirationCompleted) -> None:
        number = number_of(event)
        self.begun.append(number)
        self.now.add(number)
        self.most = max(self.most, len(self.now))
        try:
            if gate := self.gates.get(number):
                await gate.wait()
            if errors := self.errors.get(number):
                raise errors.pop(0)
        finally:
            self.now.discard(number)
        self.done.append(number)

    async def give_up(self, event: ExpirationCompleted, error: Exception) -> None:
        self.given_up.append((number_of(event), str(error)))
        if self.giving_up:
            raise self.giving_up.pop()

    def hold(self, *numbers: int) -> asyncio.Event:
        """A gate for these facts."""
        gate = asyncio.Event()
        self.gates |= dict.fromkeys(numbers, gate)
        return gate


@asynccontextmanager
async def listening(platform: Platform, *listeners: Listener[ExpirationCompleted]) -> AsyncIterator[Subscription]:
    """Each listener on a subscription of its own; the first one's is returned."""
    subscriptions = [Subscription(listener, platform.client) for listener in listeners]
    async with running(subscriptions):
        yield subscriptions[0]


async def until(condition: Callable[[], bool], within: float = 20) -> None:
    async def look() -> bool:
        return condition()

    await eventually(look, True, within)


async def dead_letters(platform: Platform) -> list[Msg]:
    """Everything on DEAD."""
    js = platform.client.jetstream()
    count = (await js.stream_info("DEAD")).state.messages
    subscription = await js.subscribe("dead.>", stream="DEAD")
    letters = [await subscription.next_msg(5) for _ in range(count)]
    await subscription.unsubscribe()
    return letters


async def pending(platform: Platform, durable: str = DURABLE) -> int:
    """How many events were delivered and not settled."""
    info = await platform.client.jetstream().consumer_info(CONSUMER[durable].stream, durable)
    return info.num_ack_pending or 0


async def publish_raw(platform: Platform, subject: str, tag: str, body: bytes) -> None:
    """What newer or broken code might have written."""
    headers = {"ce-type": tag, "ce-id": "raw", "correlation-id": "c", "causation-id": "c"}
    await platform.client.jetstream().publish(subject, body, headers=headers)


async def test_what_is_done_is_not_heard_again(streams: Platform) -> None:
    await tell(streams.event_log, 1, 2, 3)
    before, after = Hear(), Hear()
    async with listening(streams, before) as subscription:
        await eventually(subscription.settled, 3)
    await tell(streams.event_log, 4)
    async with listening(streams, after) as subscription:
        await eventually(subscription.settled, 4)
    assert (sorted(before.done), after.done) == ([1, 2, 3], [4])
    assert await pending(streams) == 0


async def test_thousands_are_heard_once_each(streams: Platform) -> None:
    for n in range(3):
        await streams.event_log.append(f"expiration.many{n}", drafts(range(n * 1000, n * 1000 + 1000)), expected=0)
    listener = Hear()
    async with listening(streams, listener) as subscription:
        await eventually(subscription.settled, 3000)
    assert Counter(listener.done) == Counter(range(3000))


class Wait(Hear):
    waits = True


async def test_verdicts_that_are_collected_are_told_together(streams: Platform) -> None:
    listener = Wait()
    listener.errors = {2: [Retry(0.01)]}
    await tell(streams.event_log, *range(300))
    async with listening(streams, listener) as subscription:
        await eventually(subscription.settled, 300)
    assert Counter(listener.done) == Counter(range(300))


async def test_verdicts_that_are_collected_are_told_before_a_stop(
    streams: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subscription, "COLLECT", 600)
    await tell(streams.event_log, 1, 2, 3)
    listener = Wait()
    async with listening(streams, listener):
        await until(lambda: len(listener.done) == 3)
        assert await pending(streams) == 3
    await eventually(lambda: pending(streams), 0)


async def test_two_replicas_share_the_work(streams: Platform) -> None:
    one, other = Hear(), Hear()
    gates = one.hold(*range(600)), other.hold(*range(600))
    async with (
        connect(streams.settings, "other") as second,
        listening(streams, one) as subscription,
        listening(second, other),
    ):
        await tell(streams.event_log, *range(600))
        await until(lambda: bool(one.begun and other.begun))
        for gate in gates:
            gate.set()
        await eventually(subscription.settled, 600)
    assert Counter(one.done + other.done) == Counter(range(600))


async def test_what_is_to_come_again_comes_as_often_as_it_takes(streams: Platform) -> None:
    listener = Hear()
    listener.errors[1] = [Retry(0.01) for _ in range(5 * listener.attempts)]
    async with listening(streams, listener) as subscription:
        await tell(streams.event_log, 1, 2)
        await eventually(subscription.settled, 2)
    assert Counter(listener.begun) == {1: 5 * listener.attempts + 1, 2: 1}
    assert sorted(listener.done) == [1, 2]
    assert await dead_letters(streams) == []


async def test_what_is_to_come_again_in_centuries_does_not_come_at_once(streams: Platform) -> None:
    listener = Hear()
    listener.errors[1] = [Retry(400 * 365.25 * 86_400) for _ in range(1000)]
    async with listening(streams, listener):
        await tell(streams.event_log, 1)
        for number in range(2, 20):  # time in which it came again a hundred times
            await tell(streams.event_log, number)
            await until(lambda: len(listener.done) == number - 1)  # noqa: B023 (it is awaited here)
    assert listener.begun.count(1) == 1
    assert await pending(streams) == 1


async def test_what_waited_in_another_replica_is_not_given_up_on_at_its_first_failure(streams: Platform) -> None:
    before, after = Wait(), Wait()
    before.errors[1] = [Retry(0.01) for _ in range(3 * before.attempts)]
    after.errors[1] = [ZeroDivisionError("once")]
    await tell(streams.event_log, 1)
    async with listening(streams, before):
        await until(lambda: not before.errors[1])
    async with listening(streams, after) as subscription:
        await eventually(subscription.settled, 1)
    assert after.done + before.done == [1]
    assert await dead_letters(streams) == []


async def test_an_unavailable_server_is_no_reason_to_give_up(streams: Platform) -> None:
    class GiveUpSoon(Hear):
        attempts = 1

    listener = GiveUpSoon()
    listener.errors[1] = [Unavailable("the gateway does not answer")]
    async with listening(streams, listener) as subscription:
        await tell(streams.event_log, 1)
        await eventually(subscription.settled, 1)
    assert (listener.begun, listener.done) == ([1, 1], [1])
    assert await dead_letters(streams) == []


async def test_an_error_may_pass(streams: Platform) -> None:
    listener = Hear()
    listener.errors[1] = [ZeroDivisionError("once")]
    async with listening(streams, listener) as subscription:
        await tell(streams.event_log, 1)
        await eventually(subscription.settled, 1)
    assert (listener.begun, listener.done) == ([1, 1], [1])
    assert await dead_letters(streams) == []


async def test_the_last_attempt_ends_on_dead_with_all_there_is_to_know(streams: Platform) -> None:
    why = Cause("the conversation", "the request", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    made = Draft.of(fact(2, version=5), why)
    await tell(streams.event_log, 1)
    await streams.event_log.append(SUBJECT, [made], expected=0)
    listener = Hear()
    listener.errors[2] = [Invalid(f"attempt {n}:\nno seats in\r\nrow Ü") for n in (1, 2)]
    async with listening(streams, listener) as subscription:
        await tell(streams.event_log, 3)
        await eventually(subscription.settled, 3)
    assert Counter(listener.begun) == {1: 1, 2: 2, 3: 1}
    [letter] = await dead_letters(streams)
    headers = letter.headers
    assert headers is not None
    assert letter.subject == f"dead.{DURABLE}"
    assert decode(headers["ce-type"], letter.data) == made.event
    told = {
        "dead-listener": DURABLE,
        "dead-subject": SUBJECT,
        "dead-stream": STREAM,
        "dead-sequence": "2",
        "dead-attempts": "2",
    }
    assert told.items() <= headers.items()
    assert headers["dead-error"].startswith("Invalid: attempt 2:")
    assert headers["dead-error"].endswith("row Ü")
    original = {"ce-id": made.id, "ce-source": f"/{SUBJECT}", "correlation-id": "the conversation"}
    assert (original | {"causation-id": "the request", "traceparent": str(why.traceparent)}).items() <= headers.items()
    assert await pending(streams) == 0
    assert listener.given_up == [(2, "attempt 2:\nno seats in\r\nrow Ü")]


async def test_what_is_given_up_is_told_before_it_is_on_dead(streams: Platform) -> None:
    await tell(streams.event_log, 1)
    listener = Hear()
    listener.errors[1] = [Invalid("no seats")] * 3
    listener.giving_up = [Invalid("nobody hears it")]
    async with listening(streams, listener) as subscription:
        await until(lambda: len(listener.given_up) == 1)
        assert await dead_letters(streams) == []
        await eventually(subscription.settled, 1)
    assert listener.given_up == [(1, "no seats")] * 2
    assert len(await dead_letters(streams)) == 1


async def test_what_cannot_be_decoded_is_buried_at_once_and_as_it_is(streams: Platform) -> None:
    tag = type_of(ExpirationCompleted)
    await publish_raw(streams, SUBJECT, tag, b'{"type":"expiration_completed","order_id":7}')
    await publish_raw(streams, SUBJECT, tag, b"not even JSON \xff")
    listener = Hear()
    async with listening(streams, listener) as subscription:
        await streams.event_log.append(SUBJECT, [draft(3)], expected=2)
        await eventually(subscription.settled, 3)
    assert listener.done == [3]
    letters = await dead_letters(streams)
    assert {letter.data for letter in letters} == {
        b'{"type":"expiration_completed","order_id":7}',
        b"not even JSON \xff",
    }
    assert {(letter.headers or {})["dead-attempts"] for letter in letters} == {"1"}
    assert all((letter.headers or {})["dead-error"].startswith("UndecodableEvent: ") for letter in letters)


async def test_only_declared_events_are_heard(streams: Platform) -> None:
    class HearSales(Listener[OrderCompleted | OrderCancelled]):
        durable = "orders-settle-payments"

        def __init__(self) -> None:
            self.heard: list[str] = []

        async def on(self, event: OrderCompleted | OrderCancelled) -> None:
            self.heard.append(type(event).__name__)

    one = UUID(int=1)
    listing = BookListing("Show", 100, "EUR", 10, 10, True, 1)
    for sequence, event in enumerate(
        [
            BookOpened(one, listing, AT),
            OrderCreated(one, one, "ada", "Show", 1, 100, "EUR", AT, AT),
            OrderCancelled(one, one, "ada", 1, "buyer", AT),
            OrderCompleted(one, one, "ada", 1, one, 100, "EUR", AT),
        ]
    ):
        await streams.event_log.append("orders.a", [Draft.of(event)], expected=sequence)
    await streams.client.jetstream().publish("orders.c", b"no envelope at all")
    listener = HearSales()
    subscription = Subscription(listener, streams.client)
    async with running([subscription]):
        await eventually(subscription.settled, 5)
    assert listener.heard == ["OrderCancelled", "OrderCompleted"]
    (letter,) = await dead_letters(streams)
    assert (letter.headers or {})["dead-subject"] == "orders.c"  # no event at all: told, not swallowed


async def test_what_only_newer_code_knows_waits_for_it(streams: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a newer version is rolled out, the older one's processes hear by the same consumer."""
    listener = Hear()
    body = encode(fact(1)).replace(b"expiration_completed", b"expiration_postponed")
    async with listening(streams, listener):
        await publish_raw(streams, SUBJECT, "expiration_postponed", body)
        await streams.event_log.append("expiration.b", [draft(2)], expected=0)
        await until(lambda: listener.done == [2])

        async def comes_again() -> bool:
            info = await streams.client.jetstream().consumer_info(STREAM, DURABLE)
            return info.delivered is not None and info.delivered.consumer_seq > 1 + listener.attempts

        await eventually(comes_again, True)
        assert await pending(streams) == 1
        assert await dead_letters(streams) == []  # although this listener gives up after two attempts
        told = {"listener": DURABLE, "outcome": "unknown"}
        assert (REGISTRY.get_sample_value("boxoffice_listener_events_total", told) or 0) > listener.attempts
        monkeypatch.setitem(UPCASTS, "expiration_postponed", lambda old: old | {"type": "expiration_completed"})
        await until(lambda: listener.done == [2, 1])


async def test_one_aggregate_is_heard_in_order_and_others_meanwhile(streams: Platform) -> None:
    log = streams.event_log
    await log.append("expiration.a", drafts([1, 2, 3]), expected=0)
    await log.append("expiration.b", drafts([11, 12, 13]), expected=0)
    listener = Hear()
    gate = listener.hold(1)
    async with listening(streams, listener) as subscription:
        await until(lambda: listener.done == [11, 12, 13])
        assert listener.begun.count(1) == 1
        assert not {2, 3} & set(listener.begun)
        gate.set()
        await eventually(subscription.settled, 6)
    assert listener.done == [11, 12, 13, 1, 2, 3]


async def test_events_with_keys_of_their_own_do_not_wait_for_their_aggregate(streams: Platform) -> None:
    class HearEach(Hear):
        def key(self, event: ExpirationCompleted) -> object:
            return event.order_id

    await streams.event_log.append(SUBJECT, drafts([1, 2, 3]), expected=0)
    listener = HearEach()
    gate = listener.hold(1)
    async with listening(streams, listener) as subscription:
        await until(lambda: sorted(listener.done) == [2, 3])
        gate.set()
        await eventually(subscription.settled, 3)
    assert listener.done[-1] == 1


async def test_no_more_are_heard_at_once_than_declared(streams: Platform) -> None:
    class HearFour(Hear):
        concurrency = 4

    await tell(streams.event_log, *range(20))
    listener = HearFour()
    gate = listener.hold(*range(20))
    async with listening(streams, listener) as subscription:
        await until(lambda: len(listener.now) == 4)
        assert await pending(streams) == 4
        gate.set()
        await eventually(subscription.settled, 20)
    assert listener.most == 4
    assert Counter(listener.done) == Counter(range(20))


async def test_what_an_event_leads_to_names_it_as_the_cause(streams: Platform) -> None:
    class TellOn(Listener[ExpirationCompleted]):
        durable = DURABLE

        async def on(self, event: ExpirationCompleted) -> None:
            told = TicketWithdrawn(event.ticket_id, "sam", AT)
            await publisher.publish(event.order_id, told)

    publisher = Publisher[TicketWithdrawn]("tickets", streams.event_log)
    made = [Draft.of(fact(n), Cause(f"conversation {n}", f"request {n}", f"trace {n}")) for n in (1, 2)]
    await streams.event_log.append(SUBJECT, made, expected=0)
    async with listening(streams, TellOn()) as subscription:
        await eventually(subscription.settled, 2)
    for n in (1, 2):
        [recorded] = await streams.event_log.read(f"tickets.{UUID(int=n)}")
        assert recorded.cause == Cause(f"conversation {n}", made[n - 1].id, f"trace {n}")


async def test_a_fact_that_was_published_is_not_published_again(streams: Platform) -> None:
    publisher = Publisher[ExpirationCompleted]("expiration", streams.event_log)
    for n in (1, 1, 2):
        await publisher.publish(UUID(int=n), fact(n))
    assert (await streams.event_log.end(STREAM)).sequence == 2


@pytest.fixture
async def impatient(streams: Platform, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a consumer on EXPIRATION that delivers again what is not settled in 0.6 s."""
    consumer = Consumer("test-impatient", STREAM, "orders", ack_wait=0.6)
    monkeypatch.setitem(cast("dict[str, Consumer]", CONSUMER), consumer.durable, consumer)
    await streams.client.jetstream().add_consumer(STREAM, consumer.config())
    return consumer.durable


async def test_long_work_is_not_given_to_somebody_else(streams: Platform, impatient: str) -> None:
    class WorkLong(Hear):
        durable = impatient
        seconds: ClassVar[float] = 2.4

        async def on(self, event: ExpirationCompleted) -> None:
            await super().on(event)
            await asyncio.sleep(self.seconds)  # the long work; four times the consumer's ack_wait

    await streams.event_log.append(SUBJECT, drafts([1, 2]), expected=0)  # the second has to wait for the first
    listener, other = WorkLong(), WorkLong()
    async with listening(streams, listener) as subscription, listening(streams, other):
        await eventually(subscription.settled, 2)
    assert sorted(listener.begun + other.begun) == [1, 2]


async def test_what_a_killed_replica_worked_on_is_given_to_another(streams: Platform, impatient: str) -> None:
    class Work(Hear):
        durable = impatient

    killed, other = Work(), Work()
    killed.hold(1, 2)
    await tell(streams.event_log, 1, 2)
    async with connect(streams.settings, "killed") as platform, listening(platform, killed):
        await until(lambda: sorted(killed.begun) == [1, 2])
        await platform.client.close()  # as far as the server can tell, it is dead
        async with listening(streams, other) as subscription:
            await eventually(subscription.settled, 2)
        for gate in killed.gates.values():
            gate.set()
    assert sorted(other.done) == [1, 2]


async def test_a_stop_lets_running_work_finish_and_puts_the_rest_back(streams: Platform) -> None:
    await streams.event_log.append(SUBJECT, drafts([1, 2, 3]), expected=0)
    stopping, other = Hear(), Hear()
    gate = stopping.hold(1)
    worker = asyncio.create_task(Subscription(stopping, streams.client).run())
    await until(lambda: stopping.begun == [1])
    await eventually(lambda: pending(streams), 3)
    worker.cancel()
    async with listening(streams, other) as subscription:
        await until(lambda: sorted(other.done) == [2, 3])  # at once, not after the consumer's ack_wait of 30 s
        assert not worker.done()
        gate.set()
        await asyncio.wait([worker])
        await eventually(subscription.settled, 3)
    # In either order: what had not left the server yet it takes back by itself, maybe before it is told of the rest.
    assert (stopping.done, sorted(other.begun)) == ([1], [2, 3])


async def test_a_stop_does_not_wait_longer_than_declared_and_puts_everything_back(streams: Platform) -> None:
    class Impatient(Hear):
        patience = 0.05

    log = streams.event_log
    for subject in range(200):
        await log.append(f"expiration.s{subject}", drafts([subject, 1000 + subject]), expected=0)
    stopping, other = Impatient(), Hear()
    stopping.hold(*range(200))
    worker = asyncio.create_task(Subscription(stopping, streams.client).run())
    await until(lambda: len(stopping.now) > 100)
    worker.cancel()
    await asyncio.wait([worker])
    assert worker.cancelled()
    assert stopping.done == []
    async with listening(streams, other) as subscription:
        await eventually(subscription.settled, 400)  # sooner than the consumer's ack_wait of 30 s
    assert Counter(other.done) == Counter([*range(200), *range(1000, 1200)])


async def test_a_stop_that_is_cut_short_leaves_nothing_running(streams: Platform) -> None:
    def running() -> list[str]:
        names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
        return [name for name in names if name.removeprefix("Subscription.") in vars(Subscription)]

    await streams.event_log.append(SUBJECT, drafts([1, 2]), expected=0)
    stopping, other = Hear(), Hear()
    stopping.hold(1)
    worker = asyncio.create_task(Subscription(stopping, streams.client).run())
    await until(lambda: stopping.begun == [1])
    await eventually(lambda: pending(streams), 2)
    worker.cancel()
    async with listening(streams, other):
        await until(lambda: other.done == [2])  # it stops, and waits for what runs
    assert len(running()) > 1
    worker.cancel()
    await until(lambda: running() == [])
    assert stopping.done == []


async def test_a_stop_puts_back_what_is_only_just_coming_in(streams: Platform) -> None:
    class StopAtOnce(Hear):
        patience = 0

        async def on(self, event: ExpirationCompleted) -> None:
            worker.cancel()
            await super().on(event)

    await tell(streams.event_log, *range(250))
    stopping, other = StopAtOnce(), Hear()
    stopping.hold(*range(250))
    worker = asyncio.create_task(Subscription(stopping, streams.client).run())
    await asyncio.wait([worker])
    assert 0 < len(stopping.begun) < 250
    async with listening(streams, other) as subscription:
        await eventually(subscription.settled, 250)  # sooner than the consumer's ack_wait of 30 s
    assert Counter(other.done) == Counter(range(250))


async def test_a_missing_consumer_is_told_and_awaited(streams: Platform) -> None:
    await tell(streams.event_log, 1)
    listener = Hear()
    async with listening(streams, listener) as subscription:
        await until(lambda: listener.done == [1])
        await streams.client.jetstream().delete_consumer(STREAM, DURABLE)
        await until(lambda: subscription.problem is not None)
        assert DURABLE in (subscription.problem or "")
        with pytest.raises(Unavailable):
            await subscription.settled()
        await tell(streams.event_log, 2)
        await topology.migrate(streams.client)
        await eventually(subscription.settled, 2)
        await until(lambda: subscription.problem is None)
    assert set(listener.done) == {1, 2}  # a new consumer begins at the beginning


async def test_a_restarted_server_is_listened_to_again(streams: Platform, nats: NatsServer) -> None:
    await tell(streams.event_log, 1)
    listener = Hear()
    async with listening(streams, listener):
        for number in (2, 3):
            await until(lambda: set(listener.done) == set(range(1, number)))  # noqa: B023 (evaluated here, not later)
            nats.kill()
            await nats.start()
            await eventually(tells(streams, number), True)
        await until(lambda: set(listener.done) == {1, 2, 3})  # an ack that died with the server is heard again


def tells(platform: Platform, number: int) -> Callable[[], asyncio.Future[bool]]:
    async def look() -> bool:
        with suppress(Unavailable):
            await tell(platform.event_log, number)
            return True
        return False

    return lambda: asyncio.ensure_future(look())


async def test_work_that_outlasts_a_restart_of_the_server_is_done(streams: Platform, nats: NatsServer) -> None:
    await tell(streams.event_log, 1)
    listener = Hear()
    gate = listener.hold(1)
    async with listening(streams, listener) as subscription:
        await until(lambda: listener.begun == [1])
        nats.kill()
        await nats.start()
        await eventually(tells(streams, 2), True)
        gate.set()
        await eventually(subscription.settled, 2)
    assert set(listener.done) == {1, 2}


async def test_a_dead_letter_waits_for_a_stream_that_takes_it(streams: Platform) -> None:
    class GiveUpSoon(Hear):
        attempts = 1

    await streams.client.jetstream().delete_stream("DEAD")
    listener = GiveUpSoon()
    listener.errors[1] = [ZeroDivisionError("first"), ZeroDivisionError("second")]
    async with listening(streams, listener) as subscription:
        await tell(streams.event_log, 1)
        await until(lambda: listener.begun == [1])
        gate = listener.hold(1)
        await until(lambda: listener.begun == [1, 1])  # it could not be buried, and came back
        await topology.migrate(streams.client)
        gate.set()
        await eventually(subscription.settled, 1)
    [letter] = await dead_letters(streams)
    assert (letter.headers or {})["dead-error"] == "ZeroDivisionError: second"


def test_an_event_of_another_stream_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match=r"HearElsewhere.*OrderCreated.*not on stream EXPIRATION"):

        class HearElsewhere(Listener[OrderCreated]):
            durable = DURABLE

            async def on(self, event: OrderCreated) -> None: ...

    with pytest.raises(TypeError, match=r"OrderCompleted.*not on stream EXPIRATION"):

        class HearBoth(Listener[ExpirationCompleted | OrderCompleted]):
            durable = DURABLE

            async def on(self, event: ExpirationCompleted | OrderCompleted) -> None: ...


def test_a_consumer_that_is_nowhere_declared_cannot_be_listened_on() -> None:
    with pytest.raises(TypeError, match=r"HearNothing: no consumer 'nobodys' in common/topology.py: add it there"):

        class HearNothing(Listener[ExpirationCompleted]):
            durable = "nobodys"

            async def on(self, event: ExpirationCompleted) -> None: ...


def test_a_listener_knows_what_it_hears() -> None:
    class HearOrders(Listener[OrderCreated | OrderCancelled]):
        durable = "orders-settle-payments"

        async def on(self, event: OrderCreated | OrderCancelled) -> None: ...

    assert HearOrders.hears == {"order_created", "order_cancelled"}
    assert Hear.hears == {"expiration_completed"}
