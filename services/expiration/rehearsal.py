"""What becomes of orders in a rehearsal, in which nobody waits."""

from uuid import UUID

from common.errors import Retry
from common.event_log import EventLog
from common.events import ExpirationCompleted, OrderCreated
from common.publisher import Publisher
from services.expiration.listeners import HoldOrder


class UnheldOrder(HoldOrder):
    """Puts an order back that would be held, and looks into its book whether it ended, since nobody follows that here.

    What is read of a book is read once.
    """

    def __init__(self, publisher: Publisher[ExpirationCompleted], event_log: EventLog) -> None:
        super().__init__(publisher)
        self.event_log = event_log
        self.books: dict[UUID, int] = {}  # by ticket: the sequence up to which it was read
        self.over: set[UUID] = set()

    async def on(self, event: OrderCreated) -> None:
        for recorded in await self.event_log.read(f"orders.{event.ticket_id}", self.books.get(event.ticket_id, 0)):
            self.books[event.ticket_id] = recorded.sequence
            self.hear(recorded.event)
        if event.order_id in self.over:
            self.ended[event.order_id] = None
        await super().on(event)

    def withdraw(self, order_id: UUID) -> None:
        self.over.add(order_id)

    async def informed(self, reading: int, *, at_most: float) -> None:
        pass

    async def ends_within(self, seconds: float, order_id: UUID) -> bool:  # noqa: ARG002 (its book was looked into)
        raise Retry(seconds)
