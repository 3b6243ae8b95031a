"""Foreign event -> command: one class for each deed."""

from uuid import UUID

from common.errors import NotFound
from common.event_log import EventLog
from common.events import (
    BookListing,
    ExpirationCompleted,
    OrderCancelled,
    OrderCompleted,
    TicketCreated,
    TicketEvent,
    TicketUpdated,
    TicketWithdrawn,
)
from common.listener import Listener
from services.orders.domain import CancelOrder, KeepBook, Orders, StopSelling
from services.orders.payments import Gateway


class KeepOrderBook(Listener[TicketCreated | TicketUpdated | TicketWithdrawn]):
    """Lets the order book of a ticket decide by the newest listing."""

    durable = "orders-keep-book"

    def __init__(self, orders: Orders, event_log: EventLog) -> None:
        self.orders = orders
        self.event_log = event_log

    async def on(self, event: TicketEvent) -> None:
        match event:
            case TicketCreated(ticket_id, _, d, at) | TicketUpdated(ticket_id, _, d, at):
                listing = BookListing(d.title, d.price, d.currency, d.quantity, d.max_per_order, True, event.version)
                await self.orders.handle(ticket_id, KeepBook(ticket_id, listing, at))
            case TicketWithdrawn(ticket_id, _, at):
                await self.catch_up(ticket_id)  # another replica may still be opening the book
                await self.orders.handle(ticket_id, StopSelling(event.version, at))

    async def catch_up(self, ticket_id: UUID) -> None:
        """Open a book whose listing is so new that its event is still on the way. Raises NotFound: there is none."""
        if (await self.orders.load(ticket_id)).state.listing is None:
            listings = await self.event_log.read(f"tickets.{ticket_id}")
            if not listings:
                raise NotFound(f"There is no ticket {ticket_id}.", field="ticket_id", got=ticket_id)
            for recorded in listings:
                await self.on(recorded.event)  # type: ignore[arg-type]  # a tickets subject holds TicketEvents


class CancelExpiredOrder(Listener[ExpirationCompleted]):
    """Gives the seats of an order back when its time is over; one that is paid or cancelled stays as it is."""

    durable = "orders-cancel-expired"

    def __init__(self, orders: Orders) -> None:
        self.orders = orders

    async def on(self, event: ExpirationCompleted) -> None:
        await self.orders.handle(event.ticket_id, CancelOrder(event.order_id, "expired", event.at))


class SettlePayments(Listener[OrderCompleted | OrderCancelled]):
    """Settles the payments of an order that ended: takes the money for what was sold, lets go of all others."""

    durable = "orders-settle-payments"

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def key(self, event: OrderCompleted | OrderCancelled) -> object:
        """Orders are settled side by side, also those for one ticket."""
        return event.order_id

    async def on(self, event: OrderCompleted | OrderCancelled) -> None:
        for payment_id in event.unused_payments:
            await self.gateway.void(payment_id)
        if isinstance(event, OrderCompleted):
            await self.gateway.capture(event.payment_id)
