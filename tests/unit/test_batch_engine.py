"""Isolating what is bad: any operations in any order, on a table that is a list."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from common.errors import Conflict, Unavailable
from common.events import Result
from services.batch.engine import TIMEOUTS, Isolated, bounded, isolate, told
from services.batch.kinds import Answer, Done, Kind, Refused, Task, TryAgain, Work
from services.batch.kinds_records import Record


def task(number: int, key: str | None = None) -> Task[Record]:
    return Task(UUID(int=number), "ada", Record(key or f"k{number}", "v"))


def tasks_of(size: int) -> list[Task[Record]]:
    return [task(number) for number in range(size)]


class Table:
    """Rows, and going back to what they were."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        before = list(self.rows)
        try:
            yield
        except BaseException:
            self.rows = before
            raise


class Insert(Kind[Record]):
    """Inserts into a table, and refuses what is there. `bad` keys raise; it writes what comes before them, though."""

    name = "test.insert"
    operation = Record

    def __init__(self, table: Table, bad: Sequence[str] = (), error: Callable[[str], Exception] = Conflict) -> None:
        self.table = table
        self.bad = set(bad)
        self.error = error
        self.calls: list[int] = []

    async def execute_many(self, _: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
        self.calls.append(len(operations))
        for operation in operations:
            if operation.what.key in self.bad or operation.what.key in self.table.rows:
                raise self.error(f"{operation.what.key} is bad")
            self.table.rows.append(operation.what.key)
        return [Done(operation.what.key) for operation in operations]


async def isolated(kind: Insert, tasks: Sequence[Task[Record]]) -> Isolated:
    outcome = await isolate(kind, Work(), tasks, kind.table.savepoint)
    assert outcome.statements == len(kind.calls), "it counts what it does"
    return outcome


some_bad = st.integers(1, 200).flatmap(
    lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size - 1), max_size=size))
)


@given(some_bad)
@example((200, set(range(200))))
@example((200, set(range(0, 200, 2))))
@example((1, {0}))
async def test_exactly_the_bad_ones_fail_and_the_others_are_applied_once(drawn: tuple[int, set[int]]) -> None:
    size, bad = drawn
    kind = Insert(Table(), [f"k{number}" for number in bad])
    outcome = await isolated(kind, tasks_of(size))
    assert outcome.answers == [
        Refused(f"k{number} is bad") if number in bad else Done(f"k{number}") for number in range(size)
    ]
    assert kind.table.rows == [f"k{number}" for number in range(size) if number not in bad]


@given(some_bad)
async def test_it_never_takes_many_more_statements_than_two_each(drawn: tuple[int, set[int]]) -> None:
    size, bad = drawn
    kind = Insert(Table(), [f"k{number}" for number in bad])
    outcome = await isolated(kind, tasks_of(size))
    assert outcome.statements <= 2 * size + 40


@pytest.mark.parametrize("size", [1000, 999, 513, 512])
async def test_one_bad_in_a_thousand_takes_twenty_two_statements_at_most(size: int) -> None:
    for bad in range(0, size, 7):
        outcome = await isolated(Insert(Table(), [f"k{bad}"]), tasks_of(size))
        assert outcome.statements <= 22
        assert outcome.depth <= 10


async def test_none_bad_takes_one_statement() -> None:
    outcome = await isolated(Insert(Table()), tasks_of(1000))
    assert (outcome.statements, outcome.depth) == (1, 0)


async def test_all_bad_takes_hardly_more_statements_than_one_each() -> None:
    outcome = await isolated(Insert(Table(), [f"k{number}" for number in range(1000)]), tasks_of(1000))
    assert outcome.statements <= 1000 + 60


async def test_after_a_run_of_bad_ones_the_good_are_executed_together_again() -> None:
    outcome = await isolated(Insert(Table(), [f"k{number}" for number in range(100)]), tasks_of(1000))
    assert outcome.statements <= 100 + 70


@given(st.lists(st.integers(0, 20), min_size=1, max_size=100))
async def test_of_operations_that_exclude_each_other_the_first_wins(numbers: list[int]) -> None:
    kind = Insert(Table())
    outcome = await isolated(kind, [task(n, key=f"k{number}") for n, number in enumerate(numbers)])
    first = [number not in numbers[:n] for n, number in enumerate(numbers)]
    assert [isinstance(answer, Done) for answer in outcome.answers] == first
    assert kind.table.rows == list(dict.fromkeys(f"k{number}" for number in numbers))


