"""A change by which recorded events would be read otherwise, or not at all, is found; one that only adds is not."""

from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Meta, Struct, UnsetType

from common.compatibility import breaks, news, unread, unread_before
from common.events import EVENTS, UPCASTS, Event, decode, encode, type_of
from common.samples import samples
from common.schemas import MARK, STREAM_OF, Schemas, Shape, Shapes, shapes, shapes_of, written
from services.cli.events import events
from tests.facts import fact
from tests.unit.test_events import CORPUS, EVERY_SAMPLE, Sample

RELEASED = Path(__file__).parents[2] / "common" / "events" / "released.json"


def of(fields: Mapping[str, Any], tag: str = "sold", *, closed: bool = False, name: str = "Sold") -> type[Event]:
    """An event with these fields: each a type, or a type and its default."""
    told = [(field, *kind) if isinstance(kind, tuple) else (field, kind) for field, kind in fields.items()]
    made = msgspec.defstruct(
        name, told, bases=(Event,), frozen=True, kw_only=True, tag=tag, forbid_unknown_fields=closed
    )
    assert issubclass(made, Event)
    return made


def sold(tag: str = "sold", *, closed: bool = False, name: str = "Sold", **fields: Any) -> type[Event]:
    """The same, with its fields by name."""
    return of(fields, tag, closed=closed, name=name)


def told(*kinds: type[Event], stream: str = "ORDERS", upcasts: Mapping[str, object] | None = None) -> Shapes:
    return shapes_of({type_of(kind): (stream, kind) for kind in kinds}, upcasts or {})


class Seat(Struct, frozen=True):
    row: int
    place: str = ""


class Row(Struct, tag="row"):
    row: int


class Gate(Struct, tag="gate"):
    gate: str


class WideGate(Struct, tag="gate"):
    gate: str
    wide: bool


def inner(name: str, **fields: Any) -> Any:
    return msgspec.defstruct(name, [(field, *kind) for field, kind in fields.items()])


