"""HTTP -> webhooks, and what was posted to them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Self
from uuid import UUID, uuid5

import asyncpg
import msgspec
from litestar import Controller, Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import UNSET, Meta, UnsetType

from common.auth import RequiresUser, UserRequest
from common.clock import new_id, now
from common.errors import Unavailable
from common.events import NotificationKind, WebhookDeliveryEvent
from common.http import LOCATION_HEADER
from common.idempotency import IdempotencyKey, request_id_of
from common.limits import Limited
from common.paging import Cursor
from common.problems import problems
from common.projector import ReadYourWrites
from services.notification import deliveries
from services.notification.addresses import LENGTH
from services.notification.deliveries import DeliveryPage, DeliveryView
from services.notification.domain import Inboxes, WantWebhooks, inbox_id_of
from services.notification.webhook_sending import Secrets, Sender
from services.notification.webhooks import (
    ChangeWebhook,
    Delivery,
    DeliveryCommand,
    DeliveryStatus,
    Redeliver,
    RegisterWebhook,
    RemoveWebhook,
    RotateSecret,
    Webhook,
    Webhooks,
    registry_id_of,
)

VisibleDeliveries = ReadYourWrites[DeliveryCommand, Delivery, WebhookDeliveryEvent]

Url = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=LENGTH,
        pattern=r"^[!-~]+(?!\n)$",
        description="An address of the public internet that begins with https://",
        examples=["https://example.org/hooks"],
    ),
]
Kinds = Annotated[list[NotificationKind], Meta(min_length=1, max_length=20, examples=[["order.completed"]])]


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to post your notifications, and which kinds; without `kinds`, or null, all there are and will be."""

    url: Url
    kinds: Kinds | None = None


class WebhookChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be different. One that is disabled is posted nothing: what is still on its way is parked."""

    url: Url | UnsetType = UNSET
    kinds: Kinds | UnsetType | None = UNSET
    enabled: Annotated[bool, Meta(examples=[True])] | UnsetType = UNSET


class WebhookView(msgspec.Struct, frozen=True):
    """A webhook. `disabled_because`: `gone`, if it was because it answered 410.

    `both_sign_until`: until then posts have a signature by the secret before too.
    """

    id: UUID
    url: str
    kinds: Sequence[NotificationKind] | None
    enabled: bool
    disabled_because: str | None
    created_at: datetime
    both_sign_until: datetime | None

    @classmethod
    def of(cls, webhook: Webhook) -> Self:
        """A webhook as it is now."""
        return cls(
            webhook.id,
            webhook.url,
            webhook.kinds,
            webhook.enabled,
            webhook.because,
            webhook.created_at,
            webhook.both_sign_until(now()),
        )


class WebhookWithSecret(WebhookView, frozen=True):
    """A webhook and the secret that signs what is posted to it (Standard Webhooks). It is not shown again."""

    secret: str

    @classmethod
    def with_secret(cls, webhook: Webhook, secrets: Secrets, number: int) -> Self:
        """A webhook with one of its secrets."""
        return cls(**msgspec.structs.asdict(WebhookView.of(webhook)), secret=secrets.of(webhook.id, number))


class WebhookList(msgspec.Struct, frozen=True):
    """All your webhooks, newest first."""

    items: list[WebhookView]


class WebhookDesk(msgspec.Struct, frozen=True):
    """What these doors need."""

    inboxes: Inboxes
    webhooks: Webhooks
    deliveries: VisibleDeliveries
    sender: Sender
    secrets: Secrets | None
    pool: asyncpg.Pool

    def signing(self) -> Secrets:
        """Raises Unavailable where nothing can be signed."""
        if self.secrets is None:
            raise Unavailable("There are no webhooks here yet: the operator must set BOXOFFICE_WEBHOOK_SECRET.")
        return self.secrets

    async def webhook(self, webhook_id: UUID, user_id: str) -> Webhook:
        """A user's webhook, as the log has it now. Raises NotFound, Unavailable."""
        return (await self.webhooks.load(registry_id_of(user_id), fresh=True)).state.webhook(webhook_id)

    async def delivery(self, webhook_id: UUID, delivery_id: UUID) -> DeliveryView:
        """Raises NotFound, Unavailable."""
        return await self.deliveries.find(lambda: deliveries.delivery(self.pool, webhook_id, delivery_id))


