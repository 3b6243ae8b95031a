"""What somebody's inbox may become.

All notifications of a user are one aggregate, the inbox: what was raised, what was sent again, what was read. What was
acknowledged is another of the same kind.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import assert_never
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec
from rpds import HashTrieMap, HashTrieSet

from common.aggregate import Aggregate, Decider
from common.errors import NotFound
from common.events import (
    Channel,
    DeliveryGivenUp,
    DeliveryRepeated,
    NotificationEvent,
    NotificationKind,
    NotificationRaised,
    NotificationRead,
    NotificationsAcknowledged,
    NotificationsRead,
    PreferencesChanged,
    WebhooksWanted,
)

INBOXES = uuid5(NAMESPACE_URL, "boxoffice:inboxes")
PLACES = uuid5(NAMESPACE_URL, "boxoffice:places")
ATTEMPTS = 10
"""How often a notification is sent on one channel, if nobody acknowledges it."""

FIRST_AGAIN = 5.0
"""Seconds after which what was not acknowledged is sent again; each further time after twice as many."""


def gap_after(attempt: int) -> float:
    """Seconds at least from the `attempt`th sending on a channel to the next, whichever connections made them."""
    return FIRST_AGAIN * float(2 ** (attempt - 1))


def inbox_id_of(user_id: str) -> UUID:
    """The id of a user's inbox: names of users are no tokens of subjects."""
    return uuid5(INBOXES, user_id)


def place_id_of(user_id: str) -> UUID:
    """The id of what a user has acknowledged: apart from the inbox, in which others write at the same time."""
    return uuid5(PLACES, user_id)


class Attempt(msgspec.Struct, frozen=True):
    """The last sending of a notification on a channel: which one it was, and when."""

    number: int
    at: datetime

    @property
    def next_at(self) -> datetime:
        """When it may be sent again."""
        return self.at + timedelta(seconds=gap_after(self.number))


class Inbox(msgspec.Struct, frozen=True):
    """A user's inbox. `acknowledged` and `read_to` are cursors.

    `read`: those that were read one by one. `attempts`: the last of each on a channel, where there was more than
    one; its number is one more than ATTEMPTS when it was given up. `webhooks`: whether there may be some.
    """

    known: "HashTrieSet[UUID]" = HashTrieSet()
    read: "HashTrieSet[UUID]" = HashTrieSet()
    acknowledged: int = 0
    read_to: int = 0
    attempts: "HashTrieMap[tuple[Channel, UUID], Attempt]" = HashTrieMap()
    muted: Mapping[Channel, Sequence[NotificationKind]] = {}
    webhooks: bool = False


def weight_of(inbox: Inbox) -> int:
    """How much of the cache it takes. Its events do not tell: of all that was acknowledged the last is kept."""
    return 1 + len(inbox.known) + len(inbox.read) + len(inbox.attempts)


class Raise(msgspec.Struct, frozen=True):
    """Tell a user. The same `notification_id` again tells nobody twice."""

    notification_id: UUID
    user_id: str
    kind: NotificationKind
    about: UUID
    text: str
    facts: dict[str, str | int]
    at: datetime


class Acknowledge(msgspec.Struct, frozen=True):
    """Everything up to `cursor` has arrived."""

    user_id: str
    cursor: int
    at: datetime


class MarkRead(msgspec.Struct, frozen=True):
    """The user has read one. Raises NotFound."""

    user_id: str
    notification_id: UUID
    at: datetime


class MarkAllRead(msgspec.Struct, frozen=True):
    """The user has read all up to `cursor`."""

    user_id: str
    cursor: int
    at: datetime


class SendAgain(msgspec.Struct, frozen=True):
    """These are about to be sent again, or given up if they were sent often enough; not before their time."""

    user_id: str
    channel: Channel
    notification_ids: Sequence[UUID]
    at: datetime


class SetPreferences(msgspec.Struct, frozen=True):
    user_id: str
    muted: dict[Channel, list[NotificationKind]]
    at: datetime


class WantWebhooks(msgspec.Struct, frozen=True):
    """Have each notification from now on looked at for webhooks."""

    user_id: str
    at: datetime


InboxCommand = Raise | Acknowledge | MarkRead | MarkAllRead | SendAgain | SetPreferences | WantWebhooks