BEFORE = sold(count=int, by=str)
BROKEN: Mapping[str, tuple[Shapes, Shapes, str]] = {
    "an event is gone": (told(BEFORE), told(), "sold: was an event, is unknown"),
    "an event has another tag": (
        told(BEFORE),
        told(sold("was_sold", count=int, by=str)),
        "sold: was an event, is unknown",
    ),
    "an event is in another stream": (
        told(BEFORE),
        told(BEFORE, stream="TICKETS"),
        "sold: was in stream ORDERS, is in TICKETS",
    ),
    "an upcast is gone": (
        told(BEFORE, upcasts={"sold_out": 1}),
        told(BEFORE),
        "sold_out: was read by UPCASTS, is unknown",
    ),
    "a field is gone": (told(BEFORE), told(sold(count=int)), "sold.by: was string, is gone"),
    "a field has another name": (told(BEFORE), told(sold(number=int, by=str)), "sold.count: was integer, is gone"),
    "a new field has no default": (
        told(BEFORE),
        told(sold(count=int, by=str, at=int)),
        "sold.at: was not there, is required",
    ),
    "a default is gone": (
        told(sold(count=(int, 1))),
        told(sold(count=int)),
        "sold.count: was not always there, is required",
    ),
    "a default is another": (
        told(sold(count=(int, 1))),
        told(sold(count=(int, 2))),
        "sold.count: was 1 by default, is 2",
    ),
    "unknown fields are refused": (
        told(BEFORE),
        told(sold(closed=True, count=int, by=str)),
        "sold: was open for unknown fields, is closed",
    ),
    "another type": (told(BEFORE), told(sold(count=str, by=str)), "sold.count: was integer, is string"),
    "a text becomes a time": (told(BEFORE), told(sold(count=int, by=UUID)), "sold.by: was string, is uuid"),
    "a number becomes whole": (told(sold(price=float)), told(sold(price=int)), "sold.price: was number, is integer"),
    "null is no value any more": (
        told(sold(by=str | None)),
        told(sold(by=str)),
        "sold.by: was string or null, is string",
    ),
    "a value of an enumeration is gone": (
        told(sold(how=Literal["card", "cash"])),
        told(sold(how=Literal["card"])),
        'sold.how: was "card" or "cash", is "card"',
    ),
    "a range is narrower": (
        told(sold(count=Annotated[int, Meta(ge=1, le=9)])),
        told(sold(count=Annotated[int, Meta(ge=2, le=9)])),
        "sold.count: was integer from 1 to 9, is integer from 2 to 9",
    ),
    "a range ends before its end": (
        told(sold(count=Annotated[int, Meta(ge=1, le=9)])),
        told(sold(count=Annotated[int, Meta(gt=1, le=9)])),
        "sold.count: was integer from 1 to 9, is integer above 1 to 9",
    ),
    "a value is out of range": (
        told(sold(count=Literal[1, 2])),
        told(sold(count=Annotated[int, Meta(lt=2)])),
        "sold.count: was 1 or 2, is integer below 2",
    ),
    "a range comes": (
        told(BEFORE),
        told(sold(count=Annotated[int, Meta(lt=5)], by=str)),
        "sold.count: was integer, is integer below 5",
    ),
    "a pattern comes": (
        told(BEFORE),
        told(sold(count=int, by=Annotated[str, Meta(pattern="^a")])),
        "sold.by: was string, is string like ^a",
    ),
    "a pattern is another": (
        told(sold(by=Annotated[str, Meta(pattern="^a")])),
        told(sold(by=Annotated[str, Meta(pattern="^b")])),
        "sold.by: was string like ^a, is string like ^b",
    ),
    "a text may be less long": (
        told(BEFORE),
        told(sold(count=int, by=Annotated[str, Meta(max_length=5)])),
        "sold.by: was string, is string of at most 5",
    ),
    "a list may be less long": (
        told(sold(seats=list[int])),
        told(sold(seats=Annotated[list[int], Meta(min_length=1)])),
        "sold.seats: was list of integer, is list of integer of at least 1",
    ),
    "a text may be even less long": (
        told(sold(by=Annotated[str, Meta(max_length=5)])),
        told(sold(by=Annotated[str, Meta(max_length=4)])),
        "sold.by: was string of at most 5, is string of at most 4",
    ),
    "a list has to be longer": (
        told(sold(seats=Annotated[list[int], Meta(min_length=1)])),
        told(sold(seats=Annotated[list[int], Meta(min_length=2)])),
        "sold.seats: was list of integer of at least 1, is list of integer of at least 2",
    ),
    "what is in a list": (told(sold(seats=list[int])), told(sold(seats=list[str])), "sold.seats[]: was integer, is"),
    "what is in a pair": (
        told(sold(seats=tuple[int, int])),
        told(sold(seats=tuple[int, str])),
        "sold.seats[1]: was integer, is string",
    ),
    "a pair has three": (
        told(sold(seats=tuple[int, int])),
        told(sold(seats=tuple[int, int, int])),
        "sold.seats: was list of exactly integer, integer, is list of exactly integer, integer, integer",
    ),
    "what is in a mapping": (
        told(sold(seats=dict[str, int])),
        told(sold(seats=dict[str, str])),
        "sold.seats.*: was integer, is string",
    ),
    "a key of a mapping": (
        told(sold(seats=dict[str, int])),
        told(sold(seats=dict[Literal["a"], int])),
        'sold.seats (key): was string, is "a"',
    ),
    "a field inside": (
        told(sold(seat=inner("Seat", row=[int]))),
        told(sold(seat=inner("Seat", row=[str]))),
        "sold.seat.row: was integer, is string",
    ),
    "a new field inside": (
        told(sold(seat=inner("Seat", row=[int]))),
        told(sold(seat=inner("Seat", row=[int], place=[str]))),
        "sold.seat.place: was not there, is required",
    ),
    "one of several shapes is gone": (
        told(sold(at=Row | Gate)),
        told(sold(at=Row)),
        "sold.at: was Row or Gate, is Row",
    ),
    "one of several shapes asks for more": (
        told(sold(at=Row | Gate)),
        told(sold(at=Row | WideGate)),
        "sold.at: was Row or Gate, is Row or WideGate",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_is_told_with_what_was_what_is_and_what_to_do(name: str) -> None:
    was, now, expected = BROKEN[name]
    said = [str(each) for each in breaks(was, now)]
    assert any(each.startswith(expected) for each in said), said
    assert all(each.rpartition(": ")[2].endswith(".") for each in said)


FINE: Mapping[str, tuple[Shapes, Shapes]] = {
    "nothing": (told(BEFORE), told(BEFORE)),
    "a new event": (told(BEFORE), told(BEFORE, sold("bought", name="Bought"))),
    "a field with a default": (told(BEFORE), told(sold(count=int, by=str, at=(int, 0)))),
    "a field that may be left out": (told(BEFORE), told(sold(count=int, by=str, at=(int | UnsetType, UNSET)))),
    "a default comes": (told(BEFORE), told(sold(count=(int, 1), by=str))),
    "another name of the class": (told(BEFORE), told(sold(name="Sale", count=int, by=str))),
    "another order of fields": (told(BEFORE), told(sold(by=str, count=int))),
    "null may be, too": (told(BEFORE), told(sold(count=int | None, by=str))),
    "a wider range": (
        told(sold(count=Annotated[int, Meta(ge=1, le=9)])),
        told(sold(count=Annotated[int, Meta(ge=0)])),
    ),
    "a range to its end": (
        told(sold(count=Annotated[int, Meta(gt=1, lt=9)])),
        told(sold(count=Annotated[int, Meta(ge=1, le=9)])),
    ),
    "no pattern any more": (told(sold(by=Annotated[str, Meta(pattern="^a")])), told(sold(by=str))),
    "one more value": (told(sold(how=Literal["card"])), told(sold(how=Literal["card", "cash"]))),
    "any text": (told(sold(how=Literal["card"])), told(sold(how=str))),
    "a whole number becomes one": (told(sold(price=int)), told(sold(price=float))),
    "one more shape": (told(sold(at=Row)), told(sold(at=Row | Gate))),
    "a field with a default inside": (
        told(sold(seat=inner("Seat", row=[int]))),
        told(sold(seat=inner("Seat", row=[int], place=[str, ""]))),
    ),
    "an old event that is upcast": (told(BEFORE), told(upcasts={"sold": 1})),
    "an old shape that is upcast": (told(BEFORE), told(sold(number=int), upcasts={"sold": 1})),
    "a description": (told(BEFORE), told(sold(count=Annotated[int, Meta(description="How many")], by=str))),
    "a mark": (told(BEFORE), told(sold(count=int, by=Annotated[str, Meta(extra={"personal": "person"})]))),
}


@pytest.mark.parametrize("name", FINE)
def test_what_only_adds_is_no_break(name: str) -> None:
    assert breaks(*FINE[name]) == []


AHEAD: Mapping[str, list[str]] = {
    "a new event": ["bought: a new type"],
    "a default comes": ["sold.count: is not always there, was required"],
    "null may be, too": ["sold.count: is integer or null, was integer"],
    "a wider range": ["sold.count: is integer from 0, was integer from 1 to 9"],
    "a range to its end": ["sold.count: is integer from 1 to 9, was integer above 1 below 9"],
    "no pattern any more": ["sold.by: is string, was string like ^a"],
    "one more value": ['sold.how: is "card" or "cash", was "card"'],
    "any text": ['sold.how: is string, was "card"'],
    "a whole number becomes one": ["sold.price: is number, was integer"],
    "one more shape": ["sold.at: is Row or Gate, was Row"],
    "an old shape that is upcast": [
        "sold.count: is not there, was required",
        "sold.by: is not there, was required",
    ],
}
"""What is fine, and what the code before it cannot read of that."""


@pytest.mark.parametrize("name", FINE)
def test_what_the_code_before_cannot_read_is_told(name: str) -> None:
    assert unread_before(*FINE[name]) == AHEAD.get(name, [])


def test_code_that_refuses_unknown_fields_cannot_read_a_new_one() -> None:
    was, now = (sold(closed=True, **fields) for fields in ({"by": str}, {"by": str, "at": (int, 0)}))
    assert unread_before(told(was), told(now)) == ["sold.at: is integer, was unknown"]
    assert unread_before(told(sold(closed=True, by=str)), told(sold(by=str))) == []


def test_of_what_the_code_before_reads_by_a_function_nothing_is_told() -> None:
    assert (
        unread_before(
            told(BEFORE, upcasts={"sold": 1, "bought": 1}), told(sold("bought", name="Bought"), sold(number=int))
        )
        == []
    )


def test_what_is_new_is_told() -> None:
    more = sold(count=int, by=str, at=(int, 0))
    assert news(told(BEFORE), told(more, sold("bought", name="Bought"))) == ["sold", "bought (new)"]
    assert news(told(sold(seat=inner("Seat", row=[int]))), told(sold(seat=inner("Seat", row=[int | None])))) == ["sold"]
    assert news(told(BEFORE), told(BEFORE)) == []


class Node(Struct):
    number: int
    next: "Node | None" = None
    below: "list[Node]" = []


class OtherNode(Struct):
    number: str
    next: "OtherNode | None" = None
    below: "list[OtherNode]" = []


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


BENCH = inner("Bench", row=[int | None])
KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers(-9, 9)),
    (Annotated[int, Meta(ge=1)], st.integers(1, 9)),
    (Annotated[int, Meta(gt=1, le=5)], st.integers(2, 5)),
    (float, st.integers(-9, 9) | st.sampled_from([0.5, 2.25])),
    (bool, st.booleans()),
    (str, st.text(max_size=6)),
    (Annotated[str, Meta(max_length=3)], st.text(max_size=3)),
    (Annotated[str, Meta(min_length=2)], st.text(min_size=2, max_size=4)),
    (Annotated[str, Meta(pattern="^a")], st.text(max_size=3).map("a".__add__)),
    (Literal["a", "bb"], st.sampled_from(["a", "bb"])),
    (Literal["a", "bb", "cccc"], st.sampled_from(["a", "bb", "cccc"])),
    (Literal[1, 2], st.sampled_from([1, 2])),
    (UUID, st.uuids().map(str)),
    (str | None, st.none() | st.text(max_size=3)),
    (int | str, st.integers(1, 9) | st.text(max_size=3)),
    (list[int], st.lists(st.integers(1, 9), max_size=3)),
    (Annotated[list[int], Meta(max_length=2)], st.lists(st.integers(1, 9), max_size=2)),
    (list[int | None], st.lists(st.none() | st.integers(1, 9), max_size=3)),
    (tuple[int, str], st.tuples(st.integers(1, 9), st.text(max_size=3))),
    (tuple[int, int], st.tuples(st.integers(1, 9), st.integers(1, 9))),
    (dict[str, int], st.dictionaries(st.text(max_size=3), st.integers(1, 9), max_size=2)),
    (dict[Literal["a", "bb"], int], st.dictionaries(st.sampled_from(["a", "bb"]), st.integers(1, 9))),
    (Seat, st.fixed_dictionaries({"row": st.integers(1, 9)}, optional={"place": st.text(max_size=3)})),
    (BENCH, st.fixed_dictionaries({"row": st.none() | st.integers(1, 9)})),
    (Row | Gate, st.sampled_from([{"type": "row", "row": 1}, {"type": "gate", "gate": "north"}])),
    (Row, st.just({"type": "row", "row": 1})),
    (Node, st.sampled_from([{"number": 1}, {"number": 1, "next": {"number": 2}, "below": [{"number": 3}]}])),
    (OtherNode, st.just({"number": "1", "next": {"number": "2"}})),
    (date, st.just("2030-01-31")),
    (datetime, st.just("2030-01-31T19:30:00Z")),
    (Decimal, st.just("0.5")),
    (Colour, st.sampled_from(["red", "blue"])),
    (frozenset[int], st.just([1, 2])),
    (bytes, st.just("aGk=")),
    (Any, st.sampled_from([None, 1, "text", [1], {"any": ["thing"]}])),
]
CAREFUL = (UUID, date, datetime, Decimal, bytes, frozenset[int], Seat, BENCH, Row)
"""What would decode as or from some other types, and is a break: a lost field, another format."""

