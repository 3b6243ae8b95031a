"""What was recorded can be read for ever: the corpus of events as they stand on the wire, and what is forgiven."""

from functools import reduce
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import msgspec
import pytest
from msgspec import Struct, structs

from common.events import (
    OWNERS,
    UPCASTS,
    BookOpened,
    Event,
    ExpirationCompleted,
    OrderCreated,
    OrderRequested,
    TicketCreated,
    UndecodableEvent,
    UnknownEvent,
    decode,
    encode,
    type_of,
)
from services.orders.domain import ORDERS, Book
from tests.facts import AT, fact

CORPUS = Path(__file__).parents[1] / "corpus"


class Sample(msgspec.Struct, frozen=True):
    """A message of a stream. Samples are added to the corpus, and never changed or removed."""

    subject: str
    headers: dict[str, str]
    body: str

    @property
    def tag(self) -> str:
        return self.headers["ce-type"]

    def decoded(self) -> Event:
        return decode(self.tag, self.body.encode())


SAMPLES = {
    file.stem: [msgspec.json.decode(line, type=Sample) for line in file.read_bytes().splitlines()]
    for file in sorted(CORPUS.glob("*.jsonl"))
}
EVERY_SAMPLE = [
    pytest.param(owner, sample, id=f"{owner}-{n}-{sample.tag}")
    for owner, samples in SAMPLES.items()
    for n, sample in enumerate(samples, start=1)
]


def events_of(owner: str) -> tuple[type[Event], ...]:
    """The event types that a service owns."""
    return get_args(OWNERS[owner]) or (OWNERS[owner],)


@pytest.mark.parametrize(("owner", "sample"), EVERY_SAMPLE)
def test_every_recorded_event_decodes(owner: str, sample: Sample) -> None:
    event = sample.decoded()
    assert isinstance(event, events_of(owner))
    assert event.version == int(sample.headers["ce-sequence"])
    assert sample.subject.startswith(f"{owner}.")


def test_every_event_type_is_recorded() -> None:
    assert set(SAMPLES) == set(OWNERS)
    for owner, samples in SAMPLES.items():
        assert {type(sample.decoded()) for sample in samples} == set(events_of(owner)), f"record the missing {owner}"


@pytest.mark.parametrize("owner", SAMPLES)
def test_events_are_written_as_they_were_last_recorded(owner: str) -> None:
    for tag, sample in {sample.tag: sample for sample in SAMPLES[owner]}.items():
        assert encode(sample.decoded()).decode() == sample.body, f"add a sample of what {tag} looks like now"


def test_every_field_is_recorded_with_a_value_other_than_its_default() -> None:
    for samples in SAMPLES.values():
        for event in {type(sample.decoded()) for sample in samples}:
            recorded = [sample.decoded() for sample in samples if isinstance(sample.decoded(), event)]
            for field in msgspec.structs.fields(event):
                if not field.required and field.default_factory is msgspec.NODEFAULT:
                    values = [getattr(each, field.name) for each in recorded]
                    assert any(value != field.default for value in values), f"record {event.__name__}.{field.name}"


def test_recorded_orders_make_the_book_they_made_then() -> None:
    events = [sample.decoded() for sample in SAMPLES["orders"] if sample.tag != type_of(OrderRequested)]
    book: Book = reduce(ORDERS.evolve, events, ORDERS.initial)  # type: ignore[arg-type]
    endings = [(order.buyer_id, order.quantity, order.status, order.reason) for order in book.orders.values()]
    assert sorted(endings, key=str) == [
        ("ada", 2, "complete", None),
        ("bob", 1, "cancelled", "expired"),
        ("bob", 1, "cancelled", "seller"),
        ("eve", 1, "cancelled", "buyer"),
        ("eve", 4, "complete", None),
    ]
    assert (book.taken, book.available) == (6, 0)


@pytest.mark.parametrize(("owner", "sample"), EVERY_SAMPLE)
def test_fields_of_newer_code_are_ignored(owner: str, sample: Sample) -> None:
    body = msgspec.json.decode(sample.body)
    inside = (body[field] for field, value in structs.asdict(sample.decoded()).items() if isinstance(value, Struct))
    for place in (body, *inside):
        place["since_next_year"] = {"any": ["thing"]}
    assert decode(sample.tag, msgspec.json.encode(body)) == sample.decoded()
    assert owner in OWNERS


