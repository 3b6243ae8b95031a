"""A rehearsal is as good as the log that it stands on, and that log never hears of it."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.aggregate import Aggregate
from common.errors import Conflict, Invalid, Retry, Unavailable
from common.event_log import Draft, EventLog, Recorded, Stored, WrongSequence
from common.events import BookListing, ExpirationCompleted, encode, type_of
from common.group_commit import BATCH_LIMIT
from common.listener import Listener
from common.memory_log import MemoryLog
from common.rehearsal import Appended, Heard, Noted, NotForeseen, Rehearsal, is_heard
from common.telemetry import Cause, cause, current_cause
from services.orders.domain import ORDERS, KeepBook
from tests.facts import STREAM, draft, drafts, fact, number_of, numbers, tell

SUBJECTS = ("expiration.a", "expiration.b", "orders.a")
AT = datetime(2030, 1, 2, tzinfo=UTC)


class Write:
    """What somebody appends: events, of which the first is perhaps one that was tried before."""

    def __init__(self, subject: str, expected: int, made: list[Draft]) -> None:
        self.subject = subject
        self.expected = expected
        self.made = made

    async def on(self, log: EventLog) -> int | str:
        try:
            return await log.append(self.subject, self.made, expected=self.expected)
        except WrongSequence:
            return "wrong"


@st.composite
def histories(draw: st.DrawFn) -> list[Write]:
    """Writes that are often right about the sequence, and sometimes repeated."""
    told: list[Write] = []
    last = dict.fromkeys(SUBJECTS, 0)
    ends = dict.fromkeys(("expiration", "orders"), 0)
    for number in range(draw(st.integers(1, 12))):
        if told and draw(st.integers(0, 4)) == 0:
            told.append(draw(st.sampled_from(told)))
            continue
        subject, count = draw(st.sampled_from(SUBJECTS)), draw(st.integers(1, 3))
        stream = subject.partition(".")[0]
        right = draw(st.integers(0, 3)) > 0
        expected = last[subject] if right else draw(st.integers(0, ends[stream] + 1))
        if expected == last[subject]:
            ends[stream] += count
            last[subject] = ends[stream]
        told.append(Write(subject, expected, drafts(range(10 * number, 10 * number + count))))
    return told


async def seen(log: EventLog) -> list[object]:
    """All that can be read of it."""
    ends = [(await log.end(stream)).sequence for stream in ("EXPIRATION", "ORDERS")]
    ids = [await log.event_id("EXPIRATION", sequence) for sequence in range(1, ends[0] + 2)]
    read: list[Recorded] = []
    for subject in SUBJECTS:
        for after in range(max(ends) + 1):
            read += await log.read(subject, after)
    return [ends, ids, [(each.subject, each.sequence, each.event, each.id, each.cause) for each in read]]


@given(histories(), st.integers(0, 12))
def test_what_is_rehearsed_guards_and_reads_as_if_it_were_told(history: list[Write], real: int) -> None:
    async def play() -> None:
        told, under = MemoryLog(), MemoryLog()
        rehearsal = Rehearsal(under)
        for number, write in enumerate(history):
            answers = [await write.on(told), await write.on(under if number < real else rehearsal)]
            assert answers[0] == answers[1]
        assert await seen(rehearsal) == await seen(told)

    asyncio.run(play())


@given(histories())
def test_the_log_under_a_rehearsal_stays_as_it_is(history: list[Write]) -> None:
    async def play() -> None:
        log = MemoryLog()
        await tell(log, 1, 2, 3)
        before = await seen(log)
        rehearsal = Rehearsal(log)
        for write in history:
            await write.on(rehearsal)
        assert await seen(log) == before

    asyncio.run(play())


class SlowLog(MemoryLog):
    """A log that others may use between a question and its answer."""

    async def read(self, subject: str, after: int = 0) -> list[Recorded]:
        await asyncio.sleep(0)
        return await super().read(subject, after)


async def test_of_many_with_the_same_guard_one_wins() -> None:
    rehearsal = Rehearsal(SlowLog())
    tries = [Write("expiration.a", 0, [draft(number)]).on(rehearsal) for number in range(20)]
    outcomes = await asyncio.gather(*tries)
    assert sorted(map(str, outcomes)) == ["1", *["wrong"] * 19]


async def test_a_subject_on_which_something_was_rehearsed_stays_as_it_was_then() -> None:
    log = MemoryLog()
    rehearsal = Rehearsal(log)
    await log.append("expiration.a", [draft(1)], expected=0)
    assert await rehearsal.append("expiration.a", [draft(2)], expected=1) == 2
    await log.append("expiration.a", [draft(3)], expected=1)
    await log.append("expiration.b", [draft(4)], expected=0)
    assert numbers(await rehearsal.read("expiration.a")) == [1, 2]
    assert numbers(await rehearsal.read("expiration.b")) == [4]
    assert await rehearsal.append("expiration.a", [draft(5)], expected=2) == 3
    assert numbers(await rehearsal.read("expiration.a", 1)) == [2, 5]


async def test_a_decision_makes_1_to_1000_events_in_a_rehearsal_too() -> None:
    for refused in ([], drafts(range(BATCH_LIMIT + 1))):
        with pytest.raises(Invalid, match=f"1 to {BATCH_LIMIT} events"):
            await Rehearsal(MemoryLog()).append("expiration.a", refused, expected=0)


async def test_nobody_follows_a_rehearsal() -> None:
    with pytest.raises(Unavailable):
        Rehearsal(MemoryLog()).follow(STREAM)


def stored(number: int, *, body: bytes | None = None, subject: str = "", kind: str = "") -> Stored:
    """An expiry as it is kept."""
    event = fact(number)
    headers = {"ce-id": f"event {number}", "ce-type": kind or type_of(ExpirationCompleted), "correlation-id": "click"}
    return Stored(STREAM, subject or f"expiration.{number}", number, headers, body or encode(event), AT)


class Deed(Listener[ExpirationCompleted]):
    """Does with each what its number says."""

    durable = "orders-cancel-expired"

    def __init__(self, rehearsal: Rehearsal) -> None:
        self.rehearsal = rehearsal
        self.books = Aggregate(ORDERS, rehearsal)
        self.causes: list[Cause] = []

    async def on(self, event: ExpirationCompleted) -> None:
        self.causes.append(current_cause())
        listing = BookListing("Opening night", 2500, "EUR", 10, 10, True, 1)
        match number_of(event):
            case 1:
                await self.books.handle(UUID(int=1), KeepBook(UUID(int=1), listing, AT))
            case 2:
                self.rehearsal.note("ring", "ring the bell")
                raise Retry(5)
            case 3:
                self.rehearsal.note("ring", "ring the bell")
                raise NotForeseen("who comes")
            case 4:
                raise Conflict("It is over.")
            case 5:
                raise Unavailable("Nobody is there.")


async def hearing(*events: Stored) -> Sequence[Heard]:
    rehearsal = Rehearsal(MemoryLog())
    deed = Deed(rehearsal)
    return [await rehearsal.hear(deed, event) for event in events]


async def test_what_a_listener_does_is_told_of_each_event_by_itself() -> None:
    done, again, later, nothing = await hearing(stored(1), stored(1), stored(2), stored(9))
    (effect,) = done.effects
    assert isinstance(effect, Appended)
    assert (done.outcome, effect.kind, effect.subject) == ("done", "book_opened", f"orders.{UUID(int=1)}")
    assert effect.event.version == 1
    assert again == Heard("nothing")
    assert later == Heard("again", (Noted("ring", "ring the bell"),), after=5)
    assert nothing == Heard("nothing")


async def test_why_it_fails_or_what_it_hangs_on_is_told() -> None:
    hangs, fails, unreadable = await hearing(stored(3), stored(4), stored(6, body=b"{}"))
    assert hangs == Heard("open", (Noted("ring", "ring the bell"),), "who comes")
    assert fails == Heard("failed", (), "Conflict: It is over.")
    assert (unreadable.outcome, unreadable.why.partition(":")[0]) == ("failed", "UndecodableEvent")


async def test_a_log_that_does_not_answer_ends_the_rehearsal() -> None:
    with pytest.raises(Unavailable):
        await hearing(stored(5))


async def test_an_event_is_the_cause_of_what_is_rehearsed_and_of_nothing_after_it() -> None:
    rehearsal = Rehearsal(MemoryLog())
    deed = Deed(rehearsal)
    await rehearsal.hear(deed, stored(1))
    why = Cause("click", "event 1")
    assert deed.causes == [why]
    assert [each.cause for each in await rehearsal.read(f"orders.{UUID(int=1)}")] == [why]
    assert cause.get() is None


@pytest.mark.parametrize(
    ("event", "heard"),
    [
        (stored(1), True),
        (stored(1, kind="order_created"), False),
        (Stored(STREAM, "expiration.1", 1, {}, b"", AT), True),
    ],
    ids=["its event", "another", "what is none"],
)
def test_a_listener_hears_its_events_and_what_it_cannot_read(event: Stored, heard: bool) -> None:
    assert is_heard(Deed(Rehearsal(MemoryLog())), event) is heard