FIELD = st.tuples(st.sampled_from(KINDS), st.booleans())


Fields = Mapping[str, tuple[tuple[Any, st.SearchStrategy[Any]], bool]]
SOME_FIELDS = given(
    was=st.dictionaries(st.sampled_from("ab"), FIELD, min_size=1),
    now=st.dictionaries(st.sampled_from("abc"), FIELD, min_size=1),
    data=st.data(),
)
"""Fields of any type, required or with a default, become others."""
OFTEN = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine too


def of_fields(fields: Fields) -> type[Event]:
    return of({name: (kind, UNSET) if spare else kind for name, ((kind, _), spare) in fields.items()})


def drawn(fields: Fields, data: st.DataObject) -> bytes:
    """What may be on the wire of such an event."""
    body = {"type": "sold", "version": 1}
    for field, ((_, values), spare) in fields.items():
        if not (spare and data.draw(st.booleans())):
            body[field] = data.draw(values)
    return msgspec.json.encode(body)


@OFTEN
@SOME_FIELDS
def test_what_is_called_compatible_decodes(was: Fields, now: Fields, data: st.DataObject) -> None:
    old, new = of_fields(was), of_fields({**was, **now} if data.draw(st.booleans()) else now)
    if not breaks(told(old), told(new)):
        recorded = drawn(was, data)
        msgspec.json.decode(recorded, type=old)
        msgspec.json.decode(recorded, type=new)


