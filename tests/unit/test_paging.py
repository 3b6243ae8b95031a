"""A cursor leads back to the place it was made for, and whatever looks like one is a place."""

import re
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from common.paging import CURSOR, cursor_of, position_of

AT = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SINCE_1970 = st.datetimes(datetime(1970, 1, 1), datetime(2286, 11, 20), timezones=st.just(UTC))  # noqa: DTZ001 (strategy)


@given(SINCE_1970, st.uuids())
def test_a_cursor_leads_back_to_its_place(created_at: datetime, item_id: UUID) -> None:
    cursor = cursor_of(created_at, item_id)
    assert position_of(cursor) == (created_at, item_id)
    assert re.search(CURSOR, cursor)


@given(st.from_regex(re.compile(CURSOR, re.ASCII)))
def test_what_looks_like_a_cursor_is_a_place(cursor: str) -> None:
    created_at, item_id = position_of(cursor)
    assert created_at is not None
    assert item_id is not None
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
