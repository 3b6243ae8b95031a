"""What the expiration service tells: that a time has come. It decides nothing."""

from datetime import datetime
from uuid import UUID

from common.events.base import Event


class ExpirationCompleted(Event, frozen=True, tag="expiration_completed"):
    """The time that an order may be held is over. `at` is never before its `expires_at`."""

    order_id: UUID
    ticket_id: UUID
    expires_at: datetime
    at: datetime


ExpirationEvent = ExpirationCompleted
