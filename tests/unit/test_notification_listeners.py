"""What people are told, in words."""

from typing import Literal
from uuid import uuid4

import pytest

from common.aggregate import Aggregate
from common.clock import now
from common.events import BatchCompleted, NotificationRaised
from common.memory_log import MemoryLog
from services.notification.domain import INBOXES_DECIDER, inbox_id_of
from services.notification.listeners import Teller, TellSubmitters


@pytest.mark.parametrize(
    ("status", "counts", "told"),
    [
        ("COMPLETED", (1200, 0, 0, 0), "COMPLETED: 1,200 succeeded."),
        ("COMPLETED_WITH_ERRORS", (7, 1, 0, 2), "COMPLETED_WITH_ERRORS: 7 succeeded, 1 failed, 2 refused."),
        ("CANCELLED", (1, 0, 5000, 0), "CANCELLED: 1 succeeded, 5,000 cancelled."),
        ("CANCELLED", (0, 0, 3, 1), "CANCELLED: 3 cancelled, 1 refused."),
    ],
)
async def test_who_handed_in_a_batch_is_told_how_many_came_to_which_end(
    status: Literal["COMPLETED", "COMPLETED_WITH_ERRORS", "CANCELLED"], counts: tuple[int, int, int, int], told: str
) -> None:
    log = MemoryLog()
    teller = TellSubmitters(Teller(Aggregate(INBOXES_DECIDER, log)))
    await teller.on(BatchCompleted(uuid4(), "ada", "tickets.create", status, *counts, now()))
    (recorded,) = await log.read(f"notifications.{inbox_id_of('ada')}")
    assert isinstance(recorded.event, NotificationRaised)
    assert recorded.event.text == f"Your batch of tickets.create is {told}"