@OFTEN
@SOME_FIELDS
def test_what_the_code_before_can_read_decodes_there(was: Fields, now: Fields, data: st.DataObject) -> None:
    later = {**was, **now} if data.draw(st.booleans()) else now
    old, new = of_fields(was), of_fields(later)
    if not unread_before(told(old), told(new)):
        recorded = drawn(later, data)
        msgspec.json.decode(recorded, type=new)
        msgspec.json.decode(recorded, type=old)


def decodes(body: Any, kind: Any) -> bool:
    try:
        msgspec.json.decode(msgspec.json.encode(body), type=kind)
    except msgspec.ValidationError:
        return False
    return True


def test_of_every_two_types_it_is_known_whether_one_takes_what_the_other_wrote() -> None:
    """What is made of the one's schema decodes as the other, or it is a break; and what is a break does not decode."""
    overlooked, needless = [], []
    for was, _ in KINDS:
        schemas = Schemas()
        values = samples(schemas.of(was), schemas.definitions)
        assert all(decodes(value, was) for value in values)
        for now, _ in KINDS:
            taken = all(decodes(value, now) for value in values)
            broken = bool(breaks(told(sold(field=was)), told(sold(field=now))))
            if not taken and not broken:
                overlooked.append((was, now))
            if values and taken and broken and was not in CAREFUL and now not in CAREFUL:
                needless.append((was, now))
    assert (overlooked, needless) == ([], [])


