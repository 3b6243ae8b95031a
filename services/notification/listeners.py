"""Domain event -> who is told what: one class for each stream."""

from datetime import datetime
from uuid import NAMESPACE_URL, UUID, uuid5

from common.event_log import EventLog
from common.events import (
    BatchCompleted,
    BatchFailed,
    BookSoldOut,
    NotificationKind,
    OrderCancelled,
    OrderCompleted,
    OrderCreated,
    TicketCreated,
)
from common.listener import Listener
from common.telemetry import current_cause
from services.notification.domain import Inboxes, Raise, inbox_id_of

Facts = dict[str, str | int]

NOTIFICATIONS = uuid5(NAMESPACE_URL, "boxoffice:notifications")

WHY = {"expired": "its time to pay was over", "buyer": "you cancelled it", "seller": "the seller cancelled it"}


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


class TellBuyers(Listener[OrderCreated | OrderCompleted | OrderCancelled]):
    """Tells buyers what became of their orders."""

    durable = "notification-tell-buyers"

    def __init__(self, teller: Teller) -> None:
        self.teller = teller

    def key(self, event: OrderCreated | OrderCompleted | OrderCancelled) -> object:
        """A buyer is told in the order in which it happened."""
        return event.buyer_id

    async def on(self, event: OrderCreated | OrderCompleted | OrderCancelled) -> None:
        facts: Facts = {"ticket_id": str(event.ticket_id), "quantity": event.quantity}
        kind: NotificationKind
        match event:
            case OrderCreated(title=title, quantity=quantity, price=price, expires_at=until):
                kind, text = "order.created", f"You hold {quantity} of {title} until {until:%H:%M:%S} UTC."
                facts |= {"expires_at": until.isoformat(), "total": price * quantity, "currency": event.currency}
            case OrderCompleted(quantity=quantity, amount=amount, currency=currency):
                kind, text = "order.completed", f"Your order is complete: {quantity} paid for."
                facts |= {"amount": amount, "currency": currency}
            case OrderCancelled(reason=reason):
                kind, text = "order.cancelled", f"Your order was cancelled: {WHY[reason]}."
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
                text = f"Your batch of {kind} is {status}: {counted}."
                facts = {"kind": kind, "status": status, "succeeded": succeeded, "failed": failed}
                facts |= {"cancelled": cancelled, "refused": refused}
                await self.teller.tell(user_id, "batch.completed", batch_id, text, facts, event.at)
            case BatchFailed(batch_id, user_id, kind, reason, detail):
                text = f"Your batch of {kind} failed: {detail}"
                facts = {"kind": kind, "reason": reason}
                await self.teller.tell(user_id, "batch.failed", batch_id, text, facts, event.at)
