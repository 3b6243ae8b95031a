"""Request -> command -> verdict: many orders at once, for other services."""

import asyncio
from uuid import UUID

from common.aggregate import Loaded
from common.clock import now
from common.errors import NotFound
from common.requests import Answering
from common.requests.bulk import Chunk, Command, Verdicts, each
from common.requests.orders import CANCEL_ORDERS, OrderCancellation
from services.orders.domain import Book, CancelOrder, Orders


def answering(orders: Orders) -> list[Answering[Chunk, Verdicts]]:
    """What this service answers."""

    async def cancel(chunk: Chunk) -> Verdicts:
        """Give the seats of many orders back, each for its buyer. Once paid, an order stays."""
        books: dict[UUID, asyncio.Task[Loaded[Book]]] = {}  # each is read once, however many of its orders are here

        async def one(command: Command, wanted: OrderCancellation) -> UUID:
            if wanted.ticket_id not in books:
                books[wanted.ticket_id] = asyncio.create_task(orders.load(wanted.ticket_id, fresh=True))
            book = (await books[wanted.ticket_id]).state
            order = book.orders.get(wanted.order_id)
            if order is None or order.buyer_id != command.user_id:
                raise NotFound(f"You have no order {wanted.order_id} for ticket {wanted.ticket_id}.")
            await orders.handle(wanted.ticket_id, CancelOrder(wanted.order_id, "buyer", now()))
            return wanted.order_id

        return await each(chunk, OrderCancellation, one)

    return [Answering(CANCEL_ORDERS, cancel)]
