"""Payments: authorise first, sell under the guard, capture when the log says sold, void when it does not.

Nobody is charged for a cancelled order, whatever crashes in between: a payment is in the log before the gateway hears
of it, and the event that ends the order names every payment that is to be voided.
"""

import asyncio
from typing import Any, Protocol
from uuid import UUID

import asyncpg

from common.clock import now
from common.errors import Conflict, Invalid, PaymentDeclined, Unavailable
from common.events import BookEvent
from common.postgres import POSTGRES_FAILED, is_away
from common.projector import ReadYourWrites
from services.orders.domain import Book, CompleteOrder, Order, OrderCommand, RefusePayment, StartPayment, refuse_if_over

VisibleOrders = ReadYourWrites[OrderCommand, Book, BookEvent]


class Gateway(Protocol):
    """The company that moves the money. Every call may be repeated: `payment_id` is its idempotency key."""

    async def authorise(self, payment_id: UUID, token: str, amount: int, currency: str) -> None:
        """Set `amount` (minor units) aside. Raises PaymentDeclined, Invalid for a token that is none, Unavailable.

        A payment that was voided before is declined.
        """

    async def capture(self, payment_id: UUID) -> None:
        """Take what was set aside. Raises Conflict when it was voided or never authorised, Unavailable."""

    async def void(self, payment_id: UUID) -> None:
        """Let go of what was set aside, or will be. Raises Conflict when it was captured, Unavailable."""


async def pay(
    orders: VisibleOrders, gateway: Gateway, ticket_id: UUID, order_id: UUID, payment_id: UUID, token: str
) -> Order:
    """Pay an order: the sale, or the reason why not.

    Raises Conflict when the order is over, also when it ended while the gateway was thinking; the listener on its end
    then voids the payment. Raises what `Gateway.authorise` raises.
    """
    order = (await orders.handle(ticket_id, StartPayment(order_id, payment_id, now()))).state.order(order_id)
    try:
        await gateway.authorise(payment_id, token, order.total, order.currency)
    except (PaymentDeclined, Invalid):
        order = (await orders.handle(ticket_id, RefusePayment(order_id, payment_id, now()))).state.order(order_id)
        refuse_if_over(order)  # it was declined because it had been voided, because the order ended
        raise
    sold = await orders.handle(ticket_id, CompleteOrder(order_id, payment_id, now()))
    return sold.state.order(order_id)


CREATE = """
create schema if not exists fake_gateway;
create table if not exists fake_gateway.payments (
    id uuid primary key,
    amount bigint not null,
    currency text not null,
    status text not null check (status in ('authorised', 'declined', 'captured', 'voided'))
);
"""
AUTHORISE = """
insert into fake_gateway.payments as known (id, amount, currency, status) values ($1, $2, $3, $4)
on conflict (id) do update set status = known.status returning status
"""
CAPTURE = """
update fake_gateway.payments set status = 'captured' where id = $1 and status in ('authorised', 'captured')
returning true
"""
VOID = """
insert into fake_gateway.payments as known (id, amount, currency, status) values ($1, 0, '', 'voided')
on conflict (id) do update set status = 'voided' where known.status <> 'captured' returning true
"""


AGAIN = "The seats stay reserved until the time to pay is over: pay again, with another card."


class FakeGateway:
    """A gateway for development and tests: `tok_ok` and `tok_slow` (3 s) pay, `tok_declined` does not.

    Its tables stand for the books of another company, so it has a schema of its own, that no rebuild touches.
    """

    SLOW_SECONDS = 3.0

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def authorise(self, payment_id: UUID, token: str, amount: int, currency: str) -> None:
        if token not in ("tok_ok", "tok_slow", "tok_declined"):
            raise Invalid("token: this gateway knows tok_ok, tok_declined and tok_slow.", field="token")
        if token == "tok_slow":  # noqa: S105 (no secret)
            await asyncio.sleep(self.SLOW_SECONDS)
        wanted = "declined" if token == "tok_declined" else "authorised"  # noqa: S105 (no secret)
        status = await self._ask(AUTHORISE, payment_id, amount, currency, wanted)
        if status in ("declined", "voided"):
            raise PaymentDeclined(f"The payment was {status}. {AGAIN}")

    async def capture(self, payment_id: UUID) -> None:
        if not await self._ask(CAPTURE, payment_id):
            raise Conflict(f"Payment {payment_id} is not authorised.")

    async def void(self, payment_id: UUID) -> None:
        if not await self._ask(VOID, payment_id):
            raise Conflict(f"Payment {payment_id} was captured.")

    async def _ask(self, query: str, *arguments: object) -> Any:
        """Raises Unavailable: a listener then asks as often as it takes."""
        try:
            return await self._pool.fetchval(query, *arguments)
        except POSTGRES_FAILED as error:
            hint = "try again" if is_away(error) else "has `boxoffice migrate` run?"
            raise Unavailable(f"The payment gateway does not answer now; {hint}.") from error
