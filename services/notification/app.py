"""Wiring: the only file that imports all the others."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from litestar import Router

from common.aggregate import Aggregate
from common.assets import Asset
from common.event_log import EventLog
from common.http import given
from common.listener import Listener, Subscription
from common.projector import Projected, Projector, ReadYourWrites
from common.rehearsal import Rehearsal
from common.runtime import Platform, Service
from services.notification.api import NotificationController, NotificationDesk, client
from services.notification.domain import INBOXES_DECIDER, Inboxes, weight_of
from services.notification.feed import STREAM, Feed, Receipts
from services.notification.listeners import (
    DeliverWebhooks,
    FillWebhooks,
    TellBuyers,
    Teller,
    TellSellers,
    TellSubmitters,
    Titles,
)
from services.notification.read_model import READ_MODEL
from services.notification.rehearsal import NotedPosts
from services.notification.settings import NotificationSettings
from services.notification.webhook_sending import Secrets, Sender
from services.notification.webhooks import DELIVERIES, WEBHOOKS, Deliveries, Webhooks
from services.notification.webhooks_api import WebhookController, WebhookDesk

SCRIPT = Path(__file__).parent / "client" / "notifications.js"

DELIVERIES_KEPT = 10_000
"""Events for which what is posted is kept in memory; each may be of some KiB."""


def listeners_of(
    event_log: EventLog, inboxes: Inboxes, webhooks: Webhooks, deliveries: Deliveries
) -> Sequence[Listener[Any]]:
    """The ears of the service, but for what posts to webhooks."""
    teller = Teller(inboxes)
    return [
        TellBuyers(teller, Titles(event_log)),
        TellSellers(teller, event_log),
        TellSubmitters(teller),
        FillWebhooks(webhooks, deliveries),
    ]


def rehearsed(rehearsal: Rehearsal) -> Sequence[Listener[Any]]:
    """All of them, to learn what they would do."""
    inboxes = Aggregate(INBOXES_DECIDER, rehearsal, weigh=weight_of)
    webhooks, deliveries = Aggregate(WEBHOOKS, rehearsal), Aggregate(DELIVERIES, rehearsal, cache=DELIVERIES_KEPT)
    posting = DeliverWebhooks(
        webhooks, deliveries, NotedPosts(rehearsal), Secrets("nothing that is signed goes out"), 0
    )
    return [*listeners_of(rehearsal, inboxes, webhooks, deliveries), posting]


@asynccontextmanager
async def create_service(platform: Platform, settings: NotificationSettings) -> AsyncIterator[Service]:
    """The notification service: who is told what, and the doors by which they hear it."""
    log, database = platform.event_log, settings.database_url
    inboxes = Aggregate(INBOXES_DECIDER, log, weigh=weight_of)
    projected = Projected(READ_MODEL, STREAM, log, database)
    webhooks, deliveries = Aggregate(WEBHOOKS, log), Aggregate(DELIVERIES, log, cache=DELIVERIES_KEPT)
    secrets = Secrets(settings.webhook_secret) if settings.webhook_secret else None
    async with (
        platform.pool("notifications") as pool,
        Sender(private=settings.webhook_private_addresses) as sender,
    ):
        listeners = listeners_of(log, inboxes, webhooks, deliveries)
        if secrets:  # who cannot sign leaves them to those who can
            posting = DeliverWebhooks(webhooks, deliveries, sender, secrets, settings.webhook_retry_seconds)
            listeners = [*listeners, posting]
        feed = Feed(log, Receipts(inboxes), projected, pool, platform.connections, settings.connections_per_user)
        desk = NotificationDesk(ReadYourWrites(inboxes, projected), feed, pool, Asset.load(SCRIPT, "text/javascript"))
        webhook_desk = WebhookDesk(inboxes, webhooks, ReadYourWrites(deliveries, projected), sender, secrets, pool)
        router = Router(
            "/",
            route_handlers=[NotificationController, WebhookController, client],
            dependencies=given(desk=desk, webhook_desk=webhook_desk),
        )
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