class WebhookController(Controller):
    """Where your programs are told; somebody else's answer like absent ones."""

    path = "/api/webhooks"
    tags = ("webhooks",)
    middleware = (RequiresUser("webhooks"), Limited("changes"))

    @post("/", responses=problems(400, 409, 413, 415, 422, 503), response_headers=[LOCATION_HEADER])
    async def register(
        self,
        data: JSONBody[NewWebhook],
        request: UserRequest,
        webhook_desk: NamedDependency[WebhookDesk],
        idempotency_key: IdempotencyKey = None,
    ) -> Response[WebhookWithSecret]:
        """Have your notifications posted to an address. Keep the secret of the answer: it is not shown again.

        A post is `{"type": <kind>, "timestamp": <time>, "data": {id, kind, about, text, facts, at}}`, signed as
        Standard Webhooks have it: `webhook-signature` is `v1,` and the base64 of the HMAC-SHA256 of
        `<webhook-id>.<webhook-timestamp>.<body>` under the bytes of the secret; while two secrets sign, there are two.
        `webhook-id` is the same whenever it is posted again. Answer 2xx within 15 s.

        With an `Idempotency-Key` that was used before, the answer is that of then.
        """
        secrets, user = webhook_desk.signing(), request.user.id
        await webhook_desk.sender.check(data.url)
        request_id = request_id_of(user, idempotency_key) if idempotency_key is not None else None
        webhook_id = uuid5(request_id, "webhook") if request_id else new_id()
        await webhook_desk.inboxes.handle(inbox_id_of(user), WantWebhooks(user, now()))
        command = RegisterWebhook(webhook_id, user, data.url, data.kinds, now())
        handled = await webhook_desk.webhooks.handle(registry_id_of(user), command)
        webhook = handled.state.registered[webhook_id]
        registered = WebhookWithSecret.with_secret(webhook, secrets, webhook.secret)
        return Response(registered, status_code=201, headers={"Location": f"/api/webhooks/{webhook_id}"})

    @get("/", responses=problems(400, 503))
    async def list(self, request: UserRequest, webhook_desk: NamedDependency[WebhookDesk]) -> WebhookList:
        """Your webhooks, newest first."""
        registry = (await webhook_desk.webhooks.load(registry_id_of(request.user.id), fresh=True)).state
        newest_first = sorted(registry.webhooks.values(), key=lambda each: (each.created_at, each.id), reverse=True)
        return WebhookList([WebhookView.of(webhook) for webhook in newest_first])

    @get("/{webhook_id:str}", responses=problems(400, 404, 503))
    async def read(
        self, webhook_id: FromPath[UUID], request: UserRequest, webhook_desk: NamedDependency[WebhookDesk]
    ) -> WebhookView:
        """One of your webhooks."""
        return WebhookView.of(await webhook_desk.webhook(webhook_id, request.user.id))

    @patch("/{webhook_id:str}", responses=problems(400, 404, 413, 415, 422, 503))
    async def change(
        self,
        data: JSONBody[WebhookChanges],
        webhook_id: FromPath[UUID],
        request: UserRequest,
        webhook_desk: NamedDependency[WebhookDesk],
    ) -> WebhookView:
        """Change your webhook, or turn it off and on."""
        user = request.user.id
        await webhook_desk.webhook(webhook_id, user)
        if data.url is not UNSET:
            await webhook_desk.sender.check(data.url)
        command = ChangeWebhook(webhook_id, user, data.url, data.kinds, data.enabled, now())
        handled = await webhook_desk.webhooks.handle(registry_id_of(user), command)
        return WebhookView.of(handled.state.webhook(webhook_id))

    @delete("/{webhook_id:str}", responses=problems(400, 404, 503))
    async def remove(
        self, webhook_id: FromPath[UUID], request: UserRequest, webhook_desk: NamedDependency[WebhookDesk]
    ) -> None:
        """Take it away. What is still on its way to it is parked."""
        user = request.user.id
        await webhook_desk.webhooks.handle(registry_id_of(user), RemoveWebhook(webhook_id, user, now()))

    @post("/{webhook_id:str}/rotate", status_code=200, responses=problems(400, 404, 409, 503))
    async def rotate(
        self,
        webhook_id: FromPath[UUID],
        request: UserRequest,
        webhook_desk: NamedDependency[WebhookDesk],
        idempotency_key: IdempotencyKey = None,
    ) -> WebhookWithSecret:
        """Make a new secret; for 24 hours the one before signs too, so there are three in 24 hours at most.

        With an `Idempotency-Key` that was used before, the answer has the secret of then.
        """
        secrets, user = webhook_desk.signing(), request.user.id
        request_id = request_id_of(user, idempotency_key) if idempotency_key is not None else None
        command = RotateSecret(webhook_id, user, request_id, now())
        handled = await webhook_desk.webhooks.handle(registry_id_of(user), command)
        webhook = handled.state.webhook(webhook_id)
        return WebhookWithSecret.with_secret(webhook, secrets, webhook.secret_of(request_id))

    @get("/{webhook_id:str}/deliveries", responses=problems(400, 404, 503))
    async def deliveries(
        self,
        webhook_id: FromPath[UUID],
        request: UserRequest,
        webhook_desk: NamedDependency[WebhookDesk],
        status: Annotated[DeliveryStatus | None, QueryParameter()] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        cursor: Cursor = None,
    ) -> DeliveryPage:
        """What was posted to your webhook and what is still to be, newest first, with every attempt."""
        await webhook_desk.webhook(webhook_id, request.user.id)
        return await deliveries.deliveries(webhook_desk.pool, webhook_id, status=status, limit=limit, cursor=cursor)

    @get("/{webhook_id:str}/deliveries/{delivery_id:str}", responses=problems(400, 404, 503))
    async def delivery(
        self,
        webhook_id: FromPath[UUID],
        delivery_id: FromPath[UUID],
        request: UserRequest,
        webhook_desk: NamedDependency[WebhookDesk],
    ) -> DeliveryView:
        """One of them."""
        await webhook_desk.webhook(webhook_id, request.user.id)
        return await webhook_desk.delivery(webhook_id, delivery_id)

    @post(
        "/{webhook_id:str}/deliveries/{delivery_id:str}/redeliver",
        status_code=200,
        responses=problems(400, 404, 409, 503),
    )
    async def redeliver(
        self,
        webhook_id: FromPath[UUID],
        delivery_id: FromPath[UUID],
        request: UserRequest,
        webhook_desk: NamedDependency[WebhookDesk],
        idempotency_key: IdempotencyKey = None,
    ) -> DeliveryView:
        """Post it again under the same `webhook-id`, ten times at most. While it is on its way this changes nothing."""
        user = request.user.id
        (await webhook_desk.webhook(webhook_id, user)).must_be_enabled()
        request_id = request_id_of(user, idempotency_key) if idempotency_key is not None else None
        command = Redeliver(webhook_id, user, request_id, now())
        await webhook_desk.deliveries.handle(delivery_id, command)
        return await webhook_desk.delivery(webhook_id, delivery_id)
