"""What a kind of operation is: the protocol that plugins implement, and where they are found.

A kind is a class with a name, the Struct of one operation, and one way to execute many. A package that has one is a
folder with two files: seats.py

    from collections.abc import Sequence

    import msgspec

    from services.batch.kinds import Answer, Done, Kind, Task, Work


    class Seat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        row: str
        number: int


    class ReserveSeats(Kind[Seat]):
        "Reserves seats by row and number."

        name = "seats.reserve"
        operation = Seat
        tables = "create table if not exists batch_data.seats (row text, number bigint, primary key (row, number))"

        async def execute_many(self, work: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:
            await work.connection.execute(
                "insert into batch_data.seats (row, number) select * from unnest($1::text[], $2::bigint[])",
                [task.what.row for task in operations],
                [task.what.number for task in operations],
            )
            return [Done(f"{task.what.row}{task.what.number}") for task in operations]

and pyproject.toml, with an entry point in the group `boxoffice.batch_kinds` whose name is the kind's:

    [build-system]
    requires = ["hatchling"]
    build-backend = "hatchling.build"

    [project]
    name = "seats"
    version = "1.0"

    [project.entry-points."boxoffice.batch_kinds"]
    "seats.reserve" = "seats:ReserveSeats"

Install it beside this one (`.venv/bin/pip install ./seats`). `boxoffice migrate` then makes its tables, and the batch
service has the kind once it is started anew; `boxoffice up` does both. `boxoffice batch kinds` shows it. A package that
cannot be imported, or whose kind lacks something, is left out: the log and `boxoffice doctor` say why.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, ClassVar, Generic, TypeVar
from uuid import UUID

import asyncpg
import msgspec
import structlog
from msgspec import Meta

from common.auth import Area
from common.errors import NotFound
from common.events import Role
from common.explain import explain
from common.requests import Asks

Op = TypeVar("Op", bound=msgspec.Struct)
T = TypeVar("T")

log = structlog.get_logger()


class Task(msgspec.Struct, Generic[Op], frozen=True):
    """An operation that is to be executed. `id` is the same at every try: what is made of it is made once.

    `user_id` is who asked for it and whose rights count.
    """

    id: UUID
    user_id: str
    what: Op


class Done(msgspec.Struct, frozen=True):
    """It is done; `output` is what there is to show for it: an id, an address. It is cut after 1,000 characters."""

    output: str | None = None


class Refused(msgspec.Struct, frozen=True):
    """It cannot be done, now or later: `error` says why, to whoever asked."""

    error: str


class TryAgain(msgspec.Struct, frozen=True):
    """It could not be done now and may be later, up to the kind's `attempts`."""

    error: str


Answer = Done | Refused | TryAgain


class Work(msgspec.Struct, frozen=True):
    """What a kind works with: `connection`, if it is transactional, or else `requests`, which asks other services."""

    transaction: asyncpg.Connection | None = None
    requests: Asks | None = None

    @property
    def connection(self) -> asyncpg.Connection:
        """It is in the transaction that also records what was done: together or not at all.

        Constraints are checked at once there, deferred ones too. Raises TypeError for a kind that is not transactional.
        """
        if self.transaction is None:
            raise TypeError("only a kind with `transactional = True` has a connection")
        return self.transaction


