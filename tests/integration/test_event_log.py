"""What an event log promises. The one on JetStream and its twin in memory keep the same promises."""

import asyncio
from contextlib import aclosing
from uuid import UUID

import msgspec
import pytest

from common.clock import now
from common.errors import Invalid
from common.event_log import SKIPPED, Draft, EventLog, WrongSequence
from common.events import TicketWithdrawn
from common.group_commit import BATCH_LIMIT
from common.telemetry import Cause, cause
from tests.facts import AT, STREAM, draft, drafts, fact, first, number_of, numbers, tell, whole

A, B = "expiration.a", "expiration.b"


@pytest.fixture
def log(any_log: EventLog) -> EventLog:
    return any_log


async def test_what_is_appended_can_be_read(log: EventLog) -> None:
    assert await log.append(A, [draft(1)], expected=0) == 1
    assert await log.append(B, [draft(2)], expected=0) == 2
    assert await log.append(A, [draft(3)], expected=1) == 3
    assert [(recorded.subject, recorded.sequence) for recorded in await log.read(A)] == [(A, 1), (A, 3)]
    assert [recorded.event for recorded in await log.read(A)] == [fact(1), fact(3)]
    assert numbers(await log.read(B)) == [2]


async def test_an_unknown_subject_holds_nothing(log: EventLog) -> None:
    assert await log.read(A) == []
    await log.append(B, [draft(1)], expected=0)
    assert await log.read(A) == []
    assert await log.read("expiration.b.longer") == []


@pytest.mark.parametrize("expected", [0, 1, 2, 4, 1_000_000])
async def test_a_wrong_sequence_is_refused_and_stores_nothing(log: EventLog, expected: int) -> None:
    await log.append(A, drafts([1]), expected=0)
    await log.append(B, drafts([2]), expected=0)
    await log.append(A, drafts([3]), expected=1)
    await log.append(B, drafts([4]), expected=2)
    for refused in ([draft(5)], drafts([5, 6])):
        with pytest.raises(WrongSequence):
            await log.append(A, refused, expected=expected)
    assert numbers(await whole(log)) == [1, 2, 3, 4]


async def test_a_guard_on_a_subject_that_is_empty_is_refused_unless_it_is_0(log: EventLog) -> None:
    await log.append(B, [draft(1)], expected=0)
    with pytest.raises(WrongSequence):
        await log.append(A, [draft(2)], expected=1)
    assert await log.read(A) == []


async def test_of_many_with_the_same_guard_one_wins(log: EventLog) -> None:
    tries = [drafts(range(10 * n, 10 * n + 1 + n % 3)) for n in range(20)]
    outcomes = await asyncio.gather(*(log.append(A, made, expected=0) for made in tries), return_exceptions=True)
    won = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, int)]
    assert len(won) == 1
    assert all(isinstance(outcome, WrongSequence) for n, outcome in enumerate(outcomes) if n not in won)
    stored = await log.read(A)
    assert [recorded.id for recorded in stored] == [made.id for made in tries[won[0]]]
    assert stored[-1].sequence == outcomes[won[0]]


async def test_events_of_one_decision_are_stored_together(log: EventLog) -> None:
    await log.append(B, [draft(0)], expected=0)
    assert await log.append(A, drafts([1, 2, 3]), expected=0) == 4
    assert [(recorded.sequence, number_of(recorded.event)) for recorded in await log.read(A)] == [
        (2, 1),
        (3, 2),
        (4, 3),
    ]
    with pytest.raises(WrongSequence):
        await log.append(A, drafts([4, 5]), expected=3)
    assert await log.append(A, drafts([6, 7]), expected=4) == 6
    assert numbers(await log.read(A)) == [1, 2, 3, 6, 7]


async def test_a_decision_makes_1_to_1000_events(log: EventLog) -> None:
    for refused in ([], drafts(range(BATCH_LIMIT + 1))):
        with pytest.raises(Invalid, match=f"1 to {BATCH_LIMIT} events"):
            await log.append(A, refused, expected=0)
    assert (await log.end(STREAM)).sequence == 0
    assert await log.append(A, drafts(range(BATCH_LIMIT)), expected=0) == BATCH_LIMIT
    assert numbers(await log.read(A)) == list(range(BATCH_LIMIT))


@pytest.mark.parametrize("count", [1, 2, BATCH_LIMIT])
async def test_the_same_drafts_again_are_stored_once_and_answered_the_same(log: EventLog, count: int) -> None:
    await log.append(B, [draft(9999)], expected=0)
    made = drafts(range(count))
    assert await log.append(A, made, expected=0) == count + 1
    assert await log.append(A, made, expected=0) == count + 1
    await log.append(A, [draft(count)], expected=count + 1)
    assert await log.append(A, made, expected=0) == count + 1
    assert numbers(await log.read(A)) == list(range(count + 1))


async def test_a_read_begins_after_a_sequence(log: EventLog) -> None:
    await log.append(A, drafts([1, 2]), expected=0)
    await log.append(B, drafts([3]), expected=0)
    await log.append(A, drafts([4]), expected=2)
    assert [numbers(await log.read(A, after)) for after in range(6)] == [[1, 2, 4], [2, 4], [4], [4], [], []]


async def test_a_read_is_as_long_as_the_subject(log: EventLog) -> None:
    last = 0
    for page in range(3):
        last = await log.append(A, drafts(range(page * 1000, page * 1000 + 1000)), expected=last)
        await log.append(f"expiration.other{page}", [draft(page)], expected=0)
    await log.append(A, [draft(3000)], expected=last)
    assert numbers(await log.read(A)) == list(range(3001))
    assert numbers(await log.read(A, 1)) == list(range(1, 3001))
    assert numbers(await log.read(A, last)) == [3000]


