"""What the notification service tells: what people are told, and how far they have come with it."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from common.events.base import Event

NotificationKind = Literal[
    "order.created", "order.completed", "order.cancelled", "batch.completed", "batch.failed", "ticket.sold_out"
]
Channel = Literal["websocket", "sse"]


class NotificationRaised(Event, frozen=True, tag="notification_raised"):
    """Something happened that `user_id` is told, once. Its place in the stream is its cursor.

    `about`: the id of the order, batch or ticket. `text` is for people, `facts` for programs.
    """

    notification_id: UUID
    user_id: str
    kind: NotificationKind
    about: UUID
    text: str
    facts: dict[str, str | int]
    at: datetime


class NotificationsAcknowledged(Event, frozen=True, tag="notifications_acknowledged"):
    """The user's programs have got everything up to `cursor`."""

    user_id: str
    cursor: int
    at: datetime


class NotificationRead(Event, frozen=True, tag="notification_read"):
    """The user has read one."""

    user_id: str
    notification_id: UUID
    at: datetime


class NotificationsRead(Event, frozen=True, tag="notifications_read"):
    """The user has read all up to `cursor`."""

    user_id: str
    cursor: int
    at: datetime


class DeliveryRepeated(Event, frozen=True, tag="delivery_repeated"):
    """These are sent for the `attempt`th time on this channel, since nobody has acknowledged them."""

    user_id: str
    channel: Channel
    notification_ids: list[UUID]
    attempt: int
    at: datetime


class DeliveryGivenUp(Event, frozen=True, tag="delivery_given_up"):
    """After the last attempt on this channel these rest in the inbox, undelivered."""

    user_id: str
    channel: Channel
    notification_ids: list[UUID]
    attempts: int
    at: datetime


class PreferencesChanged(Event, frozen=True, tag="preferences_changed"):
    """Which kinds the user does not want on which channels. All of it is in the inbox whatever is said here."""

    user_id: str
    muted: dict[Channel, list[NotificationKind]]
    at: datetime


NotificationEvent = (
    NotificationRaised
    | NotificationsAcknowledged
    | NotificationRead
    | NotificationsRead
    | DeliveryRepeated
    | DeliveryGivenUp
    | PreferencesChanged
)
