"""What operators do about what was given up on: the rules of a dead letter, and of an event that is heard once more."""

from datetime import datetime
from hashlib import sha256
from typing import Literal, assert_never
from uuid import UUID, uuid5

import msgspec

from common.aggregate import Aggregate, Decider
from common.errors import Conflict
from common.events import DeadLetterDropped, DeadLetterEdited, EventRedelivered, RepairEvent

NAMESPACE = UUID("5d1f4c3e-6f0a-5f0b-9d57-0f5e6f3a2b71")

Standing = Literal["open", "done", "dropped"]
"""Of a dead letter: to be mended, mended, or left as it is for good."""


def letter_id_of(log: str, letter: int) -> UUID:
    """The id of what is done about a dead letter: by its sequence in DEAD, and which stream that is."""
    return uuid5(NAMESPACE, f"{log}\n{letter}")


def redelivery_id_of(log: str, stream: str, sequence: int, listener: str) -> UUID:
    """The id of what is done about any event, for a listener: by its place, and which stream that is."""
    return uuid5(NAMESPACE, f"{log}\n{stream}\n{sequence}\n{listener}")


class Repair(msgspec.Struct, frozen=True):
    """What was done so far about a dead letter, or about another event for one listener.

    `correction`: SHA-256 of the corrected body. `error`: why the latest redelivery failed, `redelivered_at` that time.
    """

    standing: Standing = "open"
    correction: str | None = None
    retries: int = 0
    error: str | None = None
    redelivered_at: datetime | None = None

    def require_open(self, letter: int) -> None:
        """Raises Conflict for a dead letter that is over."""
        if self.standing == "done":
            raise Conflict(f"Dead letter {letter} is done: its listener has heard it since.")
        if self.standing == "dropped":
            raise Conflict(f"Dead letter {letter} was dropped.")


class EditLetter(msgspec.Struct, frozen=True):
    """`body`: JSON of an event, which takes the place of the letter's own from now on."""

    letter: int
    body: str
    by: str
    at: datetime


class RecordRedelivery(msgspec.Struct, frozen=True):
    """A listener was asked to hear an event once more, `at` that time. `letter`, `error`: as in EventRedelivered."""

    listener: str
    stream: str
    sequence: int
    letter: int | None
    error: str | None
    by: str
    at: datetime


class DropLetter(msgspec.Struct, frozen=True):
    letter: int
    by: str
    at: datetime


RepairCommand = EditLetter | RecordRedelivery | DropLetter


def decide(command: RepairCommand, repair: Repair) -> list[RepairEvent]:
    match command:
        case EditLetter(letter, body, by, at):
            repair.require_open(letter)
            return [DeadLetterEdited(letter, body, by, at)] if digest_of(body) != repair.correction else []
        case RecordRedelivery(listener, stream, sequence, letter, error, by, at):
            if at == repair.redelivered_at:
                return []
            return [EventRedelivered(listener, stream, sequence, letter, error, by, at)]  # whatever was done meanwhile
        case DropLetter(letter, by, at):
            if repair.standing == "dropped":
                return []
            repair.require_open(letter)
            return [DeadLetterDropped(letter, by, at)]
        case _:
            assert_never(command)


def evolve(repair: Repair, event: RepairEvent) -> Repair:
    match event:
        case DeadLetterEdited(body=body):
            return msgspec.structs.replace(repair, correction=digest_of(body))
        case EventRedelivered(error=error, at=at):
            standing: Standing = "done" if error is None else repair.standing
            told = {"standing": standing, "retries": repair.retries + 1, "error": error, "redelivered_at": at}
            return msgspec.structs.replace(repair, **told)
        case DeadLetterDropped():
            return msgspec.structs.replace(repair, standing="dropped")
        case _:
            assert_never(event)


def asks(event: RepairEvent) -> RepairCommand:
    """The command that leads to an event."""
    match event:
        case DeadLetterEdited(letter, body, by, at):
            return EditLetter(letter, body, by, at)
        case EventRedelivered(listener, stream, sequence, letter, error, by, at):
            return RecordRedelivery(listener, stream, sequence, letter, error, by, at)
        case DeadLetterDropped(letter, by, at):
            return DropLetter(letter, by, at)
        case _:
            assert_never(event)


def digest_of(body: str) -> str:
    return sha256(body.encode()).hexdigest()


REPAIRS = Decider("repairs", RepairEvent, decide, evolve, initial=Repair(), asks=asks)
Repairs = Aggregate[RepairCommand, Repair, RepairEvent]