def decide(command: InboxCommand, inbox: Inbox) -> list[NotificationEvent]:
    match command:
        case Raise(notification_id, user_id, kind, about, text, facts, at):
            if notification_id in inbox.known:
                return []
            return [NotificationRaised(notification_id, user_id, kind, about, text, facts, at, inbox.webhooks)]
        case Acknowledge(user_id, cursor, at):
            return [NotificationsAcknowledged(user_id, cursor, at)] if cursor > inbox.acknowledged else []
        case MarkRead(user_id, notification_id, at):
            if notification_id not in inbox.known:
                raise NotFound(f"You have no notification {notification_id}.")
            return [] if notification_id in inbox.read else [NotificationRead(user_id, notification_id, at)]
        case MarkAllRead(user_id, cursor, at):
            return [NotificationsRead(user_id, cursor, at)] if cursor > inbox.read_to else []
        case SendAgain():
            return repeated(command, inbox)
        case SetPreferences(user_id, muted, at):
            return [PreferencesChanged(user_id, muted, at)] if muted != inbox.muted else []
        case WantWebhooks(user_id, at):
            return [] if inbox.webhooks else [WebhooksWanted(user_id, at)]
        case _:
            assert_never(command)


def repeated(command: SendAgain, inbox: Inbox) -> list[NotificationEvent]:
    """What is sent for which time, and what was sent often enough. All connections of a channel share one clock."""
    by_attempt: dict[int, list[UUID]] = {}
    for notification_id in command.notification_ids:
        last = inbox.attempts.get((command.channel, notification_id))
        if last is None:
            by_attempt.setdefault(2, []).append(notification_id)
        elif last.number <= ATTEMPTS and command.at >= last.next_at:
            by_attempt.setdefault(last.number + 1, []).append(notification_id)
    told = (command.user_id, command.channel)
    return [
        DeliveryRepeated(*told, ids, attempt, command.at)
        if attempt <= ATTEMPTS
        else DeliveryGivenUp(*told, ids, ATTEMPTS, command.at)
        for attempt, ids in sorted(by_attempt.items())
    ]


def evolve(inbox: Inbox, event: NotificationEvent) -> Inbox:
    match event:
        case NotificationRaised(notification_id):
            return msgspec.structs.replace(inbox, known=inbox.known.insert(notification_id))
        case NotificationsAcknowledged(cursor=cursor):
            return msgspec.structs.replace(inbox, acknowledged=cursor)
        case NotificationRead(notification_id=notification_id):
            return msgspec.structs.replace(inbox, read=inbox.read.insert(notification_id))
        case NotificationsRead(cursor=cursor):
            return msgspec.structs.replace(inbox, read_to=cursor)
        case DeliveryRepeated(_, channel, notification_ids, attempt, at):
            return attempted(inbox, channel, notification_ids, Attempt(attempt, at))
        case DeliveryGivenUp(_, channel, notification_ids, attempts, at):
            return attempted(inbox, channel, notification_ids, Attempt(attempts + 1, at))
        case PreferencesChanged(muted=muted):
            return msgspec.structs.replace(inbox, muted=muted)
        case WebhooksWanted():
            return msgspec.structs.replace(inbox, webhooks=True)
        case _:
            assert_never(event)


def attempted(inbox: Inbox, channel: Channel, notification_ids: Sequence[UUID], attempt: Attempt) -> Inbox:
    attempts = inbox.attempts
    for notification_id in notification_ids:
        attempts = attempts.insert((channel, notification_id), attempt)
    return msgspec.structs.replace(inbox, attempts=attempts)


def asks(event: NotificationEvent) -> InboxCommand:
    """The command that leads to an event."""
    match event:
        case NotificationRaised(notification_id, user_id, kind, about, text, facts, at):
            return Raise(notification_id, user_id, kind, about, text, facts, at)
        case NotificationsAcknowledged(user_id, cursor, at):
            return Acknowledge(user_id, cursor, at)
        case NotificationRead(user_id, notification_id, at):
            return MarkRead(user_id, notification_id, at)
        case NotificationsRead(user_id, cursor, at):
            return MarkAllRead(user_id, cursor, at)
        case DeliveryRepeated() | DeliveryGivenUp():  # of one command there may be several, each about others
            return SendAgain(event.user_id, event.channel, event.notification_ids, event.at)
        case PreferencesChanged(user_id, muted, at):
            return SetPreferences(user_id, muted, at)
        case WebhooksWanted(user_id, at):
            return WantWebhooks(user_id, at)
        case _:
            assert_never(event)


INBOXES_DECIDER = Decider("notifications", NotificationEvent, decide, evolve, initial=Inbox(), asks=asks)
Inboxes = Aggregate[InboxCommand, Inbox, NotificationEvent]
