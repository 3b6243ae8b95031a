"""Domain event -> who is told what: one class for each stream."""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol
from uuid import NAMESPACE_URL, UUID, uuid5

from common.clock import now
from common.errors import Retry
from common.event_log import EventLog
from common.events import (
    BatchCompleted,
    BatchEnd,
    BatchFailed,
    BookSoldOut,
    NotificationKind,
    NotificationRaised,
    OrderCancelled,
    OrderCompleted,
    OrderCreated,
    TicketCreated,
    TicketUpdated,
    WebhookDue,
    WebhookRedeliveryRequested,
)
from common.listener import Listener
from common.telemetry import WEBHOOK_ATTEMPTS, WEBHOOKS_PARKED, current_cause
from services.notification.domain import Inboxes, Raise, inbox_id_of
from services.notification.webhook_sending import Header, Secrets, body_of
from services.notification.webhooks import (
    Answer,
    Deliveries,
    Delivery,
    DisableGone,
    ParkDelivery,
    ParkReason,
    RecordAttempt,
    SendNotification,
    Webhook,
    Webhooks,
    delivery_id_of,
    pause_after,
    registry_id_of,
)

Facts = dict[str, str | int]

AT_A_TIME = 4
"""Posts to one webhook that a process has under way. More would let one slow receiver take all the room there is."""
LONGEST_QUEUE = 60.0
"""Seconds after which what found no room at a webhook comes again at the latest."""

NOTIFICATIONS = uuid5(NAMESPACE_URL, "boxoffice:notifications")

WHY = {"expired": "its time to pay was over", "buyer": "you cancelled it", "seller": "the seller cancelled it"}

ENDED: Mapping[BatchEnd, str] = {
    "COMPLETED": "is complete",
    "COMPLETED_WITH_ERRORS": "is complete, with errors",
    "CANCELLED": "is cancelled",
    "FAILED": "has failed",
}


def moment(then: datetime, seen_from: datetime) -> str:
    """A time for people, with its day unless that is the day on which they are told."""
    day = "" if then.date() == seen_from.date() else f" on {then.day} {then:%B %Y}"
    return f"{then:%H:%M:%S} UTC{day}"


class Teller:
    """Raises notifications. Their ids are made from the event that is the cause, so a redelivery raises none."""

    def __init__(self, inboxes: Inboxes) -> None:
        self._inboxes = inboxes

    async def tell(
        self, user_id: str, kind: NotificationKind, about: UUID, text: str, facts: Facts, at: datetime
    ) -> None:
        """Tell a user of the event that a listener hears now."""
        notification_id = uuid5(NOTIFICATIONS, current_cause().causation_id)
        command = Raise(notification_id, user_id, kind, about, text, facts, at)
        await self._inboxes.handle(inbox_id_of(user_id), command)


class Titles:
    """What tickets are called, as this process heard it last. Of one that it has not heard of the log is read, once."""

    def __init__(self, event_log: EventLog, most: int = 10_000) -> None:
        """`most`: that are kept."""
        self._event_log = event_log
        self._most = most
        self._known: OrderedDict[UUID, str] = OrderedDict()

    def heard(self, ticket_id: UUID, title: str) -> None:
        self._known[ticket_id] = title
        self._known.move_to_end(ticket_id)
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    async def of(self, ticket_id: UUID) -> str:
        """Its title. Raises Unavailable."""
        if (title := self._known.get(ticket_id)) is None:
            title = "tickets"  # there is no order of what was never listed
            for recorded in await self._event_log.read(f"tickets.{ticket_id}"):
                if isinstance(recorded.event, TicketCreated | TicketUpdated):
                    title = recorded.event.details.title
        self.heard(ticket_id, title)
        return title


