"""The time and the ids of the outside world; rules get both as arguments."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import uuid_utils
from msgspec import Meta

from common.errors import Invalid

Moment = Annotated[datetime, Meta(tz=True, description="A time with its offset from UTC (RFC 3339)")]
"""A time that somebody sends, at whatever door; it is kept as `in_utc` has it."""

FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


def in_utc(field: str, moment: datetime) -> datetime:
    """A `Moment` as it is kept. Raises Invalid for one that its offset takes out of the calendar: nothing stores it.

    And for the first and the last of the calendar, which to asyncpg are the infinite ones.
    """
    with suppress(OverflowError):
        if FIRST < (kept := moment.astimezone(UTC)) < LAST:
            return kept
    detail = f"{field}: Expected a time in the years 1 to 9999 in UTC"
    raise Invalid(detail, field=field, got=moment.isoformat())


def new_id() -> UUID:
    """A UUIDv7: unique, and ordered by the millisecond it was made in (RFC 9562)."""
    return UUID(int=uuid_utils.uuid7().int)


def new_id_text() -> str:
    """The same as text; for ids that nobody here reads, at a seventh of the cost."""
    return str(uuid_utils.uuid7())