class Kind(ABC, Generic[Op]):
    """A kind of operation. One instance serves all workers of a process.

    `attempts`: how often an operation is tried before it fails for good. `timeout`: seconds for one `execute_many`;
    what takes longer together is executed one by one, and what takes longer alone is tried again. `limit`: operations
    in one `execute_many` at most, if that is less than BOXOFFICE_BATCH_LIMIT. `transactional`: execute_many writes only
    through `work.connection`; such a kind is executed once for each operation, whatever crashes. Others may be asked
    again for the same `Task.id`, and must then answer the same and make nothing twice. `tables`: what `boxoffice
    migrate` runs for it, safe to repeat (`create table if not exists ...`).

    `limit` is also how many operations a transaction takes at most: progress is told, a batch is cancelled, and what a
    crash undoes is repeated, by so many. A slow kind takes few, then. A batch is cut into pieces of `limit` (500 at
    most), each of which costs four events, and a place in the memory of its batch, however small it is: with a `limit`
    below 10, batches are best kept below 100,000 operations.

    A call that raises, or that answers too late or not for each operation, has written nothing: a savepoint undoes it.
    What a call wrote that answered is committed, also for an operation that it answered Refused or TryAgain for; one to
    be tried again is executed again, under the same `Task.id`, and what it wrote is still there. So look first, and
    write only for what is answered Done. Or raise what refuses an operation (such as `common.errors.Invalid`): it is
    then found among the others by halves, and nothing is written for it. Or write within `async with
    work.connection.transaction():`, leave that by an exception, and answer after it. A kind that is not transactional
    has nothing undone: it makes things under ids that come from `Task.id`, and looks whether they are there.

    What ends its process (a crash of a C library, the end of memory) takes all with it that is executed there. Its
    piece of work is executed alone from then on, and after `attempts` such ends all that is left of the piece fails.

    `role`: who may at least have it executed; `area`: to what that is a door, for which an API key needs the scope to
    write.

    `operation`: what its rows are checked against. Beware of a union of a list or dict and a `str` with limits in it:
    msgspec 0.22 crashes on one.
    """

    name: ClassVar[str]
    operation: ClassVar[type[msgspec.Struct]]
    attempts: ClassVar[int] = 10
    timeout: ClassVar[float] = 30
    limit: ClassVar[int] = 1000
    transactional: ClassVar[bool] = True
    tables: ClassVar[str] = ""
    area: ClassVar[Area] = "batches"
    role: ClassVar[Role] = "seller"

    @abstractmethod
    async def execute_many(self, work: Work, operations: Sequence[Task[Op]]) -> Sequence[Answer]:
        """Execute all of `operations`, best by one statement; an answer for each, in their order.

        What raises refuses all of them: they are then executed in halves, down to the bad ones, whose error is told.
        Unavailable (and a lost connection, or a timeout within) is nobody's fault: all of it is tried again later.
        """

    async def execute_one(self, work: Work, operation: Task[Op]) -> Answer:
        """Execute one. What it raises is why this one fails."""
        return answered(self.name, await self.execute_many(work, [operation]), 1)[0]


def is_answer(answer: object) -> bool:
    """Whether it is one, with text in it: a plugin's author may forget that an id is none."""
    match answer:
        case Done(None | str()) | Refused(str()) | TryAgain(str()):
            return True
    return False


class WrongAnswer(Exception):
    """A kind did not give one answer for each operation."""


def answered(kind: str, answers: object, wanted: int) -> Sequence[Answer]:
    """`answers`, if they are an answer for each of so many operations. Raises WrongAnswer."""
    if not isinstance(answers, Sequence) or not all(map(is_answer, answers)):
        raise WrongAnswer(
            f"Kind {kind} is broken: it did not answer with a list of Done, Refused or TryAgain, with text in them."
        )
    if len(answers) != wanted:
        raise WrongAnswer(f"Kind {kind} is broken: it gave {len(answers)} answers for {wanted} operations.")
    return answers


GROUP = "boxoffice.batch_kinds"
OURS = "boxoffice"


class BadKind(msgspec.Struct, frozen=True):
    """An entry point that is left out, as it is no kind that can be used: whose it is, and what is wrong with it."""

    package: str
    entry_point: str
    wrong: str

    @property
    def mend(self) -> str:
        """What to do about it."""
        return f"correct the package {self.package} and install it again, or uninstall it"


