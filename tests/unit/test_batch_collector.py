"""Which pieces of work come first: high before low, and low not never."""

import asyncio
from collections import deque
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from common.events import Priority
from services.batch.collector import AT_ONCE, FAIR, Queue, Released, Waiting, id_of
from services.batch.domain import PRIORITIES, operation_id_of


async def queue(**sizes: list[int]) -> Queue:
    """A queue with pieces of these sizes by priority; those of low priority came first."""
    waiting: dict[Priority, deque[Waiting]] = {priority: deque() for priority in PRIORITIES}
    since = datetime(2030, 1, 1, 12, tzinfo=UTC)
    for priority in reversed(PRIORITIES):
        for size in sizes.get(priority, []):
            since += timedelta(seconds=1)
            future = asyncio.get_running_loop().create_future()
            waiting[priority].append(Waiting(Released(priority, uuid4(), None, "any", 1, size, since), future))
    return Queue(waiting, asyncio.Event())


def taken(pieces: list[Waiting]) -> list[tuple[str, int]]:
    return [(waiting.piece.priority, waiting.piece.size) for waiting in pieces]


async def test_high_comes_before_normal_before_low() -> None:
    waiting = await queue(low=[10], normal=[20], high=[30])
    assert [taken(waiting.take(1000)) for _ in PRIORITIES] == [[("high", 30)], [("normal", 20)], [("low", 10)]]
    assert waiting.size == 0


async def test_what_is_low_leaves_room_for_what_is_not_and_both_for_what_is_high() -> None:
    waiting = await queue(low=[1] * 20, normal=[1] * 20, high=[1] * 20)
    begun: list[Priority] = []
    for priority in reversed(PRIORITIES):  # each comes while there is nothing of what is higher
        alone = Queue({p: waiting.waiting[priority] if p == priority else deque() for p in PRIORITIES}, waiting.filled)
        alone.under_way = begun
        while pieces := alone.take(1):
            begun.append(pieces[0].piece.priority)
    assert begun == ["low"] * (AT_ONCE - 2) + ["normal", "high"]


async def test_a_worker_is_added_for_what_is_higher_than_what_is_executed() -> None:
    waiting = await queue()
    assert [waiting.wants_worker(priority) for priority in PRIORITIES] == [True, True, True]
    waiting.workers, waiting.under_way = 1, ["normal"]
    assert [waiting.wants_worker(priority) for priority in PRIORITIES] == [True, False, False]
    waiting.workers = 2  # one of them is about to take what came
    assert [waiting.wants_worker(priority) for priority in PRIORITIES] == [False, False, False]
    waiting.filled.set()
    assert [waiting.wants_worker(priority) for priority in PRIORITIES] == [True, True, True]
    waiting.workers, waiting.under_way = AT_ONCE, ["low"] * AT_ONCE
    assert [waiting.wants_worker(priority) for priority in PRIORITIES] == [False, False, False]


async def test_a_statement_takes_what_fits_and_one_piece_at_least() -> None:
    waiting = await queue(normal=[500, 500, 1])
    assert taken(waiting.take(900)) == [("normal", 500)]
    assert taken(waiting.take(100)) == [("normal", 500)]
    assert taken(waiting.take(100)) == [("normal", 1)]
    assert taken(waiting.take(100)) == []


async def test_low_is_served_now_and_then_however_much_high_there_is() -> None:
    waiting = await queue(low=[500], high=[500] * 100)
    first = [taken(waiting.take(500))[0][0] for _ in range(FAIR)]
    assert first == ["high"] * (FAIR - 1) + ["low"]


def test_what_is_executed_has_the_id_that_people_see() -> None:
    for owner_id, number in ((uuid4(), 1), (uuid4(), 1_000_000), (UUID(int=0xFF), 1)):
        assert id_of(owner_id, number) == operation_id_of(owner_id, number)
