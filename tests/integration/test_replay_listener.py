"""What listeners would do with past events, shown by the command's own code on real streams, and nothing of it done."""

from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
from msgspec import Raw
from rich.text import Text

from common import topology
from common.aggregate import Aggregate
from common.clock import new_id, now
from common.errors import Invalid
from common.event_log import JetStreamLog, Stored
from common.events import (
    ExpirationCompleted,
    NotificationRaised,
    Operation,
    OrderCancelled,
    OrderCreated,
    Priority,
    Result,
    TicketDetails,
)
from common.memory_log import MemoryLog
from common.publisher import Publisher
from common.rehearsal import Appended, Heard, Noted, Rehearsal, Summary
from common.runtime import Platform
from common.settings import Settings
from common.telemetry import Cause, cause
from services.batch.domain import (
    BATCHES,
    KINDS,
    WORKS,
    AddOperations,
    CancelBatch,
    OpenBatch,
    RecordResults,
    ReleaseWork,
    SetPaused,
    StartBatch,
    SubmitBatch,
    kind_id_of,
    work_id_of,
)
from services.batch.listeners import ABANDONED_AFTER, CountWorkDone
from services.cli.redeliver import Ending, Redelivered, deliver
from services.cli.rehearse import Selection, lines_of, record_of, rehearse, told
from services.cli.servers import NatsServer
from services.cli.system import REHEARSALS, rehearsed
from services.cli.who import Who
from services.identity.domain import SESSIONS, EndSession, OpenSession
from services.notification.domain import INBOXES_DECIDER, WantWebhooks, inbox_id_of
from services.notification.listeners import FillWebhooks, TellBuyers, Teller, Titles
from services.notification.webhooks import DELIVERIES, WEBHOOKS, RegisterWebhook, registry_id_of
from services.orders.domain import ORDERS, CancelOrder, CompleteOrder, PlaceOrder, StartPayment
from services.orders.listeners import KeepOrderBook
from services.tickets.domain import TICKETS, CreateTicket, UpdateTicket
from tests.harness import PASSWORDS
from tests.receiver import Receiver

KIND = "records.insert"
RAISED = "done notification_raised"


