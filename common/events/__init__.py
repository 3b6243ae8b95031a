"""The published language: every event on the wire, one module per owning service.

Events are for ever: a new field has a default, a changed meaning is a new event, an old shape is upcast in `decode`.
"""

from collections.abc import Callable, Mapping
from typing import Any, get_args

import msgspec

from common.events.base import Event
from common.events.batch import (
    Again,
    BatchCancelled,
    BatchCompleted,
    BatchEnd,
    BatchEvent,
    BatchFailed,
    BatchLifecycle,
    BatchOpened,
    BatchRetried,
    BatchStarted,
    BatchSubmitted,
    KindEvent,
    KindPaused,
    KindResumed,
    Operation,
    OperationRequested,
    OperationsAdded,
    OperationsExecuted,
    Outcome,
    Priority,
    RefusedRow,
    Result,
    RowsRefused,
    TemplateDeleted,
    TemplateEvent,
    TemplateSaved,
    UploadContinued,
    WorkCounted,
    WorkEvent,
    WorkReleased,
)
from common.events.expiration import ExpirationCompleted, ExpirationEvent
from common.events.identity import (
    IdentityEvent,
    KeyAdmitted,
    KeyCreated,
    KeyEvent,
    KeyRevoked,
    KeyUsed,
    LoginsEnded,
    Revoked,
    Role,
    RoleChanged,
    SessionEnd,
    SessionEnded,
    SessionEvent,
    SessionOpened,
    SessionRefreshed,
    Spent,
    UserEvent,
    UserRegistered,
)
from common.events.notifications import (
    Channel,
    DeliveryGivenUp,
    DeliveryRepeated,
    NotificationEvent,
    NotificationKind,
    NotificationRaised,
    NotificationRead,
    NotificationsAcknowledged,
    NotificationsEvent,
    NotificationsRead,
    PreferencesChanged,
    WebhookAttempted,
    WebhookChanged,
    WebhookDelivered,
    WebhookDeliveryEvent,
    WebhookDue,
    WebhookEvent,
    WebhookParked,
    WebhookRedeliveryRequested,
    WebhookRegistered,
    WebhookRemoved,
    WebhookSecretRotated,
    WebhooksWanted,
)
from common.events.orders import (
    BookEvent,
    BookListing,
    BookOpened,
    BookRevised,
    BookSoldOut,
    OrderCancelled,
    OrderCompleted,
    OrderCreated,
    OrderEvent,
    OrderRequested,
    PaymentRefused,
    PaymentStarted,
)
from common.events.repairs import DeadLetterDropped, DeadLetterEdited, EventRedelivered, RepairEvent
from common.events.tickets import TicketCreated, TicketDetails, TicketEvent, TicketUpdated, TicketWithdrawn

