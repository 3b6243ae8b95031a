"""Which of the classes that packages offer are kinds of operation, and what is said of those that are none."""

from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from structlog.testing import capture_logs

from services.batch.kinds import GROUP, Answer, BadKind, Done, Kind, Task, Work, examined, leave_out


class Seat(msgspec.Struct):
    row: str


class Good(Kind[Seat]):
    """Does nothing."""

    name = "seats.reserve"
    operation = Seat

    async def execute_many(self, work: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:  # noqa: ARG002
        return [Done()] * len(operations)


class WithoutName(Kind[Seat]):
    operation = Seat

    async def execute_many(self, work: Work, operations: Sequence[Task[Seat]]) -> Sequence[Answer]:  # noqa: ARG002
        return [Done()] * len(operations)


class OfSeveralSteps(Good):
    name = "seats/reserve"


class OfAnotherName(Good):
    name = "seats.release"


class WithoutOperation(Kind[Any]):
    name = "seats.reserve"

    async def execute_many(self, work: Work, operations: Sequence[Task[Any]]) -> Sequence[Answer]:  # noqa: ARG002
        return [Done()] * len(operations)


class OfADict(Good):
    operation: ClassVar[Any] = dict


class Opaque(msgspec.Struct):
    what: object
    path: Path


class WithoutSchema(Good):
    operation: ClassVar[Any] = Opaque


class Pair(msgspec.Struct, array_like=True):
    row: str


class OfAPair(Good):
    operation: ClassVar[Any] = Pair


class WithoutDeed(Kind[Seat]):
    name = "seats.reserve"
    operation = Seat


class WithoutLimit(Good):
    limit = 0


class WithHalfAnAttempt(Good):
    attempts: ClassVar[Any] = 1.5


class Endless(Good):
    timeout = float("inf")


class Demanding(Good):
    def __init__(self, connection: str) -> None:
        self.connection = connection


def reserve(*_: object) -> None:
    """No class."""


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value if ":" in value else f"{__name__}:{value}", GROUP)


def looked_at(points: Iterable[EntryPoint]) -> tuple[dict[str, Kind[Any]], list[BadKind]]:
    return examined(points, lambda kind: kind())


def test_a_kind_is_found_by_its_name() -> None:
    found, bad = looked_at([point("seats.reserve", "Good"), point("seats.release", "OfAnotherName")])
    assert {name: type(kind) for name, kind in found.items()} == {
        "seats.reserve": Good,
        "seats.release": OfAnotherName,
    }
    assert not bad


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ("no_such_module:Kind", "it cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("NoSuchKind", "it cannot be loaded: AttributeError: "),
        ("reserve", "it is no subclass of services.batch.kinds.Kind"),
        ("Seat", "it is no subclass of services.batch.kinds.Kind"),
        ("WithoutName", "its `name` is missing: Required"),
        ("OfSeveralSteps", "its `name` is 'seats/reserve': Expected up to 100 letters, digits, "),
        ("OfAnotherName", "its `name` is 'seats.release', and its entry point's 'seats.reserve'"),
        ("WithoutOperation", "its `operation` is missing: Expected a subclass of msgspec.Struct"),
        ("OfADict", "its `operation` is <class 'dict'>: Expected a subclass of msgspec.Struct"),
        ("WithoutSchema", "its `operation` has no JSON schema: "),
        ("OfAPair", "its `operation` is array_like: "),
        ("WithoutDeed", "it has no `execute_many`"),
        ("WithoutLimit", "its `limit` is 0: Expected a whole number of at least 1"),
        ("WithHalfAnAttempt", "its `attempts` is 1.5: Expected a whole number"),
        ("Endless", "its `timeout` is inf: Expected a number of at most 86400.0"),
        ("Demanding", "it cannot be loaded: TypeError: "),
    ],
)
def test_what_is_no_kind_is_left_out_and_the_others_are_not(value: str, wrong: str) -> None:
    found, bad = looked_at([point("seats.reserve", value), point("seats.release", "OfAnotherName")])
    assert list(found) == ["seats.release"]
    (left_out,) = bad
    assert left_out.entry_point.startswith("seats.reserve = ")
    assert left_out.wrong.startswith(wrong)


def test_of_two_kinds_of_one_name_one_is_taken_and_the_other_is_told() -> None:
    found, (left_out,) = looked_at([point("seats.reserve", "Good"), point("seats.reserve", "Good")])
    assert list(found) == ["seats.reserve"]
    assert left_out.wrong == "another package has a kind of this name"


def test_what_is_left_out_is_logged_once_with_what_to_do() -> None:
    bad = BadKind("seats", "seats.reserve = seats:ReserveSeats", "it has no `execute_many`")
    with capture_logs() as logged:
        leave_out(bad)
        leave_out(bad)
    (line,) = logged
    assert line == {
        "event": "kind_left_out",
        "log_level": "error",
        "package": "seats",
        "entry_point": "seats.reserve = seats:ReserveSeats",
        "wrong": "it has no `execute_many`",
        "mend": "correct the package seats and install it again, or uninstall it",
    }
