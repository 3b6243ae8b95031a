"""What the notification service tells: what people are told, and how far they have come with it."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from common.events.base import Address, Content, Cursor, Event, Person

NotificationKind = Literal[
    "order.created", "order.completed", "order.cancelled", "batch.completed", "batch.failed", "ticket.sold_out"
]
Channel = Literal["websocket", "sse", "poll"]


class NotificationRaised(Event, frozen=True, tag="notification_raised"):
    """Something happened that `user_id` is told, once. Its place in the stream is its cursor.

    `about`: the id of the order, batch or ticket. `text` is for people, `facts` for programs. `webhooks`: whether the
    user may have webhooks that want it.
    """

    notification_id: UUID
    user_id: Person
    kind: NotificationKind
    about: UUID
    text: Content
    facts: dict[str, Content | int]
    at: datetime
    webhooks: bool = False


class NotificationsAcknowledged(Event, frozen=True, tag="notifications_acknowledged"):
    """The user's programs have got everything up to `cursor`."""

    user_id: Person
    cursor: Cursor
    at: datetime


class NotificationRead(Event, frozen=True, tag="notification_read"):
    """The user has read one."""

    user_id: Person
    notification_id: UUID
    at: datetime


class NotificationsRead(Event, frozen=True, tag="notifications_read"):
    """The user has read all up to `cursor`."""

    user_id: Person
    cursor: Cursor
    at: datetime


class DeliveryRepeated(Event, frozen=True, tag="delivery_repeated"):
    """These are sent for the `attempt`th time on this channel, since nobody has acknowledged them."""

    user_id: Person
    channel: Channel
    notification_ids: list[UUID]
    attempt: int
    at: datetime


class DeliveryGivenUp(Event, frozen=True, tag="delivery_given_up"):
    """After the last attempt on this channel these rest in the inbox, undelivered."""

    user_id: Person
    channel: Channel
    notification_ids: list[UUID]
    attempts: int
    at: datetime


class PreferencesChanged(Event, frozen=True, tag="preferences_changed"):
    """Which kinds the user does not want on which channels. All of it is in the inbox whatever is said here."""

    user_id: Person
    muted: dict[Channel, list[NotificationKind]]
    at: datetime


class WebhooksWanted(Event, frozen=True, tag="webhooks_wanted"):
    """The user registers their first webhook: what is raised from now on may be for one."""

    user_id: Person
    at: datetime


NotificationEvent = (
    NotificationRaised
    | NotificationsAcknowledged
    | NotificationRead
    | NotificationsRead
    | DeliveryRepeated
    | DeliveryGivenUp
    | PreferencesChanged
    | WebhooksWanted
)


class WebhookRegistered(Event, frozen=True, tag="webhook_registered"):
    """A user wants notifications posted to `url`, of these kinds; None stands for all there are and will be."""

    webhook_id: UUID
    user_id: Person
    url: Address
    kinds: list[NotificationKind] | None
    at: datetime


class WebhookChanged(Event, frozen=True, tag="webhook_changed"):
    """What a webhook is from now on. `because`: why it was disabled, if not by its user; `gone`: it answered 410."""

    webhook_id: UUID
    user_id: Person
    url: Address
    kinds: list[NotificationKind] | None
    enabled: bool
    at: datetime
    because: Literal["gone"] | None = None


class WebhookSecretRotated(Event, frozen=True, tag="webhook_secret_rotated"):
    """The webhook has a new secret, its `secret`th. The one before signs too for a while.

    No secret is in the log: each is derived. `request_id`: of the request, if it had an Idempotency-Key.
    """

    webhook_id: UUID
    user_id: Person
    secret: int
    at: datetime
    request_id: UUID | None = None


class WebhookRemoved(Event, frozen=True, tag="webhook_removed"):
    """Nothing more is posted to it."""

    webhook_id: UUID
    user_id: Person
    at: datetime


class WebhookDue(Event, frozen=True, tag="webhook_due"):
    """A notification is to be posted to a webhook, as this `body` however often."""

    delivery_id: UUID
    webhook_id: UUID
    user_id: Person
    notification_id: UUID
    kind: NotificationKind
    body: Content
    at: datetime


class WebhookAttempted(Event, frozen=True, tag="webhook_attempted"):
    """It was posted for the `attempt`th time, in vain.

    `status`: what was answered, if anything; `error`: what was wrong; `again_at`: when it is tried next, if it is.
    """

    delivery_id: UUID
    webhook_id: UUID
    attempt: int
    status: int | None
    error: Content
    milliseconds: int
    at: datetime
    again_at: datetime | None


class WebhookDelivered(Event, frozen=True, tag="webhook_delivered"):
    """It was posted for the `attempt`th time, and arrived."""

    delivery_id: UUID
    webhook_id: UUID
    attempt: int
    status: int
    milliseconds: int
    at: datetime


class WebhookParked(Event, frozen=True, tag="webhook_parked"):
    """It is not tried again, unless its user asks for it.

    `reason`: it was tried often enough; the webhook answered 410, was disabled or removed; or it is our mistake.
    """

    delivery_id: UUID
    webhook_id: UUID
    reason: Literal["attempts", "gone", "disabled", "removed", "error"]
    attempts: int
    at: datetime


class WebhookRedeliveryRequested(Event, frozen=True, tag="webhook_redelivery_requested"):
    """The user wants it posted again. This begins its `run`th run of attempts; the first began when it was due."""

    delivery_id: UUID
    webhook_id: UUID
    user_id: Person
    run: int
    at: datetime
    request_id: UUID | None = None


WebhookEvent = WebhookRegistered | WebhookChanged | WebhookSecretRotated | WebhookRemoved
WebhookDeliveryEvent = WebhookDue | WebhookAttempted | WebhookDelivered | WebhookParked | WebhookRedeliveryRequested
NotificationsEvent = NotificationEvent | WebhookEvent | WebhookDeliveryEvent
"""All that the service tells."""