__all__ = [
    "EVENTS",
    "OWNERS",
    "UPCASTS",
    "Again",
    "BatchCancelled",
    "BatchCompleted",
    "BatchEnd",
    "BatchEvent",
    "BatchFailed",
    "BatchLifecycle",
    "BatchOpened",
    "BatchRetried",
    "BatchStarted",
    "BatchSubmitted",
    "BookEvent",
    "BookListing",
    "BookOpened",
    "BookRevised",
    "BookSoldOut",
    "Channel",
    "DeadLetterDropped",
    "DeadLetterEdited",
    "DeliveryGivenUp",
    "DeliveryRepeated",
    "Event",
    "EventRedelivered",
    "ExpirationCompleted",
    "ExpirationEvent",
    "IdentityEvent",
    "KeyAdmitted",
    "KeyCreated",
    "KeyEvent",
    "KeyRevoked",
    "KeyUsed",
    "KindEvent",
    "KindPaused",
    "KindResumed",
    "LoginsEnded",
    "NotificationEvent",
    "NotificationKind",
    "NotificationRaised",
    "NotificationRead",
    "NotificationsAcknowledged",
    "NotificationsEvent",
    "NotificationsRead",
    "Operation",
    "OperationRequested",
    "OperationsAdded",
    "OperationsExecuted",
    "OrderCancelled",
    "OrderCompleted",
    "OrderCreated",
    "OrderEvent",
    "OrderRequested",
    "Outcome",
    "PaymentRefused",
    "PaymentStarted",
    "PreferencesChanged",
    "Priority",
    "RefusedRow",
    "RepairEvent",
    "Result",
    "Revoked",
    "Role",
    "RoleChanged",
    "RowsRefused",
    "SessionEnd",
    "SessionEnded",
    "SessionEvent",
    "SessionOpened",
    "SessionRefreshed",
    "Skipped",
    "Spent",
    "TemplateDeleted",
    "TemplateEvent",
    "TemplateSaved",
    "TicketCreated",
    "TicketDetails",
    "TicketEvent",
    "TicketUpdated",
    "TicketWithdrawn",
    "UndecodableEvent",
    "UnknownEvent",
    "UploadContinued",
    "UserEvent",
    "UserRegistered",
    "WebhookAttempted",
    "WebhookChanged",
    "WebhookDelivered",
    "WebhookDeliveryEvent",
    "WebhookDue",
    "WebhookEvent",
    "WebhookParked",
    "WebhookRedeliveryRequested",
    "WebhookRegistered",
    "WebhookRemoved",
    "WebhookSecretRotated",
    "WebhooksWanted",
    "WorkCounted",
    "WorkEvent",
    "WorkReleased",
    "decode",
    "encode",
    "events_of",
    "type_of",
]

OWNERS: Mapping[str, Any] = {
    "tickets": TicketEvent,
    "orders": OrderEvent,
    "expiration": ExpirationEvent,
    "batch": BatchEvent,
    "notifications": NotificationsEvent,
    "identity": IdentityEvent,
    "repairs": RepairEvent,
    "revoked": Revoked,
    "spent": Spent,
}
"""Which events a service owns: its name -> the union of their types."""

UPCASTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Old shapes: the recorded type tag -> a function from that body to today's, with today's tag in `type`."""


class Skipped(Event, frozen=True, tag="skipped"):
    """Stands for a recorded event whose body nobody wanted to know. It is never on the wire."""


class UndecodableEvent(Exception):
    """A recorded event that this code does not understand: written by newer code, or not an event at all."""


class UnknownEvent(UndecodableEvent):
    """An event of a type that this code does not have. Newer code wrote it, and will understand it."""


def type_of(event: type[Event]) -> str:
    """The type tag of an event class, as it stands in the body's `type` and in the header `ce-type`."""
    tag = event.__struct_config__.tag
    assert isinstance(tag, str), f"{event.__name__} has no tag"
    return tag


def events_of(owner: str) -> tuple[type[Event], ...]:
    """The types of event that a service owns."""
    return get_args(OWNERS[owner]) or (OWNERS[owner],)


EVENTS: Mapping[str, type[Event]] = {type_of(event): event for owner in OWNERS for event in events_of(owner)}
"""Every type of event by its tag."""

_BY_TAG: Mapping[str, msgspec.json.Decoder[Event]] = {tag: msgspec.json.Decoder(event) for tag, event in EVENTS.items()}
_encoder = msgspec.json.Encoder()
encode = _encoder.encode


def decode(tag: str, body: bytes) -> Event:
    """The event in `body`, whose type the header says to be `tag`. Raises UnknownEvent, UndecodableEvent."""
    try:
        if tag in UPCASTS:
            tag, body = _upcast(tag, msgspec.json.decode(body))
        if (decoder := _BY_TAG.get(tag)) is None:
            raise (UnknownEvent if tag else UndecodableEvent)(f"there is no event type {tag!r} in this code")
        return decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise UndecodableEvent(f"{tag}: {error}") from error


def _upcast(tag: str, recorded: dict[str, Any]) -> tuple[str, bytes]:
    try:
        shape = UPCASTS[tag](recorded)
        return shape["type"], encode(shape)
    except Exception as error:  # whatever such a function meets that it was not made for
        raise UndecodableEvent(f"{tag}: its upcast raises {error!r}") from error
