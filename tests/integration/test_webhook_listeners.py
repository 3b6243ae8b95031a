"""Who is posted what, and how often, when events come again and processes come and go."""

from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from msgspec import UNSET

from common.aggregate import Aggregate
from common.clock import now
from common.errors import Retry
from common.events import NotificationRaised, WebhookAttempted, WebhookDelivered, WebhookDue, WebhookRedeliveryRequested
from common.memory_log import MemoryLog
from services.notification.listeners import AT_A_TIME, LONGEST_QUEUE, DeliverWebhooks, FillWebhooks, Room
from services.notification.webhook_sending import Secrets, Sender
from services.notification.webhooks import (
    DELIVERIES,
    WEBHOOKS,
    ChangeWebhook,
    Delivery,
    Redeliver,
    RegisterWebhook,
    delivery_id_of,
    registry_id_of,
)
from tests.receiver import Receiver

HOOK, OTHER, NOTE, ORDER = (UUID(int=n) for n in range(1, 5))
WAY = delivery_id_of(HOOK, NOTE)


class Replica:
    """The listeners of one process; several may stand on one log."""

    def __init__(self, log: MemoryLog, sender: Sender) -> None:
        self.webhooks = Aggregate(WEBHOOKS, log)
        self.deliveries = Aggregate(DELIVERIES, log)
        self.fill = FillWebhooks(self.webhooks, self.deliveries)
        self.deliver = DeliverWebhooks(self.webhooks, self.deliveries, sender, Secrets("ours"), 5)

    async def register(self, url: str, webhook_id: UUID = HOOK) -> None:
        await self.webhooks.handle(registry_id_of("ada"), RegisterWebhook(webhook_id, "ada", url, None, now()))

    async def redeliver(self) -> WebhookRedeliveryRequested:
        [event] = (await self.deliveries.handle(WAY, Redeliver(HOOK, "ada", None, now()))).events
        assert isinstance(event, WebhookRedeliveryRequested)
        return event

    async def delivery(self) -> Delivery:
        return (await self.deliveries.load(WAY, fresh=True)).state


raised = NotificationRaised(NOTE, "ada", "order.created", ORDER, "You hold 2.", {"quantity": 2}, now(), True)
due = WebhookDue(WAY, HOOK, "ada", NOTE, "order.created", "{}", now())


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    async with Sender(private=True) as sender:
        yield sender


@pytest.fixture
def one(log: MemoryLog, sender: Sender) -> Replica:
    return Replica(log, sender)


@pytest.fixture
def other(log: MemoryLog, sender: Sender) -> Replica:
    return Replica(log, sender)


async def test_a_notification_is_due_once_at_each_webhook_however_often_it_is_heard(
    log: MemoryLog, one: Replica, other: Replica
) -> None:
    await one.register("https://example.org/")
    await one.register("https://example.net/", OTHER)
    for replica in (one, other, one):
        await replica.fill.on(raised)
    for webhook_id in (HOOK, OTHER):
        told = await log.read(f"notifications.deliveries.{delivery_id_of(webhook_id, NOTE)}")
        assert [type(each.event) for each in told] == [WebhookDue]


async def test_what_has_arrived_is_not_posted_when_the_event_comes_again(one: Replica, other: Replica) -> None:
    async with Receiver() as receiver:
        await one.register(receiver.url)
        await one.fill.on(raised)
        for replica in (one, one, other):
            await replica.deliver.on(due)
        assert len(receiver.posts) == 1


async def test_a_run_of_attempts_belongs_to_the_event_that_began_it(one: Replica, other: Replica) -> None:
    async with Receiver() as receiver:
        await one.register(receiver.url)
        await one.fill.on(raised)
        await one.deliver.on(due)
        again = await one.redeliver()
        await other.deliver.on(due)
        assert len(receiver.posts) == 1
        await other.deliver.on(again)
        await one.deliver.on(again)
        assert len(receiver.posts) == 2


async def test_an_event_that_is_ahead_of_what_can_be_read_comes_again(one: Replica) -> None:
    with pytest.raises(Retry):
        await one.deliver.on(due)


async def test_nothing_is_posted_before_its_time_by_anybody(one: Replica, other: Replica) -> None:
    async with Receiver(lambda _: "500 Oh") as receiver:
        await one.register(receiver.url)
        await one.fill.on(raised)
        for replica in (one, other, one):
            with pytest.raises(Retry) as later:
                await replica.deliver.on(due)
            assert 0 < later.value.after <= 5
        assert len(receiver.posts) == 1


async def test_who_asks_for_patience_is_given_it(one: Replica) -> None:
    async with Receiver(lambda _: "429 Too Many Requests\r\nRetry-After: 100") as receiver:
        await one.register(receiver.url)
        await one.fill.on(raised)
        before = now()
        with suppress(Retry):
            await one.deliver.on(due)
    again_at = (await one.delivery()).again_at
    assert again_at
    assert again_at >= before + timedelta(seconds=100)


async def test_what_is_on_its_way_goes_to_where_the_webhook_leads_by_then(
    one: Replica, other: Replica, log: MemoryLog
) -> None:
    one.deliver.retry_seconds = 1e-6
    async with Receiver(lambda _: "500 Oh") as before, Receiver() as after:
        await one.register(before.url)
        await one.fill.on(raised)
        with pytest.raises(Retry):
            await one.deliver.on(due)
        change = ChangeWebhook(HOOK, "ada", after.url, UNSET, UNSET, now())
        await other.webhooks.handle(registry_id_of("ada"), change)
        await one.deliver.on(due)
        assert (len(before.posts), len(after.posts)) == (1, 1)
        assert before.posts[0].id == after.posts[0].id
    told = await log.read(f"notifications.deliveries.{WAY}")
    assert [type(each.event) for each in told] == [WebhookDue, WebhookAttempted, WebhookAttempted, WebhookDelivered]


async def test_what_we_cannot_post_is_parked_and_can_be_asked_for(one: Replica) -> None:
    await one.register("https://example.org/")
    await one.fill.on(raised)
    await one.deliver.give_up(due, RuntimeError("our mistake"))
    assert (await one.delivery()).status == "parked"
    assert (await one.redeliver()).run == 2


def refused(room: Room, webhook_id: UUID) -> float:
    """After how many seconds it is to come again."""
    with pytest.raises(Retry) as later:
        room.enter(webhook_id)
    return later.value.after


def test_who_finds_no_room_comes_again_when_its_turn_may_be_and_leaves_it_to_others() -> None:
    clock: list[Any] = [0.0]
    room = Room(lambda: clock[0])
    for _ in range(AT_A_TIME):
        room.enter(HOOK)
    room.leave(HOOK, 8.0)
    room.enter(HOOK)
    assert [refused(room, HOOK) for _ in range(3)] == [2.0, 4.0, 6.0]
    clock[0] = 5.0
    assert refused(room, HOOK) == 3.0
    assert max(refused(room, HOOK) for _ in range(100)) == LONGEST_QUEUE
    for _ in range(AT_A_TIME):
        room.enter(OTHER)