class TellBuyers(Listener[OrderCreated | OrderCompleted | OrderCancelled]):
    """Tells buyers what became of their orders."""

    durable = "notification-tell-buyers"

    def __init__(self, teller: Teller, titles: Titles) -> None:
        self.teller = teller
        self.titles = titles

    def key(self, event: OrderCreated | OrderCompleted | OrderCancelled) -> object:
        """A buyer is told in the order in which it happened."""
        return event.buyer_id

    async def on(self, event: OrderCreated | OrderCompleted | OrderCancelled) -> None:
        facts: Facts = {"ticket_id": str(event.ticket_id), "quantity": event.quantity}
        kind: NotificationKind
        match event:
            case OrderCreated(title=title, quantity=quantity, price=price, expires_at=until):
                self.titles.heard(event.ticket_id, title)
                kind, text = "order.created", f"You hold {quantity} of {title} until {moment(until, event.at)}."
                facts |= {"expires_at": until.isoformat(), "total": price * quantity, "currency": event.currency}
            case OrderCompleted(quantity=quantity, amount=amount, currency=currency):
                title = await self.titles.of(event.ticket_id)
                kind, text = "order.completed", f"Your order of {title} is complete: {quantity} paid for."
                facts |= {"amount": amount, "currency": currency}
            case OrderCancelled(reason=reason):
                title = await self.titles.of(event.ticket_id)
                kind, text = "order.cancelled", f"Your order of {title} was cancelled: {WHY[reason]}."
                facts |= {"reason": reason}
        await self.teller.tell(event.buyer_id, kind, event.order_id, text, facts, event.at)


class TellSellers(Listener[BookSoldOut]):
    """Tells sellers that nothing is left."""

    durable = "notification-tell-sellers"

    def __init__(self, teller: Teller, event_log: EventLog) -> None:
        self.teller = teller
        self.event_log = event_log

    async def on(self, event: BookSoldOut) -> None:
        for recorded in await self.event_log.read(f"tickets.{event.ticket_id}"):
            if isinstance(listed := recorded.event, TicketCreated):
                text = f"{event.title} is sold out: all {event.capacity} are paid."
                facts: Facts = {"capacity": event.capacity}
                await self.teller.tell(listed.seller_id, "ticket.sold_out", event.ticket_id, text, facts, event.at)


class TellSubmitters(Listener[BatchCompleted | BatchFailed]):
    """Tells people what became of the batches that they handed in."""

    durable = "notification-tell-submitters"

    def __init__(self, teller: Teller) -> None:
        self.teller = teller

    async def on(self, event: BatchCompleted | BatchFailed) -> None:
        facts: Facts
        match event:
            case BatchCompleted(batch_id, user_id, kind, status, succeeded, failed, cancelled, refused):
                ends = {"succeeded": succeeded, "failed": failed, "cancelled": cancelled, "refused": refused}
                counted = ", ".join(f"{count:,} {end}" for end, count in ends.items() if count)
                text = f"Your batch of {kind} {ENDED[status]}: {counted}."
                facts = {"kind": kind, "status": status, "succeeded": succeeded, "failed": failed}
                facts |= {"cancelled": cancelled, "refused": refused}
                await self.teller.tell(user_id, "batch.completed", batch_id, text, facts, event.at)
            case BatchFailed(batch_id, user_id, kind, reason, detail):
                text = f"Your batch of {kind} failed: {detail}"
                facts = {"kind": kind, "reason": reason}
                await self.teller.tell(user_id, "batch.failed", batch_id, text, facts, event.at)


class FillWebhooks(Listener[NotificationRaised]):
    """Makes a notification due at each webhook that wants it."""

    durable = "notification-webhooks"

    def __init__(self, webhooks: Webhooks, deliveries: Deliveries) -> None:
        self.webhooks = webhooks
        self.deliveries = deliveries

    def key(self, event: NotificationRaised) -> object:
        """Side by side: what is repeated later keeps no order anyway."""
        return event.notification_id

    async def on(self, event: NotificationRaised) -> None:
        if not event.webhooks:
            return  # most users have none, and nothing is read for them
        registry = (await self.webhooks.load(registry_id_of(event.user_id), fresh=True)).state
        if wanting := [webhook for webhook in registry.webhooks.values() if webhook.wants(event.kind)]:
            body = body_of(event)
            await asyncio.gather(*(self.send(event, webhook.id, body) for webhook in wanting))

    async def send(self, event: NotificationRaised, webhook_id: UUID, body: str) -> None:
        """Once, however often this event comes."""
        delivery_id = delivery_id_of(webhook_id, event.notification_id)
        what = (event.user_id, event.notification_id, event.kind, body)
        await self.deliveries.handle(delivery_id, SendNotification(delivery_id, webhook_id, *what, now()), new=True)