async def test_operations_that_are_bad_only_together_are_all_executed() -> None:
    class Alone(Insert):
        async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
            if len(operations) > 5:
                self.calls.append(len(operations))
                raise Conflict("That many it does not take.")
            return await super().execute_many(work, operations)

    kind = Alone(Table())
    outcome = await isolated(kind, tasks_of(64))
    assert outcome.answers == [Done(f"k{number}") for number in range(64)]
    assert kind.table.rows == [f"k{number}" for number in range(64)]


async def test_answers_are_taken_as_they_are() -> None:
    answers: list[Answer] = [Done("1"), Refused("no"), TryAgain("later")]

    class Answers(Insert):
        async def execute_many(self, _: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
            self.calls.append(len(operations))
            return answers

    assert await isolated(Answers(Table()), tasks_of(3)) == Isolated(answers, 1, 0)


NOBODYS_FAULT = [
    Unavailable("asleep"),
    ConnectionResetError("gone"),
    TimeoutError(),
    asyncpg.ConnectionDoesNotExistError("gone"),
    asyncpg.AdminShutdownError("the administrator"),
    asyncpg.QueryCanceledError("statement timeout"),
    asyncpg.TooManyConnectionsError("too many"),
    asyncpg.DiskFullError("full"),
    asyncpg.SerializationError("again"),
    asyncpg.DeadlockDetectedError("again"),
    asyncpg.LockNotAvailableError("later"),
    asyncpg.ReadOnlySQLTransactionError("a standby"),
]


@pytest.mark.parametrize("error", NOBODYS_FAULT, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("size", [1, 2, 100])
async def test_what_is_nobodys_fault_fails_no_operation(error: Exception, size: int) -> None:
    kind = Insert(Table(), [f"k{size - 1}"], lambda _: error)
    with pytest.raises(Unavailable):
        await isolate(kind, Work(), tasks_of(size), kind.table.savepoint)
    assert len(kind.calls) == 1, "the others are not worth trying"


async def test_what_is_nobodys_fault_fails_no_operation_while_bad_ones_are_sought_either() -> None:
    class Dies(Insert):
        async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
            if len(self.calls) == 5:
                raise asyncpg.ConnectionDoesNotExistError("gone")
            return await super().execute_many(work, operations)

    kind = Dies(Table(), ["k99"])
    with pytest.raises(Unavailable, match="gone"):
        await isolate(kind, Work(), tasks_of(100), kind.table.savepoint)


class Hangs(Insert):
    """Hangs at `bad` keys."""

    timeout = 0.05

    async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
        try:
            return await super().execute_many(work, operations)
        except Conflict:
            await asyncio.Event().wait()
            raise


TOO_SLOW = TryAgain("It did not answer within 0.05 s.")


@pytest.mark.parametrize("bad", [{0}, {63}, {7, 8, 40}, set(range(20, 30))])
async def test_operations_that_hang_are_to_be_tried_again_and_the_others_are_applied(bad: set[int]) -> None:
    kind = Hangs(Table(), [f"k{number}" for number in bad])
    outcome = await isolated(kind, tasks_of(64))
    assert outcome.answers == [TOO_SLOW if number in bad else Done(f"k{number}") for number in range(64)]
    assert kind.table.rows == [f"k{number}" for number in range(64) if number not in bad]


async def test_beside_one_that_hangs_another_that_is_bad_is_told() -> None:
    class Both(Hangs):
        async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
            if any(operation.what.key == "k3" for operation in operations):
                self.calls.append(len(operations))
                raise ZeroDivisionError
            return await super().execute_many(work, operations)

    outcome = await isolated(Both(Table(), ["k1"]), tasks_of(32))
    told = {number: answer for number, answer in enumerate(outcome.answers) if not isinstance(answer, Done)}
    assert told == {1: TOO_SLOW, 3: Refused("ZeroDivisionError")}


async def test_of_what_takes_too_long_only_together_all_is_applied() -> None:
    class Slow(Insert):
        timeout = 0.05

        async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
            answers = await super().execute_many(work, operations)
            if len(operations) > 5:
                await asyncio.Event().wait()
            return answers

    kind = Slow(Table())
    outcome = await isolated(kind, tasks_of(40))
    assert outcome.answers == [Done(f"k{number}") for number in range(40)]
    assert kind.table.rows == [f"k{number}" for number in range(40)]


async def test_a_kind_that_always_hangs_is_given_up_after_a_dozen_timeouts() -> None:
    kind = Hangs(Table(), [f"k{number}" for number in range(1000)])
    outcome = await isolated(kind, tasks_of(1000))
    assert kind.calls == [1000] + [1] * (TIMEOUTS - 1)
    rest = TryAgain("Others before it did not answer within 0.05 s.")
    assert outcome.answers == [TOO_SLOW] * (TIMEOUTS - 1) + [rest] * (1000 - TIMEOUTS + 1)
    assert kind.table.rows == []


async def test_what_a_kind_makes_of_its_timeout_is_no_error_of_its_operations() -> None:
    class Wraps(Hangs):
        async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
            try:
                return await super().execute_many(work, operations)
            except asyncio.CancelledError:
                raise RuntimeError("whatever it was") from None

    outcome = await isolated(Wraps(Table(), ["k1"]), tasks_of(3))
    assert outcome.answers == [Done("k0"), TOO_SLOW, Done("k2")]


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (None, "did not answer with a list"),
        ([], "gave 0 answers for 1"),
        ([Done()] * 20, "gave 20 answers for 1"),
        (["done"], "did not answer with a list of Done"),
        ([Done(uuid4())], "with text in them"),  # type: ignore[arg-type]  # as a plugin may
    ],
)
async def test_a_kind_that_gives_wrong_answers_is_told_so_and_changes_nothing(answers: Any, told: str) -> None:
    class Wrong(Insert):
        async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
            await super().execute_many(work, operations)
            return answers  # type: ignore[no-any-return]

    kind = Wrong(Table())
    outcome = await isolated(kind, tasks_of(9))
    assert all(isinstance(answer, Refused) and told in answer.error for answer in outcome.answers)
    assert kind.table.rows == []