def test_all_values_made_of_the_schemas_of_events_decode() -> None:
    today = shapes()
    for tag, shape in today.events.items():
        made = samples(today.definitions[shape.definition], today.definitions)
        assert made, tag
        for body in made:
            assert isinstance(decode(tag, msgspec.json.encode(body)), EVENTS[tag])


def with_events(tag: str, shape: Shape, **definitions: Any) -> Shapes:
    today = shapes()
    return Shapes({**today.events, tag: shape}, today.upcasts, {**today.definitions, **definitions})


def renamed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda body: change({**body, "type": "expiration_completed"})


def test_an_upcast_is_tried_on_what_the_release_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    today = shapes().definitions["ExpirationCompleted"]
    fields = {name: field for name, field in today["properties"].items() if name != "expires_at"}
    required = [name for name in today["required"] if name != "expires_at"]
    old = {**today, "properties": {**fields, "until": {"type": "string", "format": "date-time"}}}
    old["required"] = [*required, "until"]
    was = with_events("expiration_ended", Shape("EXPIRATION", "ExpirationEnded"), ExpirationEnded=old)
    [gone] = breaks(was, shapes())
    assert (gone.event, gone.now) == ("expiration_ended", "unknown")
    monkeypatch.setitem(UPCASTS, "expiration_ended", renamed(lambda body: {**body, "expires_at": body["until"]}))
    assert breaks(was, shapes()) == unread(was) == []
    monkeypatch.setitem(UPCASTS, "expiration_ended", renamed(lambda body: body))
    assert "Object missing required field `expires_at`" in str(unread(was)[0])
    monkeypatch.setitem(UPCASTS, "expiration_ended", lambda body: {"type": [][body["version"]]})
    assert "its upcast raises IndexError" in str(unread(was)[0])
    moved = with_events("expiration_ended", Shape("ORDERS", "ExpirationEnded"), ExpirationEnded=old)
    monkeypatch.setitem(UPCASTS, "expiration_ended", renamed(lambda body: {**body, "expires_at": body["until"]}))
    assert "in stream EXPIRATION" in str(unread(moved)[0])


def test_an_upcast_of_older_shapes_hides_no_later_change(monkeypatch: pytest.MonkeyPatch) -> None:
    was = shapes()
    fields = was.definitions["ExpirationCompleted"]
    more = {**fields["properties"], "why": {"type": "string"}}
    released = with_events(
        "expiration_completed",
        Shape("EXPIRATION", "ExpirationEnded"),
        ExpirationEnded={**fields, "properties": more, "required": [*fields["required"], "why"]},
    )
    monkeypatch.setitem(UPCASTS, "expiration_completed", lambda body: {"expires_at": body.get("until"), **body})
    [lost] = breaks(released, shapes())
    assert (lost.event, lost.field, lost.now) == ("expiration_completed", "why", "gone")
    monkeypatch.setitem(UPCASTS, "expiration_completed", lambda body: {k: v for k, v in body.items() if k != "why"})
    assert breaks(released, shapes()) == unread(released) == []  # whoever takes it out says so