class Room:
    """The posts of this process to each webhook: a few at a time, and when to come again for whoever finds no room."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds."""
        self._clock = clock
        self._under_way: dict[UUID, int] = {}
        self._free_at: dict[UUID, float] = {}
        self._took: dict[UUID, float] = {}

    def enter(self, webhook_id: UUID) -> None:
        """Take a place. Raises Retry: those that have to wait are spread over the time that their posts will take."""
        under_way = self._under_way.get(webhook_id, 0)
        if under_way >= AT_A_TIME:
            now = self._clock()
            after = max(now, self._free_at.get(webhook_id, now)) + self._took.get(webhook_id, 1.0) / AT_A_TIME - now
            self._free_at[webhook_id] = now + min(after, LONGEST_QUEUE)
            raise Retry(min(after, LONGEST_QUEUE))
        self._under_way[webhook_id] = under_way + 1

    def leave(self, webhook_id: UUID, took: float) -> None:
        """Give the place back, after so many seconds."""
        self._under_way[webhook_id] -= 1
        self._took[webhook_id] = took
        if not self._under_way[webhook_id]:
            for kept in (self._under_way, self._took, self._free_at):
                kept.pop(webhook_id, None)


class Posting(Protocol):
    """What posts to webhooks: `Sender`."""

    async def post(self, url: str, headers: Sequence[Header], body: str) -> Answer:
        """Post `body`, and what was answered: anything but 2xx is an error."""


class DeliverWebhooks(Listener[WebhookDue | WebhookRedeliveryRequested]):
    """Posts what is due, until it arrives or was tried often enough. Attempts are counted in the log."""

    durable = "notification-deliver-webhooks"
    concurrency = 1_024
    waits = True

    def __init__(
        self, webhooks: Webhooks, deliveries: Deliveries, sender: Posting, secrets: Secrets, retry_seconds: float
    ) -> None:
        """`retry_seconds`: from the first attempt to the second."""
        self.webhooks = webhooks
        self.deliveries = deliveries
        self.sender = sender
        self.secrets = secrets
        self.retry_seconds = retry_seconds
        self.room = Room()

    async def on(self, event: WebhookDue | WebhookRedeliveryRequested) -> None:
        run = event.run if isinstance(event, WebhookRedeliveryRequested) else 1
        delivery = (await self.deliveries.load(event.delivery_id, fresh=True)).state
        if delivery.run < run:
            raise Retry(1)  # read from a replica that is behind
        if delivery.is_over or delivery.run > run:
            return
        if delivery.again_at and (left := (delivery.again_at - now()).total_seconds()) > 0:
            raise Retry(left)
        webhook = (await self.webhooks.load(registry_id_of(event.user_id), fresh=True)).state.webhooks.get(
            event.webhook_id
        )
        if webhook is None or not webhook.enabled:
            await self.park(event.delivery_id, "removed" if webhook is None else webhook.because or "disabled")
            return
        await self.attempt(event.delivery_id, delivery, webhook)

    async def attempt(self, delivery_id: UUID, delivery: Delivery, webhook: Webhook) -> None:
        """Post it, and tell the log what came of it. Raises Retry when it is to be tried again."""
        self.room.enter(webhook.id)
        started, at = time.monotonic(), now()
        try:
            signed = self.secrets.sign(webhook.id, webhook.secrets_at(at), delivery_id, at, delivery.body)
            answer = await self.sender.post(webhook.url, signed, delivery.body)
        finally:
            took = time.monotonic() - started
            self.room.leave(webhook.id, took)
        if answer.gone:
            await self.webhooks.handle(
                registry_id_of(delivery.user_id), DisableGone(webhook.id, delivery.user_id, webhook.url, now())
            )
        pause = pause_after(delivery.tries + 1, self.retry_seconds, random.random())  # noqa: S311 (jitter)
        record = RecordAttempt(delivery.attempts + 1, answer, round(took * 1000), max(pause, answer.retry_after), now())
        handled = await self.deliveries.handle(delivery_id, record)
        if handled.events:
            WEBHOOK_ATTEMPTS.labels("gone" if answer.gone else "failed" if answer.error else "delivered").inc()
            if handled.state.status == "parked":
                WEBHOOKS_PARKED.labels("gone" if answer.gone else "attempts").inc()
        if (again_at := handled.state.again_at) is not None:
            raise Retry((again_at - now()).total_seconds())

    async def park(self, delivery_id: UUID, reason: ParkReason) -> None:
        """Try no more."""
        if (await self.deliveries.handle(delivery_id, ParkDelivery(reason, now()))).events:
            WEBHOOKS_PARKED.labels(reason).inc()

    async def give_up(self, event: WebhookDue | WebhookRedeliveryRequested, error: Exception) -> None:  # noqa: ARG002
        """What we cannot post is parked, so that it can be asked for again."""
        await self.park(event.delivery_id, "error")