async def test_an_answer_too_few_for_one_operation_fails_only_that() -> None:
    class Forgets(Insert):
        async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
            return [answer for answer in await super().execute_many(work, operations) if answer != Done("k3")]

    kind = Forgets(Table())
    outcome = await isolated(kind, tasks_of(50))
    assert [number for number, answer in enumerate(outcome.answers) if isinstance(answer, Refused)] == [3]
    assert len(kind.table.rows) == 49


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit])
async def test_a_kind_that_wants_to_end_the_task_or_the_process_fails_its_operation(
    error: type[BaseException],
) -> None:
    class Ends(Insert):
        async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
            answers = await super().execute_many(work, operations)
            if Done("k3") in answers:
                raise error
            return answers

    kind = Ends(Table())
    outcome = await isolated(kind, tasks_of(20))
    assert [number for number, answer in enumerate(outcome.answers) if isinstance(answer, Refused)] == [3]
    assert len(kind.table.rows) == 19


async def test_a_worker_that_is_cancelled_is() -> None:
    begun = asyncio.Event()

    class Waits(Insert):
        async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
            begun.set()
            await asyncio.Event().wait()
            return await super().execute_many(work, operations)

    working = asyncio.create_task(isolate(Waits(Table()), Work(), tasks_of(1), Table().savepoint))
    await begun.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_what_nobody_foresaw_is_told_briefly_and_logged_once_with_its_origin() -> None:
    with capture_logs() as logs:
        outcome = await isolated(Insert(Table(), ["k1", "k2"], ZeroDivisionError), tasks_of(4))
    assert outcome.answers[1:3] == [
        Refused("ZeroDivisionError: k1 is bad"),
        Refused("ZeroDivisionError: k2 is bad"),
    ]
    assert [(entry["event"], entry["kind"], type(entry["exc_info"])) for entry in logs] == [
        ("operation_raised", "test.insert", ZeroDivisionError)
    ]


@pytest.mark.parametrize(
    ("text", "characters"),
    [("ok", 2), ("x" * 5000, 1000), ("ü" * 5000, 250), ("\U000e0001" * 5000, 250), ("\x01" * 5000, 250), ("\0" * 9, 9)],
)
def test_what_is_told_of_500_operations_fits_into_an_event(text: str, characters: int) -> None:
    cut = bounded(text)
    assert cut is not None
    assert len(cut) == characters
    assert 500 * len(msgspec.json.encode(Result(1_000_000, "failed", error=cut))) < 1_000_000
    assert "\0" not in cut


def test_an_error_without_a_text_is_told_by_its_kind() -> None:
    assert told(KeyError()) == "KeyError"


@pytest.mark.parametrize("size", range(1, 6))
async def test_few_operations_are_isolated_like_many(size: int) -> None:
    for bad in range(size):
        outcome = await isolated(Insert(Table(), [f"k{bad}"]), tasks_of(size))
        assert [isinstance(answer, Done) for answer in outcome.answers] == [n != bad for n in range(size)]
