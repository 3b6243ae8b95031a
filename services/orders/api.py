"""HTTP -> command -> response."""

import asyncio
from datetime import timedelta
from typing import Annotated
from uuid import UUID, uuid5

import asyncpg
import msgspec
from litestar import Controller, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import Meta

from common.auth import RequiresUser, UserRequest
from common.clock import new_id, now
from common.http import LOCATION_HEADER
from common.idempotency import IdempotencyKey, request_id_of
from common.limits import Limited
from common.paging import Cursor
from common.problems import problems
from services.orders import read_model
from services.orders.domain import CancelOrder, OrderRequests, PlaceOrder, RequestOrder, Status
from services.orders.e_ticket import e_ticket
from services.orders.listeners import KeepOrderBook
from services.orders.payments import Gateway, VisibleOrders, pay
from services.orders.read_model import OrderPage, OrderView
from services.orders.settings import OrdersSettings


class NewOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to reserve. `hold_seconds` may ask for less time to pay than the shop gives, never for more."""

    ticket_id: Annotated[UUID, Meta(examples=["01920c3c-7a3e-7cc4-8a3e-3d1f0c5b9a10"])]
    quantity: Annotated[int, Meta(ge=1, le=1_000, examples=[2])]
    hold_seconds: Annotated[int, Meta(ge=1, le=86_400, examples=[60])] | None = None


Token = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=200,
        pattern=r"^[!-~]+(?!\n)$",
        description="Visible ASCII characters",
        examples=["tok_ok"],
    ),
]


class Payment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to pay: a token that the payment gateway gave."""

    token: Token


class OrderDesk(msgspec.Struct, frozen=True):
    """What these doors need."""

    orders: VisibleOrders
    requests: OrderRequests
    books: KeepOrderBook
    gateway: Gateway
    pool: asyncpg.Pool
    settings: OrdersSettings

    async def order(self, order_id: UUID, buyer_id: str) -> OrderView:
        """An order of this buyer. Raises NotFound, Unavailable."""
        return await self.orders.find(lambda: read_model.order(self.pool, order_id, buyer_id))


class OrderController(Controller):
    """A buyer's own orders; somebody else's answer like absent ones."""

    path = "/api/orders"
    tags = ("orders",)
    middleware = (RequiresUser("orders"), Limited("orders"))

    @post("/", responses=problems(400, 404, 409, 413, 415, 422, 503), response_headers=[LOCATION_HEADER])
    async def place(
        self,
        data: JSONBody[NewOrder],
        request: UserRequest,
        desk: NamedDependency[OrderDesk],
        idempotency_key: IdempotencyKey = None,
    ) -> Response[OrderView]:
        """Reserve seats for a while.

        With an `Idempotency-Key` that was used before, the answer is that of then, whatever became of the order since;
        what was refused then made no order, and is decided anew. If the request is not the same, it is 422.
        """
        at = now()
        order_id, request_id = new_id(), None
        if idempotency_key is not None:
            request_id = request_id_of(request.user.id, idempotency_key)
            order_id = uuid5(request_id, "order")
            wanted = (data.ticket_id, data.quantity, data.hold_seconds)
            await desk.requests.handle(request_id, RequestOrder(request_id, request.user.id, *wanted, at), new=True)
        await desk.books.catch_up(data.ticket_id)
        longest = desk.settings.hold_seconds
        expires_at = at + timedelta(seconds=min(data.hold_seconds or longest, longest))
        command = PlaceOrder(order_id, request.user.id, data.quantity, expires_at, at, request_id)
        placed = await desk.orders.handle(data.ticket_id, command)
        order = OrderView.of(placed.state.order(order_id).as_placed)
        return Response(order, status_code=201, headers={"Location": f"/api/orders/{order_id}"})

    @get("/", responses=problems(400, 503))
    async def list(
        self,
        request: UserRequest,
        desk: NamedDependency[OrderDesk],
        status: Annotated[Status | None, QueryParameter()] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: Cursor = None,
    ) -> OrderPage:
        """Your orders, newest first."""
        return await read_model.orders(desk.pool, request.user.id, status=status, limit=limit, cursor=cursor)

    @get("/{order_id:str}", responses=problems(400, 404, 503))
    async def read(self, order_id: FromPath[UUID], request: UserRequest, desk: NamedDependency[OrderDesk]) -> OrderView:
        """One of your orders."""
        return await desk.order(order_id, request.user.id)

    @get("/{order_id:str}/ticket.pdf", media_type="application/pdf", responses=problems(400, 404, 409, 503))
    async def e_ticket(
        self, order_id: FromPath[UUID], request: UserRequest, desk: NamedDependency[OrderDesk]
    ) -> Response[bytes]:
        """The e-ticket of an order that is paid, as PDF."""
        order = await desk.order(order_id, request.user.id)
        document = await asyncio.to_thread(e_ticket, order)
        name = f'attachment; filename="ticket-{order_id}.pdf"'
        return Response(document, media_type="application/pdf", headers={"Content-Disposition": name})

    @delete("/{order_id:str}", status_code=200, responses=problems(400, 404, 409, 503))
    async def cancel(
        self,
        order_id: FromPath[UUID],
        request: UserRequest,
        desk: NamedDependency[OrderDesk],
    ) -> OrderView:
        """Give the seats back. Once paid, an order stays."""
        order = await desk.order(order_id, request.user.id)
        cancelled = await desk.orders.handle(order.ticket_id, CancelOrder(order_id, "buyer", now()))
        return OrderView.of(cancelled.state.order(order_id))

    @post("/{order_id:str}/payment", status_code=200, responses=problems(400, 402, 404, 409, 413, 415, 422, 503))
    async def pay(
        self,
        order_id: FromPath[UUID],
        data: JSONBody[Payment],
        request: UserRequest,
        desk: NamedDependency[OrderDesk],
        idempotency_key: IdempotencyKey = None,
    ) -> OrderView:
        """Pay, while the order holds the seats."""
        order = await desk.order(order_id, request.user.id)
        # With the token: what the gateway says of one token must not be taken for what it says of another.
        payment_id = uuid5(order_id, f"{idempotency_key} {data.token}") if idempotency_key else new_id()
        return OrderView.of(await pay(desk.orders, desk.gateway, order.ticket_id, order_id, payment_id, data.token))