class Past:
    """A day at the box office, by the rules of every service, with some listeners that did not hear all of it."""

    def __init__(self, log: JetStreamLog, hook: str = "https://example.org/hooks?key=k") -> None:
        """`hook`: where a webhook of Ada's leads."""
        self.log = log
        self.hook = hook
        self.tickets = Aggregate(TICKETS, log)
        self.orders = Aggregate(ORDERS, log)
        self.batches = Aggregate(BATCHES, log)
        self.works = {priority: Aggregate(decider, log) for priority, decider in WORKS.items()}
        self.books = KeepOrderBook(self.orders, log)
        self.expirations = Publisher[ExpirationCompleted]("expiration", log)

    async def list_ticket(self, quantity: int) -> UUID:
        """A ticket whose book is open."""
        ticket_id = new_id()
        details = TicketDetails("Opening night", 2500, "EUR", quantity, 10)
        (created,) = (await self.tickets.handle(ticket_id, CreateTicket(ticket_id, "sam", details, now()))).events
        await self.books.on(created)
        return ticket_id

    async def place(self, ticket_id: UUID, hold: float = -60) -> UUID:
        """An order whose time is over, unless it is held longer."""
        order_id, at = new_id(), now() - timedelta(hours=1)
        await self.orders.handle(ticket_id, PlaceOrder(order_id, "ada", 1, now() + timedelta(seconds=hold), at))
        return order_id

    async def expire(self, ticket_id: UUID, order_id: UUID) -> None:
        """Its time is told to be over, and nobody hears it."""
        expires_at = (await self.orders.load(ticket_id)).state.order(order_id).expires_at
        await self.expirations.publish(order_id, ExpirationCompleted(order_id, ticket_id, expires_at, now()))

    async def pay(self, ticket_id: UUID, order_id: UUID, *payments: UUID) -> None:
        """All of these payments are started, a minute before its time is over, and the last one pays."""
        early = (await self.orders.load(ticket_id)).state.order(order_id).expires_at - timedelta(minutes=1)
        for payment_id in payments:
            await self.orders.handle(ticket_id, StartPayment(order_id, payment_id, early))
        await self.orders.handle(ticket_id, CompleteOrder(order_id, payments[-1], early))

    async def hand_in(self, priority: Priority, *, released: bool = True) -> UUID:
        """A batch of one piece of two operations; perhaps it may run."""
        batch_id, at = new_id(), now()
        await self.batches.handle(batch_id, OpenBatch(batch_id, KIND, "ada", priority, "skip", None, at))
        operations = [Operation(number, Raw(b'{"key":"k","value":"v"}')) for number in (1, 2)]
        work_id = work_id_of(batch_id, 0)
        await self.works[priority].handle(work_id, AddOperations(work_id, batch_id, 0, KIND, "ada", operations, at))
        await self.batches.handle(batch_id, SubmitBatch(2, 1, at))
        if released:
            await self.batches.handle(batch_id, StartBatch(at))
            await self.works[priority].handle(work_id, ReleaseWork(1, at))
        return batch_id

    async def execute(self, priority: Priority, batch_id: UUID, *, counted: bool) -> None:
        """All of it succeeds; perhaps it is counted."""
        results = RecordResults(1, 1, [Result(1), Result(2)], now())
        (executed,) = (await self.works[priority].handle(work_id_of(batch_id, 0), results)).events
        if counted:
            await CountWorkDone(self.batches, self.works).on(executed)  # type: ignore[arg-type]  # it is the event

    async def tell_ada(self, ticket_id: UUID, order_id: UUID) -> None:
        """She is told what became of one of her orders, and a webhook of hers of the first of it."""
        inboxes, webhooks = Aggregate(INBOXES_DECIDER, self.log), Aggregate(WEBHOOKS, self.log)
        await inboxes.handle(inbox_id_of("ada"), WantWebhooks("ada", now()))
        hook = RegisterWebhook(new_id(), "ada", self.hook, None, now())
        await webhooks.handle(registry_id_of("ada"), hook)
        teller = TellBuyers(Teller(inboxes), Titles(self.log))
        for recorded in await self.log.read(f"orders.{ticket_id}"):
            if isinstance(recorded.event, OrderCreated | OrderCancelled) and recorded.event.order_id == order_id:
                before = cause.set(Cause(recorded.cause.correlation_id, recorded.id))
                await teller.on(recorded.event)
                cause.reset(before)
        for recorded in await self.log.read(f"notifications.{inbox_id_of('ada')}"):
            if isinstance(recorded.event, NotificationRaised):
                await FillWebhooks(webhooks, Aggregate(DELIVERIES, self.log)).on(recorded.event)
                break

    async def ends(self) -> dict[str, int]:
        """How far each stream goes."""
        return {stream.name: (await self.log.end(stream.name)).sequence for stream in topology.STREAMS}

    async def hears(self, durable: str, **selection: Any) -> list[tuple[Stored, Heard]]:
        """What a listener would do with each event."""
        rehearsal = Rehearsal(self.log)
        listener = rehearsed(durable, rehearsal)
        async with aclosing(Selection(**selection).of(self.log, listener, lambda *_: None)) as events:
            return [(stored, await rehearsal.hear(listener, stored)) async for stored in events]


def brief(heard: Sequence[tuple[Stored, Heard]]) -> list[str]:
    """Of each event what it comes to, with the kinds of effects."""
    return [" ".join([came.outcome, *sorted(effect.kind for effect in came.effects)]) for _, came in heard]


@pytest.fixture
def past(streams: Platform) -> Past:
    return Past(streams.event_log)


@pytest.fixture
def operator(nats: NatsServer) -> Settings:
    """Whom the command goes by on NATS: who may read all, and write nothing."""
    return Settings(nats_url=nats.url.replace("nats://", f"nats://migrate:{PASSWORDS['migrate']}@"))


async def shown(durable: str, operator: Settings, **selection: Any) -> tuple[Summary, list[str]]:
    """What the command shows of each event and of all."""
    lines: list[str] = []

    def say(stored: Stored, heard: Heard) -> None:
        lines.extend(lines_of(stored, heard))

    summary = await rehearse(durable, Selection(**selection), operator, say, lambda *_: None)
    lines.extend(told(durable, summary))
    return summary, [Text.from_markup(line).plain.strip() for line in lines]


