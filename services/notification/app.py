"""Wiring: the only file that imports all the others."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from litestar import Router

from common.aggregate import Aggregate
from common.http import given
from common.listener import Listener, Subscription
from common.projector import Projected, Projector, ReadYourWrites
from common.runtime import Platform, Service
from services.notification.api import NotificationController, NotificationDesk, Script, client
from services.notification.domain import INBOXES_DECIDER, weight_of
from services.notification.feed import STREAM, Feed, Receipts
from services.notification.listeners import TellBuyers, Teller, TellSellers, TellSubmitters
from services.notification.read_model import READ_MODEL
from services.notification.settings import NotificationSettings


@asynccontextmanager
async def create_service(platform: Platform, settings: NotificationSettings) -> AsyncIterator[Service]:
    """The notification service: who is told what, and the doors by which they hear it."""
    log, database = platform.event_log, settings.database_url
    inboxes = Aggregate(INBOXES_DECIDER, log, weigh=weight_of)
    projected = Projected(READ_MODEL, STREAM, log, database)
    teller = Teller(inboxes)
    listeners: Sequence[Listener[Any]] = (TellBuyers(teller), TellSellers(teller, log), TellSubmitters(teller))
    async with platform.pool("notifications") as pool:
        feed = Feed(log, Receipts(inboxes), projected, pool, platform.connections, settings.connections_per_user)
        desk = NotificationDesk(ReadYourWrites(inboxes, projected), feed, pool, Script.load())
        router = Router("/", route_handlers=[NotificationController, client], dependencies=given(desk=desk))
        yield Service(
            "notification",
            [router],
            [
                *(Subscription(listener, platform.client) for listener in listeners),
                Projector(READ_MODEL, STREAM, log, database),
                projected,
                feed,
            ],
        )
