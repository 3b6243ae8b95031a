"""What may be done about a dead letter, and what becomes of it."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from common.errors import Conflict
from common.events import DeadLetterDropped, DeadLetterEdited, EventRedelivered, RepairEvent
from services.history.domain import (
    REPAIRS,
    DropLetter,
    EditLetter,
    RecordRedelivery,
    Repair,
    RepairCommand,
    letter_id_of,
    redelivery_id_of,
)
from tests.given import Given

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=1)
BODY, OTHER = '{"type":"order_created"}', '{"type":"order_cancelled"}'

edited = DeadLetterEdited(7, BODY, "olga", NOON)
failed = EventRedelivered("orders-keep-book", "TICKETS", 3, 7, "Invalid: no", "olga", NOON)
done = EventRedelivered("orders-keep-book", "TICKETS", 3, 7, None, "olga", NOON)
dropped = DeadLetterDropped(7, "olga", NOON)


def given(*events: RepairEvent) -> Given[RepairCommand, Repair, RepairEvent]:
    return Given(REPAIRS, *events)


def redelivery(error: str | None = None, letter: int | None = 7) -> RecordRedelivery:
    return RecordRedelivery("orders-keep-book", "TICKETS", 3, letter, error, "oscar", LATER)


def test_a_letter_is_edited_as_often_as_it_is_open() -> None:
    given().when(EditLetter(7, BODY, "olga", NOON)).then(edited)
    given(edited, failed).when(EditLetter(7, OTHER, "oscar", LATER)).then(DeadLetterEdited(7, OTHER, "oscar", LATER))


def test_the_same_correction_again_changes_nothing() -> None:
    given(edited).when(EditLetter(7, BODY, "oscar", LATER)).then()
    back = given(edited, DeadLetterEdited(7, OTHER, "olga", NOON))
    back.when(EditLetter(7, BODY, "oscar", LATER)).then(DeadLetterEdited(7, BODY, "oscar", LATER))


@pytest.mark.parametrize(("over", "says"), [(done, "is done"), (dropped, "was dropped")])
def test_what_is_over_is_not_edited(over: RepairEvent, says: str) -> None:
    given(over).when(EditLetter(7, BODY, "olga", LATER)).refused(Conflict, says)


def test_what_a_listener_did_is_recorded_whatever_was_done_meanwhile() -> None:
    for before in ((), (edited,), (failed,), (done,), (dropped,)):
        for error in (None, "Invalid: no"):
            told = EventRedelivered("orders-keep-book", "TICKETS", 3, 7, error, "oscar", LATER)
            given(*before).when(redelivery(error)).then(told)


def test_the_same_redelivery_is_recorded_once() -> None:
    told = EventRedelivered("orders-keep-book", "TICKETS", 3, None, None, "oscar", LATER)
    given().when(redelivery(letter=None)).then(told)
    given(told).when(redelivery(letter=None)).then()


def test_a_letter_is_done_when_its_listener_has_heard_it() -> None:
    assert given(failed).state == Repair("open", None, 1, "Invalid: no", NOON)
    assert given(failed, done).state == Repair("done", None, 2, None, NOON)
    assert given(done, failed).state.standing == "done"
    assert given(dropped, done).state.standing == "done"


def test_a_letter_is_dropped_once_and_not_when_it_is_done() -> None:
    given(edited, failed).when(DropLetter(7, "olga", NOON)).then(dropped)
    given(dropped).when(DropLetter(7, "oscar", LATER)).then()
    given(done).when(DropLetter(7, "oscar", LATER)).refused(Conflict, "is done")


def test_what_is_done_about_a_letter_is_about_the_one_of_that_stream() -> None:
    assert letter_id_of("18f", 7) == letter_id_of("18f", 7) == UUID("1981dddf-4ef9-50f7-85ca-2b591dc6f69b")
    ids = {letter_id_of("18f", 7), letter_id_of("18f", 8), letter_id_of("190", 7), redelivery_id_of("18f", "A", 7, "b")}
    assert len(ids) == 4