async def play(past: Past) -> None:
    """A day with something for every listener to hear."""
    first, second = await past.list_ticket(10), await past.list_ticket(1)
    a, b, _, _ = [await past.place(first, hold) for hold in (-60, -60, 3600, -60)]
    for order_id in (a, b):
        await past.expire(first, order_id)
    await past.orders.handle(first, CancelOrder(a, "expired", now()))
    await past.pay(first, await past.place(first), new_id(), new_id())
    await past.pay(second, await past.place(second), new_id())
    await past.tickets.handle(first, UpdateTicket(first, "sam", {"price": 2900}, None, now()))
    await past.tell_ada(first, a)
    session_id, sessions = new_id(), Aggregate(SESSIONS, past.log)
    await sessions.handle(session_id, OpenSession(session_id, "ada", "dev", now(), now() + timedelta(days=1)))
    await sessions.handle(session_id, EndSession("ada", "logout", now()))
    await past.execute("normal", await past.hand_in("normal"), counted=True)
    await past.execute("normal", await past.hand_in("normal"), counted=False)
    await past.hand_in("high", released=False)
    await past.hand_in("high")
    cancelled = await past.hand_in("low")
    await past.batches.handle(cancelled, CancelBatch("ada", now()))
    for opened in (now(), now() - ABANDONED_AFTER):
        batch_id = new_id()
        await past.batches.handle(batch_id, OpenBatch(batch_id, KIND, "ada", "normal", "skip", None, opened))


OF_THAT_DAY = {
    # the first is cancelled, the second is not
    "orders-cancel-expired": ["nothing", "done order_cancelled"],
    # both books are open, and the first has not heard of the new price
    "orders-keep-book": ["nothing", "nothing", "done book_revised"],
    # the cancelled one has no payments; of the next two are started, and of the last one
    "orders-settle-payments": ["nothing", "done capture void", "done capture"],
    # two were told, one is held for an hour, one was forgotten; the last two are paid for
    "expiration-hold-orders": ["nothing", "nothing", "again", "done expiration_completed", "nothing", "nothing"],
    # of the first order Ada was told all, of the others nothing
    "notification-tell-buyers": ["nothing", *[RAISED] * 3, "nothing", *[RAISED] * 4],
    "notification-tell-sellers": [RAISED],
    "notification-tell-submitters": [RAISED],
    # the webhook was told of the first
    "notification-webhooks": ["nothing", "done webhook_due"],
    "notification-deliver-webhooks": ["open post"],
    "identity-revoke": ["done revoked"],
    # only one waits to be released
    "batch-release": ["nothing", "nothing", "done batch_started work_released", "nothing", "nothing"],
    # five are in; of the others one was heard of lately
    "batch-abandon": [*["nothing"] * 5, "again", "done batch_failed"],
    # the first is counted
    "batch-count": ["nothing", "done batch_completed work_counted"],
    # nothing runs as it is added; both of normal priority are executed
    "batch-work-normal": ["nothing"] * 4,
    "batch-work-high": ["nothing", "nothing", "open execute"],
    "batch-work-low": ["nothing", "open cancel"],
}
"""By listener: what it would do with each event of that day that it hears."""


@pytest.mark.parametrize("durable", sorted(topology.CONSUMER))
def test_every_listener_can_be_rehearsed(durable: str) -> None:
    assert rehearsed(durable, Rehearsal(MemoryLog())).durable == durable


def test_each_service_makes_all_of_its_listeners_for_a_rehearsal() -> None:
    made = [listener for make in REHEARSALS.values() for listener in make(Rehearsal(MemoryLog()))]
    assert Counter(listener.durable for listener in made) == Counter(topology.CONSUMER.keys())


async def test_of_a_whole_day_every_listener_tells_what_is_missing_and_nothing_is_done(
    past: Past, operator: Settings
) -> None:
    await play(past)
    before = await past.ends()
    assert {durable: brief(await past.hears(durable)) for durable in topology.CONSUMER} == OF_THAT_DAY
    for durable, expected in OF_THAT_DAY.items():
        summary, _ = await shown(durable, operator)
        assert summary.outcomes == Counter(each.partition(" ")[0] for each in expected)
        assert summary.effects == Counter(kind for each in expected for kind in each.split()[1:])
    assert await past.ends() == before