@pytest.mark.parametrize("event", [event for owner in OWNERS for event in events_of(owner)])
def test_fields_with_defaults_may_be_missing_and_no_others(event: type[Event]) -> None:
    [sample, *_] = [sample for samples in SAMPLES.values() for sample in samples if sample.tag == type_of(event)]
    body: dict[str, Any] = msgspec.json.decode(sample.body)
    for field in msgspec.structs.fields(event):
        without = msgspec.json.encode({name: value for name, value in body.items() if name != field.encode_name})
        if field.required:
            with pytest.raises(UndecodableEvent, match=f"{sample.tag}.*{field.encode_name}"):
                decode(sample.tag, without)
        else:
            assert getattr(decode(sample.tag, without), field.name) == field.default


def test_an_unknown_type_is_told() -> None:
    with pytest.raises(UnknownEvent, match="there is no event type 'order_postponed' in this code"):
        decode("order_postponed", b"{}")
    with pytest.raises(UndecodableEvent) as told:
        decode("", b"{}")
    assert not isinstance(told.value, UnknownEvent)  # newer code will not understand it either


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b"\xff", b"{}", b'{"type":"order_created"}', encode(fact(1)).replace(b"T", b" at ")],
)
def test_a_body_that_is_none_of_its_type_is_undecodable(body: bytes) -> None:
    with pytest.raises(UndecodableEvent, match="expiration_completed"):
        decode("expiration_completed", body)


def test_a_body_of_another_type_than_its_header_says_is_undecodable() -> None:
    with pytest.raises(UndecodableEvent, match="ticket_created"):
        decode("ticket_created", encode(fact(1)))


def test_an_old_shape_is_read_as_what_it_means_today(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(old: dict[str, Any]) -> dict[str, Any]:
        """`until` was what `expires_at` is."""
        return {"type": "expiration_completed", "expires_at": old.pop("until")} | {
            name: value for name, value in old.items() if name != "type"
        }

    old = msgspec.json.decode(encode(fact(7, version=3)))
    old |= {"type": "expiration_ended", "until": old.pop("expires_at")}
    with pytest.raises(UndecodableEvent, match="expiration_ended"):
        decode("expiration_ended", msgspec.json.encode(old))
    monkeypatch.setitem(UPCASTS, "expiration_ended", renamed)
    assert decode("expiration_ended", msgspec.json.encode(old)) == fact(7, version=3)


def test_an_old_shape_of_a_type_that_still_exists_is_upcast(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_minor_units(body: dict[str, Any]) -> dict[str, Any]:
        return body if isinstance(body["details"]["price"], int) else _minor(body)

    [sample, *_] = [sample for sample in SAMPLES["tickets"] if sample.tag == type_of(TicketCreated)]
    old = msgspec.json.decode(sample.body)
    old["details"]["price"] = "25.00"
    monkeypatch.setitem(UPCASTS, sample.tag, in_minor_units)
    assert decode(sample.tag, msgspec.json.encode(old)) == sample.decoded()
    assert decode(sample.tag, sample.body.encode()) == sample.decoded()


def _minor(body: dict[str, Any]) -> dict[str, Any]:
    price = int(body["details"]["price"].replace(".", ""))
    return body | {"details": body["details"] | {"price": price}}


@pytest.mark.parametrize("broken", [{}, {"type": "nothing_known"}, {"type": "expiration_completed", "at": 1}])
def test_an_old_shape_that_its_upcast_cannot_read_is_undecodable(
    broken: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(UPCASTS, "expiration_ended", lambda body: body)
    with pytest.raises(UndecodableEvent):
        decode("expiration_ended", msgspec.json.encode(broken))


def test_an_upcast_that_fails_is_told_and_not_taken_for_an_event_of_newer_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(UPCASTS, "expiration_ended", lambda body: {"type": "expiration_completed", "at": body["until"]})
    with pytest.raises(UndecodableEvent, match=r"expiration_ended: its upcast raises KeyError\('until'\)") as told:
        decode("expiration_ended", b"{}")
    assert not isinstance(told.value, UnknownEvent)


def test_every_type_has_a_tag_of_its_own() -> None:
    tags = [type_of(event) for owner in OWNERS for event in events_of(owner)]
    assert len(tags) == len(set(tags))


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        fact(1).version = 2  # type: ignore[misc]  # which is the point


def test_the_tag_is_in_the_body() -> None:
    for event in (fact(1), OrderCreated(UUID(int=1), UUID(int=2), "ada", "Show", 1, 100, "EUR", AT, AT)):
        assert msgspec.json.decode(encode(event))["type"] == type_of(type(event))
    assert type_of(ExpirationCompleted) == "expiration_completed"
    assert type_of(BookOpened) == "book_opened"
