"""Records in bulk of which one in a hundred is bad, against the same with none bad."""

import random
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import ClassVar
from uuid import uuid4

import asyncpg

from services.batch.engine import Due, execute
from services.batch.kinds import Answer, Done, Task, Work
from services.batch.kinds_records import INSERT, InsertRecords, Record
from tests.benchmarks.bulk import MODULE, records, rows_of, submit
from tests.benchmarks.process import serving
from tests.benchmarks.row import Measured, Row, Scene, alternate, at_least

SEED = 11
STATEMENT = 1000
BAD = 100
"""One row in so many is bad."""


class InsertPlainly(InsertRecords):
    """Leaves it to the engine to find the keys that are there, as most kinds do."""

    statements: ClassVar[int] = 0

    async def execute_many(self, work: Work, operations: Sequence[Task[Record]]) -> Sequence[Answer]:
        InsertPlainly.statements += 1
        await work.connection.execute(
            INSERT,
            [task.user_id for task in operations],
            [task.what.key for task in operations],
            [task.what.value for task in operations],
            [task.id for task in operations],
        )
        return [Done()] * len(operations)


async def measure(scene: Scene) -> Measured:
    """Rows per second."""
    count = scene.size(10_000, 2_000)
    choose = random.Random(SEED)  # noqa: S311 (no secret)
    turns = iter(range(1000))

    def some_bad(rows: list[tuple[str, str]], bad: int) -> tuple[list[tuple[str, str]], list[int]]:
        """The records that are to be there before, and where `rows` are the same."""
        places = sorted(choose.sample(range(len(rows)), bad))
        return [rows[place] for place in places], places

    async with (
        scene.system() as platform,
        serving(MODULE, platform.settings, scene.home) as served,
        asyncpg.create_pool(platform.settings.database_url, min_size=1, max_size=1) as pool,
    ):

        async def ours() -> float:
            rows = rows_of(next(turns), count)
            there, _ = some_bad(rows, count // BAD)
            await submit(served, "records.insert", records(there))
            return count / await submit(served, "records.insert", records(rows), bad=len(there))

        async def none_bad() -> float:
            return count / await submit(served, "records.insert", records(rows_of(next(turns), count)))

        figures = await alternate(scene, ours, none_bad)

        async def halved(bad: int) -> tuple[float, int]:
            """Seconds and statements that a kind which only raises takes for a statement's worth of records."""
            rows = rows_of(next(turns), STATEMENT)
            there, places = some_bad(rows, bad)
            await execute(pool, InsertPlainly(), [piece(there)])
            before, began = InsertPlainly.statements, perf_counter()
            (results,) = await execute(pool, InsertPlainly(), [piece(rows)])
            took = perf_counter() - began
            if [result.number - 1 for result in results if result.outcome == "failed"] != places:
                raise RuntimeError("other rows failed than those that are bad")
            return took, InsertPlainly.statements - before

        scene.tell("a kind that leaves it to the engine")
        one_bad = [(await halved(1))[1] for _ in range(scene.size(50, 5))]
        rounds = [(await halved(0), await halved(STATEMENT // BAD)) for _ in range(scene.size(50, 5))]
    middle: Callable[[list[float]], float] = median
    return Measured(
        "/s",
        *figures,
        details={
            "rows": count,
            "bad": count // BAD,
            "statements_for_one_bad_in_1000": {"median": median(one_bad), "most": max(one_bad)},
            "found_by_halving": {
                "ratio": middle([none[0] / some[0] for none, some in rounds]),
                "statements_for_10_bad_in_1000": middle([some[1] for _, some in rounds]),
            },
        },
    )


def piece(rows: list[tuple[str, str]]) -> Due:
    """Records as a piece of work, with nothing to do for none."""
    return Due(uuid4(), 1, 1, range(1, len(rows) + 1), [Task(uuid4(), "ada", Record(*row)) for row in rows])


BULK_BAD = Row(
    "bulk-bad", "records.insert, one key in 100 is there", "the same number with none bad", at_least(0.3), measure
)
