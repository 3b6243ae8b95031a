"""What people are told, in words."""

from datetime import UTC, datetime, timedelta
from typing import get_args
from uuid import UUID, uuid4

import pytest

from common.aggregate import Aggregate
from common.clock import now
from common.event_log import Draft
from common.events import (
    BatchCompleted,
    BatchEnd,
    NotificationRaised,
    OrderCancelled,
    OrderCompleted,
    OrderCreated,
    TicketCreated,
    TicketDetails,
)
from common.memory_log import MemoryLog
from services.notification.domain import INBOXES_DECIDER, inbox_id_of
from services.notification.listeners import ENDED, TellBuyers, Teller, TellSubmitters, Titles


@pytest.mark.parametrize(
    ("status", "counts", "told"),
    [
        ("COMPLETED", (1200, 0, 0, 0), "is complete: 1,200 succeeded."),
        ("COMPLETED_WITH_ERRORS", (7, 1, 0, 2), "is complete, with errors: 7 succeeded, 1 failed, 2 refused."),
        ("CANCELLED", (1, 0, 5000, 0), "is cancelled: 1 succeeded, 5,000 cancelled."),
        ("CANCELLED", (0, 0, 3, 1), "is cancelled: 3 cancelled, 1 refused."),
        ("FAILED", (0, 4, 0, 0), "has failed: 4 failed."),
    ],
)
async def test_who_handed_in_a_batch_is_told_how_many_came_to_which_end(
    status: BatchEnd, counts: tuple[int, int, int, int], told: str
) -> None:
    log = MemoryLog()
    teller = TellSubmitters(Teller(Aggregate(INBOXES_DECIDER, log)))
    await teller.on(BatchCompleted(uuid4(), "ada", "tickets.create", status, *counts, now()))
    (recorded,) = await log.read(f"notifications.{inbox_id_of('ada')}")
    assert isinstance(recorded.event, NotificationRaised)
    assert recorded.event.text == f"Your batch of tickets.create {told}"


def test_each_end_of_a_batch_has_its_words() -> None:
    assert set(ENDED) == set(get_args(BatchEnd))


TICKET, ORDER = UUID(int=1), UUID(int=2)
EVENING = datetime(2030, 1, 1, 23, 50, tzinfo=UTC)


def held(until: datetime) -> OrderCreated:
    return OrderCreated(ORDER, TICKET, "ada", "Opening night", 2, 2500, "EUR", until, EVENING)


listed = TicketCreated(TICKET, "sam", TicketDetails("Opening night", 2500, "EUR", 10, 4), EVENING, version=1)
COMPLETED = OrderCompleted(ORDER, TICKET, "ada", 2, UUID(int=3), 5000, "EUR", EVENING)
CANCELLED = OrderCancelled(ORDER, TICKET, "ada", 2, "seller", EVENING)


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (held(EVENING + timedelta(minutes=9)), "You hold 2 of Opening night until 23:59:00 UTC."),
        (held(EVENING + timedelta(minutes=15)), "You hold 2 of Opening night until 00:05:00 UTC on 2 January 2030."),
        (COMPLETED, "Your order of Opening night is complete: 2 paid for."),
        (CANCELLED, "Your order of Opening night was cancelled: the seller cancelled it."),
    ],
)
async def test_buyers_are_told_of_what_and_until_which_day(
    event: OrderCreated | OrderCompleted | OrderCancelled, told: str
) -> None:
    log = MemoryLog()
    await log.append(f"tickets.{TICKET}", [Draft.of(listed)], expected=0)
    await TellBuyers(Teller(Aggregate(INBOXES_DECIDER, log)), Titles(log)).on(event)
    (recorded,) = await log.read(f"notifications.{inbox_id_of('ada')}")
    assert isinstance(recorded.event, NotificationRaised)
    assert recorded.event.text == told


async def test_a_title_is_read_once_and_then_as_it_was_heard_last() -> None:
    log = MemoryLog()
    titles = Titles(log, most=1)
    await log.append(f"tickets.{TICKET}", [Draft.of(listed)], expected=0)
    assert await titles.of(TICKET) == "Opening night"
    titles.heard(TICKET, "Premiere")
    assert await titles.of(TICKET) == "Premiere"
    titles.heard(ORDER, "Another")  # there is no room for two
    assert await titles.of(TICKET) == "Opening night"
