"""Puts one typed event on its stream."""

from typing import Generic, TypeVar
from uuid import UUID

from common.event_log import Draft, EventLog, WrongSequence
from common.events import OWNERS, Event

E = TypeVar("E", bound=Event)


class Publisher(Generic[E]):
    """Tells facts that can happen only once: each has a subject of its own, `<service>.<id>`, and is first on it."""

    def __init__(self, service: str, event_log: EventLog) -> None:
        assert service in OWNERS, f"no service {service!r} owns events"
        self._service = service
        self._log = event_log

    async def publish(self, fact_id: UUID, event: E) -> bool:
        """Append `event` unless it was told before; whether this was the first time. Raises Unavailable."""
        try:
            await self._log.append(f"{self._service}.{fact_id}", [Draft.of(event)], expected=0)
        except WrongSequence:
            return False
        return True