class Plain(msgspec.Struct):
    """What the attributes of a kind may hold; names as the specification of entry points recommends them."""

    name: Annotated[
        str, Meta(pattern=r"\A[\w.-]{1,100}\Z", description="up to 100 letters, digits, underscores, dots and dashes")
    ]
    limit: Annotated[int, Meta(ge=1)]
    attempts: Annotated[int, Meta(ge=1)]
    timeout: Annotated[float, Meta(gt=0, le=86_400)]
    transactional: bool
    tables: str
    area: Area
    role: Role


def installed(use: Callable[[type[Kind[Any]]], T]) -> dict[str, T]:
    """What `use` makes of each kind of all installed packages, by name.

    What is none, or what `use` raises for, is left out and logged: the package of one is not to stop all others.
    """
    found, bad = examined(entry_points(group=GROUP), use)
    for each in bad:
        leave_out(each)
    return found


def examined(points: Iterable[EntryPoint], use: Callable[[type[Kind[Any]]], T]) -> tuple[dict[str, T], list[BadKind]]:
    """What `use` makes of the kinds at these entry points, and what is left out. Ours come first."""
    found, bad = dict[str, T](), list[BadKind]()
    for point in sorted(points, key=lambda point: package_of(point) != OURS):
        try:
            kind = point.load()
            wrong = "; ".join(faults(point.name, kind))
            if not wrong and point.name in found:
                wrong = "another package has a kind of this name"
            if not wrong:
                found[point.name] = use(kind)
        except (Exception, SystemExit) as error:  # whatever a package does when it is imported
            wrong = f"it cannot be loaded: {type(error).__name__}: {error}"
        if wrong:
            bad.append(BadKind(package_of(point), f"{point.name} = {point.value}", wrong))
    return found, bad


def package_of(point: EntryPoint) -> str:
    """The package whose entry point it is."""
    return point.dist.name if point.dist else "(unknown)"


def faults(name: str, kind: object) -> Iterator[str]:
    """What keeps `kind` from being the kind of this name."""
    if not (isinstance(kind, type) and issubclass(kind, Kind)):
        yield f"it is no subclass of {Kind.__module__}.Kind"
        return
    if kind.__abstractmethods__:
        yield f"it has no `{'`, `'.join(sorted(kind.__abstractmethods__))}`"
    try:
        plain = msgspec.convert(kind, Plain, from_attributes=True)
        if plain.name != name:
            yield f"its `name` is {plain.name!r}, and its entry point's {name!r}"
    except msgspec.ValidationError as error:
        path, message = explain(str(error), Plain)
        yield f"its `{path[0]}` is {held(kind, path[0])}: {message}"
    operation = getattr(kind, "operation", None)
    if not (isinstance(operation, type) and issubclass(operation, msgspec.Struct)):
        yield f"its `operation` is {held(kind, 'operation')}: Expected a subclass of msgspec.Struct"
    elif operation.__struct_config__.array_like:
        yield "its `operation` is array_like: Expected fields with names, as columns are"
    else:
        try:
            msgspec.json.schema(operation)
        except Exception as error:  # whatever a field's type raises
            yield f"its `operation` has no JSON schema: {error}"


def held(kind: type[Kind[Any]], attribute: str) -> str:
    """What a kind has there, for people."""
    return repr(getattr(kind, attribute)) if hasattr(kind, attribute) else "missing"


@cache
def leave_out(bad: BadKind) -> None:
    """Log that it is left out; once, as each part of a process asks for all of them."""
    log.error("kind_left_out", package=bad.package, entry_point=bad.entry_point, wrong=bad.wrong, mend=bad.mend)


def known(kinds: Mapping[str, Kind[msgspec.Struct]], name: str) -> Kind[msgspec.Struct]:
    """The kind of this name. Raises NotFound, and says which there are."""
    try:
        return kinds[name]
    except KeyError:
        detail = f"kind: There is no kind {name!r}; there are {', '.join(sorted(kinds))}"
        raise NotFound(detail, field="kind", got=name) from None
