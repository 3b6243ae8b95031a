"""Wiring: the only file that imports all the others."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from common.event_log import EventLog
from common.events import ExpirationCompleted
from common.listener import Listener, Subscription
from common.publisher import Publisher
from common.rehearsal import Rehearsal
from common.runtime import Platform, Service
from common.settings import Settings
from services.expiration.listeners import HoldOrder, Withdrawals
from services.expiration.rehearsal import UnheldOrder


def publisher_on(event_log: EventLog) -> Publisher[ExpirationCompleted]:
    """What tells that the time of an order is over."""
    return Publisher("expiration", event_log)


def rehearsed(rehearsal: Rehearsal) -> Sequence[Listener[Any]]:
    """The ears of the service, to learn what they would do."""
    return [UnheldOrder(publisher_on(rehearsal), rehearsal)]


@asynccontextmanager
async def create_service(platform: Platform, _: Settings) -> AsyncIterator[Service]:
    """The expiration service: it has no doors, only ears."""
    holder = HoldOrder(publisher_on(platform.event_log))
    subscription = Subscription(holder, platform.client)
    withdrawals = Withdrawals(holder, platform.event_log, subscription.settled)
    yield Service("expiration", workers=[withdrawals, subscription])