async def test_a_cancellation_that_is_missing_is_shown_with_what_it_says(past: Past, operator: Settings) -> None:
    ticket_id = await past.list_ticket(10)
    over, missing = await past.place(ticket_id), await past.place(ticket_id)
    for order_id in (over, missing):
        await past.expire(ticket_id, order_id)
    await past.orders.handle(ticket_id, CancelOrder(over, "expired", now()))
    _, (first, second, effect, *rest) = await shown("orders-cancel-expired", operator)
    assert first.endswith(f"expiration_completed  {over}  nothing")
    assert second.endswith(f"expiration_completed  {missing}")
    appended = f"→ would append order_cancelled to orders.{ticket_id}: order_id {missing}"
    assert effect.startswith(appended)
    assert "reason expired" in effect
    assert rest == [
        "orders-cancel-expired would hear 2 events, as things are now; nothing was done.",
        "1  with effects",
        "1  for which nothing is to do",
        "effects: 1 order_cancelled",
    ]


async def test_what_follows_in_a_book_stands_on_what_was_rehearsed_before(past: Past) -> None:
    ticket_id = await past.list_ticket(10)
    version = len(await past.log.read(f"orders.{ticket_id}"))
    orders = [await past.place(ticket_id) for _ in range(3)]
    for order_id in orders:
        await past.expire(ticket_id, order_id)
    effects = [effect for _, came in await past.hears("orders-cancel-expired") for effect in came.effects]
    versions = [effect.event.version for effect in effects if isinstance(effect, Appended)]
    assert versions == [version + len(orders) + n for n in (1, 2, 3)]


async def test_a_day_that_is_heard_twice_in_a_rehearsal_has_its_effects_once(past: Past) -> None:
    await play(past)
    for durable, expected in OF_THAT_DAY.items():
        rehearsal = Rehearsal(past.log)
        listener = rehearsed(durable, rehearsal)
        again: list[Heard] = []
        for _ in range(2):
            async with aclosing(Selection().of(past.log, listener, lambda *_: None)) as events:
                again = [await rehearsal.hear(listener, stored) async for stored in events]
        appended = [effect for came in again for effect in came.effects if isinstance(effect, Appended)]
        assert (durable, appended, len(again)) == (durable, [], len(expected))


async def test_a_payment_is_noted_and_no_gateway_is_asked(past: Past) -> None:
    ticket_id = await past.list_ticket(10)
    unused, used = new_id(), new_id()
    await past.pay(ticket_id, await past.place(ticket_id), unused, used)
    ((_, came),) = await past.hears("orders-settle-payments")
    assert came.effects == (Noted("void", f"void payment {unused}"), Noted("capture", f"capture payment {used}"))


async def test_nothing_is_posted_to_a_webhook_and_its_key_is_not_shown(streams: Platform, operator: Settings) -> None:
    async with Receiver() as receiver:
        past = Past(streams.event_log, receiver.url)
        await play(past)
        summary, said = await shown("notification-deliver-webhooks", operator)
        assert summary.outcomes == {"open": 1}
        assert said[1].endswith(f" to {receiver.url.partition('?')[0]}")
        assert said[2] == "→ the rest hangs on what the webhook answers"
        assert receiver.posts == []


async def test_work_of_a_kind_that_is_paused_would_come_again(past: Past) -> None:
    await past.hand_in("high")
    await Aggregate(KINDS, past.log).handle(kind_id_of(KIND), SetPaused(KIND, True, "olga", now()))
    assert brief(await past.hears("batch-work-high")) == ["nothing", "again"]


async def test_many_pieces_that_ended_are_counted_without_waiting(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: float) -> None:
        raise AssertionError("it waits")

    for _ in range(3):
        await past.execute("normal", await past.hand_in("normal"), counted=False)
    monkeypatch.setattr("services.batch.listeners.asyncio.sleep", never)
    assert brief(await past.hears("batch-count")) == ["done batch_completed work_counted"] * 3


async def test_an_event_that_cannot_be_read_is_told_as_what_fails(past: Past, streams: Platform) -> None:
    headers = {"ce-id": "1", "ce-type": "expiration_completed", "ce-time": now().isoformat()}
    await streams.client.request("expiration.broken", b"{}", headers=headers)
    ((_, came),) = await past.hears("orders-cancel-expired")
    assert (came.outcome, came.why.partition(":")[0]) == ("failed", "UndecodableEvent")