async def test_a_stream_is_followed_in_order_and_live(log: EventLog) -> None:
    await tell(log, 1, 2, 3)
    await log.append("tickets.other", [draft(100)], expected=0)
    async with asyncio.timeout(20), aclosing(log.follow(STREAM)) as batches:
        heard: list[int] = []
        for number in range(4, 8):
            while len(heard) < number - 1:
                heard += numbers(await anext(batches))
            await tell(log, number)
        heard += numbers(await anext(batches))
    assert heard == [1, 2, 3, 4, 5, 6, 7]


async def test_followers_of_an_empty_stream_hear_its_first_event(log: EventLog) -> None:
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        followers = [group.create_task(first(log.follow(STREAM), 2)) for _ in range(3)]
        await tell(log, 1, 2)
    assert [numbers(follower.result()) for follower in followers] == [[1, 2]] * 3


async def test_a_stream_is_followed_from_a_sequence(log: EventLog) -> None:
    await log.append(A, drafts(range(1, 1001)), expected=0)
    await log.append(A, drafts(range(1001, 2001)), expected=1000)
    async with asyncio.timeout(20):
        assert numbers(await first(log.follow(STREAM, 700), 1300)) == list(range(701, 2001))
        followed = await first(log.follow(STREAM, 1999), 1)
    assert [(recorded.subject, recorded.sequence) for recorded in followed] == [(A, 2000)]


async def test_a_follower_from_the_end_hears_what_comes_then(log: EventLog) -> None:
    await tell(log, 1, 2)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        follower = group.create_task(first(log.follow(STREAM, 2), 1))
        await tell(log, 3)
    assert numbers(follower.result()) == [3]


@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_followed_events_come_in_lists_no_longer_than_asked_for(log: EventLog, limit: int) -> None:
    await log.append(A, drafts(range(1000)), expected=0)
    await log.append(A, drafts(range(1000, 1100)), expected=1000)
    heard: list[int] = []
    async with asyncio.timeout(20), aclosing(log.follow(STREAM, limit=limit)) as batches:
        async for batch in batches:
            assert 1 <= len(batch) <= limit
            heard += numbers(batch)
            if len(heard) >= 1100:
                break
    assert heard == list(range(1100))


async def test_what_a_follower_skips_is_told_by_its_place_only(log: EventLog) -> None:
    skipped = Draft.of(TicketWithdrawn(UUID(int=2), "sam", AT))
    await log.append(A, [draft(1), skipped, draft(3)], expected=0)
    async with asyncio.timeout(20):
        followed = await first(log.follow(STREAM, skips=(TicketWithdrawn,)), 3)
    assert [recorded.event for recorded in followed] == [fact(1), SKIPPED, fact(3)]
    assert (followed[1].subject, followed[1].sequence, followed[1].id) == (A, 2, skipped.id)


async def test_the_end_is_the_last_sequence_of_a_stream_that_stays_the_same(log: EventLog) -> None:
    start = await log.end(STREAM)
    assert start.sequence == 0
    await log.append(A, drafts([1, 2, 3]), expected=0)
    await log.append("orders.a", [draft(4)], expected=0)
    assert await log.end(STREAM) == msgspec.structs.replace(start, sequence=3)


async def test_an_event_is_known_by_its_id(log: EventLog) -> None:
    made = drafts([1, 2])
    await log.append(A, made, expected=0)
    assert [await log.event_id(STREAM, sequence) for sequence in (1, 2, 3)] == [made[0].id, made[1].id, None]
    assert [recorded.id for recorded in await log.read(A)] == [each.id for each in made]


async def test_the_envelope_comes_back_as_it_was_sent(log: EventLog) -> None:
    why = Cause("the conversation", "the request", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    made = Draft.of(fact(1, version=7), why)
    before = now()
    await log.append(A, [made], expected=0)
    [recorded] = await log.read(A)
    [followed] = await first(log.follow(STREAM), 1)
    for seen in (recorded, followed):
        assert (seen.event, seen.event.version) == (made.event, 7)
        assert (seen.id, seen.cause) == (made.id, why)
        assert before <= seen.time <= now()
        wanted = {
            "ce-specversion": "1.0",
            "ce-id": made.id,
            "ce-type": "expiration_completed",
            "ce-source": f"/{A}",
            "ce-sequence": "7",
            "correlation-id": "the conversation",
            "causation-id": "the request",
            "traceparent": why.traceparent,
            "Nats-Msg-Id": made.id,
        }
        assert wanted.items() <= seen.headers.items()


async def test_every_event_of_a_batch_has_its_own_envelope(log: EventLog) -> None:
    causes = [Cause(f"conversation {n}", f"request {n}") for n in range(3)]
    made = [Draft.of(fact(n, version=n + 1), why) for n, why in enumerate(causes)]
    await log.append(A, made, expected=0)
    stored = await log.read(A)
    assert [recorded.cause for recorded in stored] == causes
    assert [recorded.id for recorded in stored] == [each.id for each in made]
    assert [recorded.event.version for recorded in stored] == [1, 2, 3]
    assert all("traceparent" not in recorded.headers for recorded in stored)


def test_a_draft_takes_the_cause_of_its_task() -> None:
    why = Cause("the conversation", "the event")
    token = cause.set(why)
    try:
        assert draft(1).cause == why
    finally:
        cause.reset(token)
    one, other = draft(1), draft(1)
    assert one.cause.correlation_id == one.cause.causation_id
    assert one.cause != other.cause
    assert one.id != other.id
