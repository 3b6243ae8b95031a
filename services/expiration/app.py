"""Wiring: the only file that imports all the others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from common.events import ExpirationCompleted
from common.listener import Subscription
from common.publisher import Publisher
from common.runtime import Platform, Service
from common.settings import Settings
from services.expiration.listeners import HoldOrder, Withdrawals


@asynccontextmanager
async def create_service(platform: Platform, _: Settings) -> AsyncIterator[Service]:
    """The expiration service: it has no doors, only ears."""
    holder = HoldOrder(Publisher[ExpirationCompleted]("expiration", platform.event_log))
    subscription = Subscription(holder, platform.client)
    withdrawals = Withdrawals(holder, platform.event_log, subscription.settled)
    yield Service("expiration", workers=[withdrawals, subscription])
