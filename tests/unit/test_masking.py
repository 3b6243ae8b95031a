"""What is personal in events is said where it is, and is not in what is shown to others."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

import msgspec
import pytest
from msgspec import inspect

from common.event_log import Stored
from common.events import (
    OWNERS,
    DeadLetterEdited,
    Event,
    NotificationRaised,
    Operation,
    OperationsAdded,
    OrderCreated,
    RoleChanged,
    UserRegistered,
    WebhookRegistered,
    decode,
    encode,
    events_of,
)
from common.events.base import PERSONAL
from common.idempotency import request_id_of
from common.masking import BY_KIND, Masking
from services.cli.system import MADE_OF_USERS
from services.identity.domain import place_id_of
from services.notification.domain import inbox_id_of
from tests.facts import AT
from tests.unit.test_events import EVERY_SAMPLE, Sample

HARMLESS = {
    # What is on sale is for everybody to see.
    *("BookListing.title", "BookSoldOut.title", "OrderCreated.title", "TicketDetails.title", "TicketDetails.venue"),
    *("BookListing.currency", "OrderCompleted.currency", "OrderCreated.currency", "TicketDetails.currency"),
    # Names that code has, or settings.
    *("BatchOpened.kind", "BatchCompleted.kind", "BatchFailed.kind", "KindPaused.kind", "KindResumed.kind"),
    *("OperationsAdded.kind", "OperationsExecuted.kind", "WorkReleased.kind", "NotificationRaised.facts (key)"),
    *("EventRedelivered.listener", "EventRedelivered.stream"),
    *("KeyCreated.scopes", "SessionOpened.provider", "UserRegistered.issuer"),
}
"""Fields in which somebody has looked for what is personal, and found nothing."""


def undeclared(told: inspect.Type, path: str) -> Iterator[str]:
    """The places in which anything may stand, and nothing is said of it."""
    match told:
        case inspect.Metadata(type=inner, extra=extra):
            if extra and PERSONAL in extra:
                assert extra[PERSONAL] in BY_KIND
            else:
                yield from undeclared(inner, path)
        case inspect.StructType(cls=cls, fields=fields):
            for field in fields:
                yield from undeclared(field.type, f"{cls.__name__}.{field.name}")
        case inspect.UnionType(types=types) | inspect.TupleType(item_types=types):
            for each in types:
                yield from undeclared(each, path)
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            yield from undeclared(item, path)
        case inspect.DictType(key_type=key, value_type=value):
            yield from undeclared(key, f"{path} (key)")
            yield from undeclared(value, path)
        case (
            inspect.UUIDType()
            | inspect.DateTimeType()
            | inspect.IntType()
            | inspect.BoolType()
            | inspect.NoneType()
            | inspect.LiteralType()
        ):
            pass
        case _:
            yield path


def test_of_every_field_somebody_has_decided_whether_it_is_personal() -> None:
    found = {
        path for owner in OWNERS for event in events_of(owner) for path in undeclared(inspect.type_info(event), "")
    }
    assert found == HARMLESS, "declare it as Person, Content or Address (common/events/base.py), or add it to HARMLESS"


@pytest.mark.parametrize(("owner", "sample"), EVERY_SAMPLE)
def test_every_masked_event_decodes_and_says_the_same_of_all_that_is_not_personal(owner: str, sample: Sample) -> None:
    masking, event = Masking(MADE_OF_USERS), sample.decoded()
    stored = Stored(owner.upper(), sample.subject, 1, sample.headers, sample.body.encode(), datetime.now(UTC))
    masked = masking.stored(stored, event)
    assert len(masked.subject.split(".")) == len(sample.subject.split("."))
    assert masked.headers["ce-source"] == f"/{masked.subject}"
    again = decode(sample.tag, masked.body)
    assert type(again) is type(event)
    for name in ("version", "at", "quantity", "price", "status", "expires_at"):
        assert getattr(again, name, None) == getattr(event, name, None)
    assert masking.event(event) == again, "the same is masked as the same"


def masked(event: Event, masking: Masking | None = None) -> Any:
    return (masking or Masking()).event(event)


def test_a_person_is_the_same_person_within_a_mask_and_another_one_elsewhere() -> None:
    registered = UserRegistered("ada", "dev", "ada", "buyer", AT)
    changed = RoleChanged("ada", "seller", "operator", AT)
    masking = Masking()
    one, other = masked(registered, masking), masked(changed, masking)
    assert one.user_id == one.subject == other.user_id != other.by
    assert one.user_id.startswith("person-")
    assert masked(registered).user_id != one.user_id
    assert masked(RoleChanged("ada", "seller", None, AT), masking).by is None


def test_of_what_somebody_wrote_the_shape_and_the_numbers_stay() -> None:
    payload = msgspec.Raw(b'{"to": "ada@example.org", "seats": [1, "B2", null, true], "price": 1.5}')
    work = OperationsAdded(UUID(int=1), None, 0, "a.kind", "ada", [Operation(1, payload)], AT)
    [operation] = masked(work).operations
    assert (operation.number, bytes(operation.payload)) == (
        1,
        b'{"to":"masked","seats":[1,"masked",null,true],"price":1.5}',
    )
    raised = NotificationRaised(UUID(int=1), "ada", "order.created", UUID(int=2), "You, Ada!", {"n": 2, "c": "EUR"}, AT)
    assert (masked(raised).text, masked(raised).facts) == ("masked", {"n": 2, "c": "masked"})
    edited = DeadLetterEdited(1, '{"buyer_id":"ada","quantity":2}', "operator", AT)
    assert masked(edited).body == '{"buyer_id":"masked","quantity":2}'
    registered = masked(WebhookRegistered(UUID(int=1), "ada", "https://ada.example.org/hooks", None, AT))
    assert registered.url.startswith("https://")
    assert registered.url.endswith(".invalid/")


def test_ids_that_could_be_guessed_are_others_and_the_rest_stay() -> None:
    masking = Masking(MADE_OF_USERS)
    request, order = request_id_of("ada", "key"), uuid5(request_id_of("ada", "key"), "order")
    event = OrderCreated(order, UUID(int=7), "ada", "Show", 1, 1, "EUR", AT, AT, request)
    told = masked(event, masking)
    assert told.ticket_id == event.ticket_id
    assert not {told.order_id, told.request_id} & {order, request}
    assert (told.order_id, told.request_id) == (masking.id(order), masking.id(request))
    assert masking.subject(f"orders.{order}") == f"orders.{told.order_id}"
    for make in (inbox_id_of, place_id_of):
        assert masking.id(make("ada")) == make(told.buyer_id), "what is theirs is found under their masked name"


def test_what_is_not_the_log_s_own_in_headers_is_masked() -> None:
    headers = {"ce-id": str(UUID(int=9)), "correlation-id": "from ada", "causation-id": "", "ce-time": AT.isoformat()}
    event = RoleChanged("ada", "seller", "operator", AT)
    subject = f"identity.users.{place_id_of('ada')}"
    told = Masking(MADE_OF_USERS).stored(Stored("IDENTITY", subject, 1, headers, encode(event), AT), event)
    assert told.headers["ce-id"] == headers["ce-id"]
    assert told.headers["correlation-id"].startswith("masked-")
    assert (told.headers["causation-id"], told.headers["ce-time"]) == ("", AT.isoformat())
    assert told.subject == f"identity.users.{place_id_of(msgspec.json.decode(told.body)['user_id'])}"
