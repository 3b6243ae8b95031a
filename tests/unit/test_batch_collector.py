"""Which pieces of work come first: high before low, and low not never; and of each batch one in turn."""

import asyncio
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from common.events import Priority
from services.batch import collector
from services.batch.collector import AT_ONCE, FAIR, SLOTS, Queue, Released, Waiting, id_of
from services.batch.domain import PRIORITIES, operation_id_of

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
ONE, OTHER = UUID(int=1), UUID(int=2)


def piece(size: int, batch_id: UUID | None = None, priority: Priority = "normal", second: int = 0) -> Waiting:
    """A piece that may run since so many seconds after noon."""
    since = NOON + timedelta(seconds=second)
    future = asyncio.get_running_loop().create_future()
    return Waiting(Released(priority, uuid4(), batch_id, "any", 1, size, since), future, second)


async def queue(**sizes: list[int]) -> Queue:
    """A queue with pieces of these sizes by priority; those of low priority came first."""
    queue, second = Queue(asyncio.Event()), 0
    for priority in reversed(PRIORITIES):
        for size in sizes.get(priority, []):
            second += 1
            assert queue.put(piece(size, None, priority, second)) is None
    return queue


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
        lines = {p: waiting.lines[p] if p == priority else OrderedDict() for p in PRIORITIES}
        alone = Queue(waiting.filled, lines, begun)
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


@pytest.mark.parametrize(("busy", "waits"), [("high", "low"), ("high", "normal"), ("normal", "low")])
async def test_what_is_lower_is_served_also_while_all_that_may_be_under_way_is(busy: Priority, waits: Priority) -> None:
    waiting = await queue(**{waits: [500, 500], busy: [500] * 100})
    waiting.under_way = [busy] * (SLOTS[busy] - 1)  # and one that takes what is next
    began = [taken(waiting.take(500))[0][0] for _ in range(FAIR)]
    assert began == [busy] * (FAIR - 1) + [waits]
    waiting.under_way = [busy] * (SLOTS[busy] - 2) + [waits]
    assert {taken(waiting.take(500))[0][0] for _ in range(2 * FAIR)} == {busy}  # one of them at a time


async def test_of_each_batch_comes_one_in_turn_and_a_single_operation_with_the_next_statement() -> None:
    waiting = await queue(normal=[])
    for _ in range(80):
        waiting.put(piece(500, ONE))
    waiting.put(piece(500, OTHER))
    waiting.put(piece(1))
    waiting.put(piece(1))
    owners = [[each.piece.batch_id for each in waiting.take(1000)] for _ in range(4)]
    assert owners == [[ONE, OTHER], [None, ONE, None], [ONE, ONE], [ONE, ONE]]
    assert waiting.size == 80 * 500 - 6 * 500


async def test_what_does_not_fit_does_not_lose_its_turn() -> None:
    waiting = await queue(normal=[])
    for size, batch_id in ((600, ONE), (600, ONE), (700, OTHER), (300, None), (300, None)):
        waiting.put(piece(size, batch_id))
    assert [taken(waiting.take(1000)) for _ in range(3)] == [
        [("normal", 600), ("normal", 300)],
        [("normal", 600), ("normal", 300)],
        [("normal", 700)],
    ]


async def test_now_and_then_comes_what_has_waited_longest_also_within_a_priority() -> None:
    waiting = await queue(normal=[])
    for second in range(100, 200):
        waiting.put(piece(500, ONE, second=second))
    waiting.put(piece(500, OTHER, second=300))
    waiting.put(piece(500, OTHER, second=50))
    waiting.put(piece(500, OTHER, second=300))
    waiting.turn = FAIR - 3  # two more that are none of these
    assert [each.piece.since for _ in range(2) for each in waiting.take(500)] == [
        NOON + timedelta(seconds=100),
        NOON + timedelta(seconds=300),
    ]
    assert next(iter(waiting.lines["normal"])) == ONE
    assert [each.piece.since for each in waiting.take(500)] == [NOON + timedelta(seconds=50)]


async def test_who_has_most_of_those_that_wait_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "MOST_WAITING", 3)
    waiting = await queue(normal=[])
    of_one = [piece(500, ONE, second=second) for second in range(3)]
    assert [waiting.put(each) for each in of_one] == [None] * 3
    single = piece(1, second=3)
    assert waiting.put(single) is of_one[2]
    assert waiting.put(again := piece(500, ONE)) is again
    assert waiting.put(piece(1, priority="high")) is None
    assert waiting.put(piece(500, OTHER)) is of_one[1]
    assert waiting.put(other := piece(500, OTHER)) is other
    assert waiting.size == 500 + 1 + 1 + 500


async def test_who_finds_no_room_comes_again_when_there_may_be_some() -> None:
    waiting = await queue(normal=[500] * 3)  # they came at 1, 2 and 3
    assert all(0.5 <= waiting.patience("normal", 1.2) <= 1 for _ in range(100))
    assert all(5 <= waiting.patience("normal", 11) <= 10 for _ in range(100))
    assert all(15 <= waiting.patience("normal", 1000) <= 30 for _ in range(100))


def test_what_is_executed_has_the_id_that_people_see() -> None:
    for owner_id, number in ((uuid4(), 1), (uuid4(), 1_000_000), (UUID(int=0xFF), 1)):
        assert id_of(owner_id, number) == operation_id_of(owner_id, number)