def test_an_event_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Row(Event, frozen=True, tag="row", array_like=True):
        number: int

    monkeypatch.setitem(EVENTS, "row", Row)
    monkeypatch.setattr("common.schemas.STREAM_OF", dict[type[Event], str](STREAM_OF) | {Row: "ORDERS"})
    code, told = compatible(RELEASED)
    assert (code, "say how it is written in JSON" in " ".join(told.replace("│", " ").split())) == (1, True), told


def test_personal_fields_are_marked_in_the_schema() -> None:
    fields = shapes().definitions["OrderCreated"]["properties"]
    assert (fields["buyer_id"][MARK], MARK in fields["title"]) == ("person", False)


def test_two_structs_of_one_name_are_refused() -> None:
    schemas = Schemas()
    schemas.of(Seat)
    with pytest.raises(TypeError, match="have one name"):
        schemas.of(inner("Seat", row=[int]))


def test_a_type_that_has_no_schema_here_is_refused() -> None:
    with pytest.raises(TypeError, match="say how it is written in JSON"):
        Schemas().of(complex)


def compatible(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(events, ["compatible", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_command_holds_today_against_the_last_release_and_what_was_recorded() -> None:
    code, told = compatible(RELEASED, "--recorded", CORPUS)
    assert (code, f"and {len(EVERY_SAMPLE)} recorded events can be read as before" in told) == (0, True), told


def test_the_command_says_what_a_rollback_cannot_read_and_does_not_fail(tmp_path: Path) -> None:
    today, released = shapes(), tmp_path / "released.json"
    released.write_text(written(today))
    assert "✓ a rollback to it reads all that this code writes" in compatible(released)[1]
    was = {tag: shape for tag, shape in today.events.items() if tag != "order_cancelled"}
    released.write_text(written(Shapes(was, today.upcasts, today.definitions)))
    code, told = compatible(released)
    *_, above, last = told.splitlines()
    assert (code, above, last) == (
        *(0, "! a rollback to it cannot read, once it is written:"),
        "  order_cancelled: a new type",
    )


def test_the_schema_is_printed_in_the_form_that_is_kept() -> None:
    printed = CliRunner().invoke(events, ["schema"]).output
    assert printed == written(msgspec.json.decode(printed, type=Shapes)) == written(shapes())


def test_the_command_says_what_broke(tmp_path: Path) -> None:
    was = with_events("ticket_sold", Shape("TICKETS", "TicketCreated"))
    released = tmp_path / "released.json"
    released.write_text(written(was))
    recorded = tmp_path / "recorded.jsonl"
    line = Sample("expiration.1", {"ce-type": "expiration_completed"}, '{"type":"expiration_completed"}')
    recorded.write_bytes(msgspec.json.encode(line) + b'\n{"format":"an export"}\n')
    code, told = compatible(released, "--recorded", recorded)
    assert (code, "ticket_sold: was an event, is unknown" in told) == (1, True), told
    assert f"{recorded}, line 1, expiration.1: expiration_completed: Object missing required field" in told
    assert "2 breaks" in told


def test_events_of_an_export_are_read(tmp_path: Path) -> None:
    body = encode(fact(1)).decode()
    good = tmp_path / "good.jsonl"
    good.write_text(f'{{"subject":"expiration.1","headers":{{"ce-type":"expiration_completed"}},"body":{body}}}\n')
    assert "1 recorded event can be read" in compatible(RELEASED, "--recorded", good)[1]


def test_files_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"openapi": "3.1.0"}\n{"headers": 1}')
    for arguments, said in (
        ([other], "is not what"),
        ([tmp_path / "none.json"], "cannot be read"),
        ([RELEASED, "--recorded", other], "line 2: this is no event"),
        ([RELEASED, "--recorded", tmp_path.parent / tmp_path.name], "line 2"),
    ):
        code, told = compatible(*arguments)
        assert (code, said in " ".join(told.replace("│", " ").split())) == (1, True), told
