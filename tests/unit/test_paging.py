"""A cursor leads back to the place it was made for; anything else is refused as bad input."""

import base64
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Invalid
from common.paging import cursor_of, position_of

AT = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@given(st.datetimes(timezones=st.just(UTC)), st.uuids())
def test_a_cursor_leads_back_to_its_place(created_at: datetime, item_id: UUID) -> None:
    assert position_of(cursor_of(created_at, item_id)) == (created_at, item_id)


def test_a_cursor_fits_into_an_address() -> None:
    cursors = [cursor_of(AT + timedelta(microseconds=n), uuid4()) for n in range(100)]
    assert all(set("+/&#? ").isdisjoint(cursor) for cursor in cursors)


def test_no_cursor_is_the_start() -> None:
    assert position_of(None) == (None, None)


def test_a_time_with_an_offset_is_the_same_moment() -> None:
    elsewhere = AT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    place, _ = position_of(cursor_of(elsewhere, uuid4()))
    assert place == AT
    assert place.tzinfo is UTC


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        " ",
        "x",
        "page2",
        "é",
        "\x00",
        cursor_of(AT, uuid4())[:-1],
        cursor_of(AT, uuid4()) + "A",
        encoded(""),
        encoded("yesterday"),
        encoded(f"{AT.isoformat()}"),
        encoded(f"{AT.isoformat()} 7"),
        encoded(f"2030-01-02T03:04:05 {uuid4()}"),  # where?
        encoded(f"0001-01-01T00:00:00+23:59 {uuid4()}"),  # before the first day there is
        encoded(f"9999-12-31T23:59:59-23:59 {uuid4()}"),  # after the last
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        "A" * 10_000,
    ],
)
def test_what_is_no_cursor_is_refused_with_its_field(cursor: str) -> None:
    with pytest.raises(Invalid, match="cursor") as refusal:
        position_of(cursor)
    assert refusal.value.context["field"] == "cursor"


@given(st.text())
def test_any_text_is_a_place_or_refused(text: str) -> None:
    try:
        created_at, item_id = position_of(text)
    except Invalid:
        return
    assert created_at is not None
    assert item_id is not None
