"""Cursors of lists that are read newest first: a place in the order, not a number of rows to skip."""

from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

from litestar.params import QueryParameter

CURSOR = r"^[0-9]{1,16}-[0-9a-f]{32}(?!\n)$"
"""A moment (microseconds since 1970, up to the year 2286) and an id: whatever looks like a cursor is a place."""

Cursor = Annotated[
    str | None,
    QueryParameter(pattern=CURSOR, description="A `next_cursor` that a list gave; leave it out to begin at the start"),
]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def cursor_of(created_at: datetime, item_id: UUID) -> str:
    """The cursor for what comes after this item."""
    return f"{(created_at - EPOCH) // MICROSECOND}-{item_id.hex}"


def position_of(cursor: str | None) -> tuple[datetime | None, UUID | None]:
    """Where a `Cursor` points; (None, None) without one."""
    if cursor is None:
        return None, None
    since_epoch, _, item_id = cursor.partition("-")
    return EPOCH + int(since_epoch) * MICROSECOND, UUID(item_id)
