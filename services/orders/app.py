"""Wiring: the only file that imports all the others."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from litestar import Router

from common.aggregate import Aggregate
from common.event_log import EventLog
from common.http import given
from common.listener import Listener, Subscription
from common.projector import Projected, Projector, ReadYourWrites
from common.rehearsal import Rehearsal
from common.requests import Responder
from common.runtime import Platform, Service
from services.orders.api import OrderController, OrderDesk
from services.orders.domain import ORDER_REQUESTS, ORDERS, Orders
from services.orders.listeners import CancelExpiredOrder, KeepOrderBook, SettlePayments
from services.orders.payments import FakeGateway, Gateway
from services.orders.read_model import READ_MODEL
from services.orders.rehearsal import NotedGateway
from services.orders.requests import answering
from services.orders.settings import OrdersSettings


def listeners_of(
    event_log: EventLog, orders: Orders, gateway: Gateway
) -> tuple[KeepOrderBook, CancelExpiredOrder, SettlePayments]:
    """The ears of the service."""
    return KeepOrderBook(orders, event_log), CancelExpiredOrder(orders), SettlePayments(gateway)


def rehearsed(rehearsal: Rehearsal) -> Sequence[Listener[Any]]:
    """The same, to learn what they would do."""
    return listeners_of(rehearsal, Aggregate(ORDERS, rehearsal), NotedGateway(rehearsal))


@asynccontextmanager
async def create_service(platform: Platform, settings: OrdersSettings) -> AsyncIterator[Service]:
    """The orders service: its doors, its listeners, and the projector of what buyers see."""
    log, database = platform.event_log, settings.database_url
    aggregate, requests = Aggregate(ORDERS, log), Aggregate(ORDER_REQUESTS, log, cache=1_000)
    projected = Projected(READ_MODEL, "ORDERS", log, database)
    async with platform.pool("orders") as pool:
        gateway = FakeGateway(pool)
        books, *_ = listeners = listeners_of(log, aggregate, gateway)
        desk = OrderDesk(ReadYourWrites(aggregate, projected), requests, books, gateway, pool, settings)
        router = Router("/", route_handlers=[OrderController], dependencies=given(desk=desk))
        responder = Responder("orders", answering(aggregate), platform.client, concurrency=4)  # of up to 500 commands
        yield Service(
            "orders",
            [router],
            [
                *(Subscription(listener, platform.client) for listener in listeners),
                Projector(READ_MODEL, "ORDERS", log, database),
                projected,
                responder,
            ],
        )
