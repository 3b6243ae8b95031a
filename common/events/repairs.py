"""What the history service tells: what operators did about what was given up on."""

from datetime import datetime

from common.events.base import Content, Event, Person


class EventRedelivered(Event, frozen=True, tag="event_redelivered"):
    """An operator had a listener hear an event once more. `error`: why it failed; None says that it was done.

    `letter` is the dead letter's sequence in the stream DEAD, where the event was one.
    """

    listener: str
    stream: str
    sequence: int
    letter: int | None
    error: Content | None
    by: Person
    at: datetime


class DeadLetterEdited(Event, frozen=True, tag="dead_letter_edited"):
    """An operator corrected what a dead letter says; the letter itself stays as it was. `body` is JSON."""

    letter: int
    body: Content
    by: Person
    at: datetime


class DeadLetterDropped(Event, frozen=True, tag="dead_letter_dropped"):
    """An operator wants nothing more done about a dead letter."""

    letter: int
    by: Person
    at: datetime


RepairEvent = EventRedelivered | DeadLetterEdited | DeadLetterDropped