# Which events


@pytest.fixture
async def expiries(past: Past) -> list[UUID]:
    """Five orders whose time is over, in the sequence of their expiry."""
    ticket_id = await past.list_ticket(10)
    orders = [await past.place(ticket_id) for _ in range(5)]
    for order_id in orders:
        await past.expire(ticket_id, order_id)
    return orders


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"since": 0}, [1, 2, 3, 4, 5]),
        ({"since": 3}, [3, 4, 5]),
        ({"until": 3}, [1, 2, 3]),
        ({"since": 2, "until": 4, "limit": 2}, [2, 3]),
        ({"since": 4, "until": 3}, []),
        ({"since": 6}, []),
        ({"limit": 1}, [1]),
    ],
    ids=str,
)
async def test_events_are_chosen_by_their_sequence(
    past: Past, expiries: list[UUID], selection: dict[str, int], chosen: list[int]
) -> None:
    assert len(expiries) == 5
    assert [stored.sequence for stored, _ in await past.hears("orders-cancel-expired", **selection)] == chosen


async def test_events_are_chosen_by_their_time_and_aggregate(past: Past, expiries: list[UUID]) -> None:
    third = await past.log.stored("EXPIRATION", 3)
    assert third
    for selection, chosen in (
        ({"since": third.time}, [3, 4, 5]),
        ({"until": third.time}, [1, 2]),
        ({"since": now()}, []),
        ({"aggregate": str(expiries[3]).upper()}, [4]),
        ({"aggregate": str(UUID(int=1))}, []),
    ):
        heard = await past.hears("orders-cancel-expired", **selection)
        assert [stored.sequence for stored, _ in heard] == chosen, selection


@pytest.mark.parametrize("option", ["since", "until"])
async def test_a_sequence_past_the_end_is_refused(past: Past, expiries: list[UUID], option: str) -> None:
    assert expiries
    with pytest.raises(Invalid, match=f"--{option}: Stream EXPIRATION ends at 5"):
        await past.hears("orders-cancel-expired", **{option: 7})


async def test_programs_are_told_the_same_as_objects(past: Past, expiries: list[UUID]) -> None:
    ((stored, heard), *_) = await past.hears("orders-cancel-expired")
    record = msgspec.json.decode(msgspec.json.encode(record_of(stored, heard)))
    (effect,) = record["effects"]
    assert (record["stream"], record["sequence"], record["type"]) == ("EXPIRATION", 1, "expiration_completed")
    assert (record["outcome"], record["why"], record["again_in"]) == ("done", None, None)
    assert (effect["kind"], effect["event"]["order_id"]) == ("order_cancelled", str(expiries[0]))


# Having it done


@pytest.mark.parametrize(
    ("answers", "ending", "detail"),
    [
        (["200 OK"], "done", ""),
        (["429 Too Many Requests\r\nRetry-After: 0", "200 OK"], "done", ""),
        (['503 Service Unavailable\r\n\r\n{"detail": "Nobody knows."}'], "unknown", "Nobody knows."),
        (['409 Conflict\r\n\r\n{"detail": "It failed again."}'], "failed", "It failed again."),
        (["500 Oh"], "failed", "it answers 500."),
        (["no HTTP"], "unknown", "no answer (RemoteProtocolError)"),
    ],
    ids=["done", "too many", "unknown", "failed", "broken", "no answer"],
)
async def test_what_came_of_a_redelivery_is_what_the_system_answers(
    answers: list[str], ending: Ending, detail: str
) -> None:
    stored = Stored("EXPIRATION", "expiration.1", 7, {}, b"{}", now())
    async with Receiver(lambda post: answers[post - 1]) as receiver, httpx.AsyncClient(base_url=receiver.url) as http:
        came = await deliver(http, "orders-cancel-expired", stored, Who("operator"))
    assert came == Redelivered(ending, detail)
    assert len(receiver.posts) == len(answers)
    asked = receiver.posts[-1].json()
    assert asked == {"listener": "orders-cancel-expired", "stream": "EXPIRATION", "sequence": 7}
