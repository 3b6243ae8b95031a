"""Puts one typed event on its stream."""

from contextlib import suppress
from typing import Generic, TypeVar
from uuid import UUID, uuid5

from common.event_log import Draft, EventLog, WrongSequence
from common.events import OWNERS, Event, type_of
from common.telemetry import current_cause

E = TypeVar("E", bound=Event)


class Publisher(Generic[E]):
    """Tells facts that can happen only once: each has a subject of its own, `<service>.<id>`, and is first on it.

    Its id is made from that id and its type, so it is the same each time.
    """

    def __init__(self, service: str, event_log: EventLog) -> None:
        assert service in OWNERS, f"no service {service!r} owns events"
        self._service = service
        self._log = event_log

    async def publish(self, fact_id: UUID, event: E) -> None:
        """Append `event`, unless the fact was told before. Raises Unavailable."""
        draft = Draft(event, str(uuid5(fact_id, type_of(type(event)))), current_cause())
        with suppress(WrongSequence):
            await self._log.append(f"{self._service}.{fact_id}", [draft], expected=0)
