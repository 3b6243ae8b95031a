"""Cursors of lists that are read newest first: a place in the order, not a number of rows to skip."""

import base64
from datetime import UTC, datetime
from uuid import UUID

from common.errors import Invalid


def cursor_of(created_at: datetime, item_id: UUID) -> str:
    """The cursor for what comes after this item."""
    return base64.urlsafe_b64encode(f"{created_at.isoformat()} {item_id}".encode()).decode()


def position_of(cursor: str | None) -> tuple[datetime | None, UUID | None]:
    """Where a cursor points; (None, None) without one. Raises Invalid."""
    if cursor is None:
        return None, None
    try:
        created_at, _, item_id = base64.b64decode(cursor, altchars=b"-_", validate=True).decode().partition(" ")
        position = datetime.fromisoformat(created_at)
        if position.tzinfo is None:
            raise ValueError(created_at)
        return position.astimezone(UTC), UUID(item_id)
    except (ValueError, OverflowError):  # of which binascii.Error and UnicodeDecodeError are kinds
        raise Invalid(
            "cursor: Expected a `next_cursor` that a list gave; leave it out to begin at the start.",
            field="cursor",
            got=cursor,
        ) from None
