"""The time and the ids of the outside world; rules get both as arguments."""

from datetime import UTC, datetime
from uuid import UUID

import uuid_utils


def now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


def new_id() -> UUID:
    """A UUIDv7: unique, and ordered by the millisecond it was made in (RFC 9562)."""
    return UUID(int=uuid_utils.uuid7().int)


def new_id_text() -> str:
    """The same as text; for ids that nobody here reads, at a seventh of the cost."""
    return str(uuid_utils.uuid7())
